"""What a run without scores has come to, for the terminal: trained, sent, measured on the wire."""

import statistics

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shared.byte_size import byte_size
from shared.privacy_cost import cost_sentences
from simulations.report.run import Run
from simulations.report.wording import (
    STAGE_NAMES,
    count_of,
    decimal,
    joined,
    unmeasured,
)


def render_progress(run: Run) -> Group:
    """Return what there is of a run whose devices have not been evaluated."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for release in sorted({stage.release for stage in run.training}):
        own = [stage for stage in run.training if stage.release == release]
        names = joined([STAGE_NAMES[stage.stage] for stage in own])
        seconds = sum(stage.seconds for stage in own)
        table.add_row(f"training, release {release}", f"{names} ({seconds:.1f} s)")
    for round_ in run.rounds:
        answered = f"{round_.answered} of {count_of(round_.asked, 'device')} answered"
        if round_.traffic:
            down = statistics.median(device.bytes_down for device in round_.traffic)
            up = statistics.median(device.bytes_up for device in round_.traffic)
            answered += f"; a device: {byte_size(down)} down, {byte_size(up)} up"
        table.add_row(f"round {round_.release}", answered)
        if means := round_.mean_experts:
            shares = "  ".join(f"E{i} {decimal(mean, 2)}" for i, mean in enumerate(means, start=1))
            table.add_row("  mean expert weights", shares)
    costs = [(round_.release, round_.cost) for round_ in run.rounds]
    for sentence in cost_sentences(costs) if costs else ():
        table.add_row("privacy", sentence.removeprefix("Privacy: ").removeprefix("Privacy "))
    if not run.deployed:
        table.add_row("evaluated", f"0 of {count_of(len(run.corpus.device_users), 'device user')}")
    # Not as the table's title, which breaks where a narrow table ends.
    return Group(Text(unmeasured(run)), *([table] if table.row_count else []))
