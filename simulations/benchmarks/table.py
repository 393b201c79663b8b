"""The benchmark's results for the terminal, at most 100 columns wide."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulations.benchmarks.results import Results
from simulations.benchmarks.wording import bar, limit, spread, value, verdict
from simulations.report.wording import count_of

_STYLE = {"met": "green", "missed": "bold red", "": ""}
_MARK = {"met": "✓", "missed": "✗", "": ""}


def render_results(results: Results) -> Group:
    """Return the table of figures, the table of base formats, what was checked and skipped."""
    parts: list[Table | Text] = []
    if results.figures:
        parts.append(figures_table(results))
    formats = formats_of(results)
    if formats:
        parts.append(formats_table(formats))
    checks = [e for finding in results.findings.values() for e in finding.equalities]
    if checks:
        parts.append(
            Text(
                f"Checked before timing: {len(checks)} equalities of both sides (losses, "
                "gradients, outputs); all hold.",
                style="dim",
            )
        )
    for name, finding in results.findings.items():
        if finding.skipped:
            parts.append(Text(f"Left out: {name}: {finding.skipped}."))
    return Group(*parts)


def figures_table(results: Results) -> Table:
    """Return one line a figure."""
    machine = results.machine
    where = f"{machine['device']}, {count_of(machine['threads'], 'thread')}"
    table = Table(
        title=f"{results.settings.model} on {where}, {count_of(results.settings.rounds, 'round')}",
        title_justify="left",
        caption="median and spread over the rounds; ✓ ✗ whether the bar is met; limit: the ratio "
        "if only the "
        "unavoidable were left (docs/performance.md)",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("what", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for heading in ("ratio", "min–max", "bar", "limit", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in results.figures:
        said = verdict(figure)
        table.add_row(
            figure.what,
            figure.against,
            Text(value(figure.median, figure.unit), style="bold"),
            spread(figure),
            bar(figure),
            limit(figure),
            Text(_MARK[said], style=_STYLE[said]),
        )
    return table


def formats_of(results: Results) -> Sequence[dict[str, Any]]:
    """Return the lines of the table of base formats; none if that row was not run."""
    finding = results.findings.get("quantised")
    lines: Sequence[dict[str, Any]] = finding.facts.get("formats", ()) if finding else ()
    return lines


def formats_table(formats: Sequence[dict[str, Any]]) -> Table:
    """Return one line a base format, as ratios to fp32."""
    table = Table(
        title="\nBase formats, against fp32",
        title_justify="left",
        caption="loss: nats per token of a text; training loss: mean of a short training; cosine: "
        "LoRA gradient",
        caption_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    table.add_column("format")
    headings = ("MiB", "footprint", "decode", "training step", "loss", "training loss", "cosine")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in formats:
        table.add_row(
            line["format"],
            f"{line['footprint_bytes'] / (1 << 20):.0f}",
            *(value(line[key]) for key in ("footprint", "decode", "training_step")),
            *(f"{line[key]:.3f}" for key in ("loss", "training_loss", "gradient_cosine")),
        )
    return table
