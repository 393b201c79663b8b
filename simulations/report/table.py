"""The results table for the terminal (rich) and for a README or a paper (Markdown)."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from shared.byte_size import byte_size
from simulations.report.summary import Row, Summary
from simulations.report.wording import (
    MARKS,
    arrow,
    clear_mark,
    decimal,
    interval,
    metric_name,
    signed,
    task_name,
)

_MOST_WITH_INTERVALS = 3
"""So many tasks fit 100 columns with intervals."""
_MOST_COLUMNS = 1_000
"""Wider than any table, to be measured in."""


def _heading(summary: Summary, task: str) -> str:
    row = next(row for row in summary.rows if row.task == task)
    return f"{metric_name(row.primary)} {arrow(row.higher_is_better)}"


def _cell(summary: Summary, row: Row | None, with_interval: bool) -> Text:
    if row is None:
        return Text("–")
    best = row.estimate.mean == summary.best(row.task)
    text = Text(decimal(row.estimate.mean), style="bold" if best else "")
    # Bold does not survive a pipe; the two marks share a width, so that columns line up.
    text.append(f"{'*' if best else ''}{clear_mark(row.gain)}".ljust(2))
    if with_interval:
        text.append(f" {interval(row.estimate):>12}", style="dim not bold")
    return text


@dataclass(frozen=True)
class ResultsTable:
    """The results for the terminal, at most 100 columns wide.

    One line per method; per task the mean over users with its 95 % interval and, up to three
    tasks, the negative log-likelihood per gold token. A terminal that is narrower than that gets
    the means without intervals.
    """

    summary: Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the widest form that fits, and what its marks mean."""
        unbounded = options.update(max_width=_MOST_COLUMNS)
        table, level = _table(self.summary, True), "mean over users [95 % interval]"
        if Measurement.get(console, unbounded, table).maximum > options.max_width:
            table = _table(self.summary, False)
            level = "mean over users; intervals in 100 columns, and in the report"
        yield table
        # Not as the table's caption, which breaks where a table of few columns ends.
        yield Text(f"{level}; {MARKS}", style="dim")


def _table(summary: Summary, with_intervals: bool) -> Table:
    detailed = len(summary.tasks) <= _MOST_WITH_INTERVALS
    people = max((row.users for row in summary.rows), default=0)
    table = Table(
        title=f"Quality on {people} device users",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("\nmethod", no_wrap=True, max_width=14)
    table.add_column("private\nbytes", justify="right", no_wrap=True)
    for task in summary.tasks:
        table.add_column(
            f"{task_name(task)}\n{_heading(summary, task)}", justify="right", no_wrap=detailed
        )
        if detailed:
            table.add_column("\nNLL↓", justify="right", no_wrap=True)
    for method in summary.methods:
        size = summary.costs[method].private_bytes
        cells = [Text(method), Text(byte_size(size) if size else "–")]
        for task in summary.tasks:
            row = summary.row(method, task)
            cells.append(_cell(summary, row, detailed and with_intervals))
            if detailed:
                nll = row.nll if row is not None else None
                cells.append(Text("–" if nll is None else decimal(nll, 2)))
        table.add_row(*cells)
    return table


def _markdown_value(summary: Summary, row: Row | None) -> str:
    if row is None:
        return "–"
    value = decimal(row.estimate.mean)
    if row.estimate.mean == summary.best(row.task):
        value = f"**{value}**"
    return f"{value} {interval(row.estimate)}".strip()


def _markdown_gain(row: Row | None) -> str:
    if row is None or row.gain is None:
        return "–"
    estimate = row.gain.estimate
    if estimate.low is None or estimate.high is None:
        return signed(estimate.mean)
    return f"{signed(estimate.mean)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def markdown_table(summary: Summary) -> str:
    """Return the results as a Markdown table: values, gains over ``population``, NLL, bytes."""
    header = ["method", "private bytes"]
    for task in summary.tasks:
        name = task_name(task)
        header += [f"{name} {_heading(summary, task)}", f"{name} gain", f"{name} NLL ↓"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for method in summary.methods:
        size = summary.costs[method].private_bytes
        cells = [method, f"{size:,.0f}" if size else "–"]
        for task in summary.tasks:
            row = summary.row(method, task)
            nll = row.nll if row is not None else None
            cells += [
                _markdown_value(summary, row),
                _markdown_gain(row),
                "–" if nll is None else decimal(nll, 2),
            ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
