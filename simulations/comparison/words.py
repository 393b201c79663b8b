"""What a comparison found, in sentences: never a claim that its test does not carry."""

from collections.abc import Mapping

from shared.byte_size import byte_size
from simulations.comparison.results import OURS, REFERENCE, Block, Results, Row
from simulations.comparison.tables import leaves, slice_name
from simulations.report.statistics import MIN_USERS, Gain
from simulations.report.wording import (
    count_of,
    decimal,
    joined,
    metric_name,
    signed,
    task_name,
)


def _range(gain: Gain) -> str:
    low, high = gain.estimate.low, gain.estimate.high
    if low is None or high is None:
        return "one user only, so no interval"
    p = f"Holm-corrected p = {gain.adjusted_p:.3f}"
    return f"95 % interval {signed(low, 3)} to {signed(high, 3)}, {p}"


def _stands(gain: Gain, other: str) -> str:
    if not gain.clear:
        return f"shows no clear difference from {other}"
    return f"is clearly {'better' if gain.estimate.mean > 0 else 'worse'} than {other}"


def _compared(gain: Gain) -> str:
    return f"{decimal(gain.method)} against {decimal(gain.reference)} ({_range(gain)})"


def against_rival(row: Row) -> str:
    """Say how a row of ours stands against the best of the others."""
    gain = row.against_rival
    if gain is None:
        return ""
    stands = _stands(gain, f"{row.rival}, the best rival,")
    return f"{row.method} {stands} in {metric_name(row.block.primary)}: {_compared(gain)}."


def against_population(row: Row) -> str:
    """Say how a row stands against ``population``."""
    return "" if row.gain is None else f"It {_stands(row.gain, REFERENCE)}: {_compared(row.gain)}."


def private_size(row: Row, oppu: Row | None) -> str:
    """Say what a method keeps on a device, and what share of OPPU's that is."""
    size = row.cost.private_bytes
    text = f"It keeps {byte_size(size)} private per user" if size else "It keeps nothing private"
    if oppu is not None and oppu.cost.private_bytes and size:
        text += f", {100 * size / oppu.cost.private_bytes:.3g} % of oppu's"
    return f"{text}; what leaves the device: {leaves(row)}."


def gap_words(gaps: Mapping[tuple[str, str, str], Gain], row: Row) -> str:
    """Say what centralized training would gain."""
    gain = gaps.get((row.method, row.block.task, row.block.slice))
    if gain is None:
        return ""
    relative = 100 * gain.estimate.mean / abs(gain.reference) if gain.reference else float("nan")
    share = "" if gain.reference == 0 else f", {signed(relative, 1)} % of the federated score"
    return (
        f"Centralized training changes it by {signed(gain.estimate.mean, 3)}{share} "
        f"({_range(gain)}; positive: centralized is better)."
    )


def summary(results: Results) -> list[tuple[str, str]]:
    """Return, for each federated block, its name and what was found in it."""
    found = []
    for block in results.blocks:
        if block.setting == "federated":
            sentences = _sentences(results, block)
            if sentences:
                found.append((f"{task_name(block.task)}, {slice_name(block.slice)}", sentences))
    return found


def _sentences(results: Results, block: Block) -> str:
    row = results.row(OURS, block) or next((r for r in results.of(block) if r.ours), None)
    if row is None:
        best = results.best(block)
        if best is None:
            return f"All methods have the same mean {metric_name(block.primary)}."
        names = [r.method for r in results.of(block) if r.estimate.mean == best]
        return f"The best mean {metric_name(block.primary)} is that of {joined(names)}."
    parts = (
        against_rival(row),
        against_population(row),
        private_size(row, results.row("oppu", block)),
        gap_words(results.gaps, row),
    )
    return " ".join(part for part in parts if part)


def headline(results: Results) -> str:
    """Say in one sentence what the comparison is and how many of its differences are clear."""
    if not results.rows:
        return "No cell is finished yet, so there is nothing to compare."
    users = max(row.estimate.users for row in results.rows)
    clear = sum(
        gain.clear for r in results.rows for gain in (r.gain, r.against_rival) if gain is not None
    )
    of_nll = sum(row.nll_gain.clear for row in results.rows if row.nll_gain is not None)
    methods = len({row.method for row in results.rows})
    text = (
        f"{count_of(methods, 'method')} on {count_of(users, 'person')}".replace("persons", "people")
        + f" whom no server has seen in the federated setting: {clear} of "
        f"{count_of(results.comparisons, 'comparison')} in the tasks' metrics are clear, and "
        f"{of_nll} in NLL."
    )
    if users < MIN_USERS:
        text += f" With fewer than {MIN_USERS} users none can be."
    return text
