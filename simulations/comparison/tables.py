"""The results as CSV, JSON, Markdown and for the terminal: the same numbers in all of them."""

import csv
import io
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shared.byte_size import byte_size
from simulations.comparison.catalogue import CONTENDERS
from simulations.comparison.results import Block, Results, Row
from simulations.report.statistics import MIN_USERS, Estimate, Gain
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


def block_title(block: Block) -> str:
    """Return a block in words."""
    return f"{task_name(block.task)}, {slice_name(block.slice)}, {block.setting}"


def slice_name(name: str) -> str:
    """Return a slice in words."""
    if name.startswith("sparse-"):
        return f"{name.removeprefix('sparse-')} history items"
    return {"all": "everybody", "shifted": "shifted population"}.get(name, name)


def leaves(row: Row) -> str:
    """Return what leaves the device under a method in a setting."""
    contender = CONTENDERS[row.method]
    if row.block.setting == "centralized":
        return contender.leaves_centralized
    return contender.leaves


def _gain_data(prefix: str, gain: Gain | None) -> dict[str, Any]:
    return {
        prefix: gain.estimate.mean if gain else None,
        f"{prefix}_low": gain.estimate.low if gain else None,
        f"{prefix}_high": gain.estimate.high if gain else None,
        f"{prefix}_p": gain.p if gain else None,
        f"{prefix}_p_holm": gain.adjusted_p if gain else None,
        f"{prefix}_clear": gain.clear if gain else None,
    }


def _estimate_data(prefix: str, estimate: Estimate | None) -> dict[str, Any]:
    return {
        prefix: estimate.mean if estimate else None,
        f"{prefix}_low": estimate.low if estimate else None,
        f"{prefix}_high": estimate.high if estimate else None,
    }


def row_data(row: Row) -> dict[str, Any]:
    """Return a row as flat data; its keys are the columns of the CSV file."""
    pooled = ("accuracy", "macro_f1", "mae", "rmse", "rouge_1", "rouge_l")
    return {
        "task": row.block.task,
        "slice": row.block.slice,
        "setting": row.block.setting,
        "method": row.method,
        "users": row.estimate.users,
        "queries": row.queries,
        "seeds": " ".join(map(str, row.seeds)),
        "metric": row.block.primary,
        "higher_is_better": row.block.higher_is_better,
        **_estimate_data("score", row.estimate),
        **_estimate_data("nll", row.nll),
        **{f"pooled_{name}": row.pooled.get(name) for name in pooled},
        **_gain_data("gain", row.gain),
        **_gain_data("nll_gain", row.nll_gain),
        "rival": row.rival,
        **_gain_data("against_rival", row.against_rival),
        "private_bytes": row.cost.private_bytes,
        "bytes_down": row.cost.bytes_down,
        "bytes_up": row.cost.bytes_up,
        "training_seconds": row.cost.seconds,
        "training_tokens": row.cost.tokens,
        "added_ms_per_token": row.cost.added_ms,
        "added_prompt_tokens": row.cost.prompt_tokens,
        "leaves_the_device": leaves(row),
    }


def results_data(results: Results) -> dict[str, Any]:
    """Return the results as JSON data: rows with the scores of each person, and gaps."""
    return {
        "comparisons": results.comparisons,
        "rows": [{**row_data(row), "scores": row.scores, "nlls": row.nlls} for row in results.rows],
        "gaps": [
            {"method": method, "task": task, "slice": slice_, **_gain_data("gap", gain)}
            for (method, task, slice_), gain in results.gaps.items()
        ],
    }


def csv_table(results: Results) -> str:
    """Return the rows as CSV, numbers in full."""
    lines = [row_data(row) for row in results.rows]
    buffer = io.StringIO()
    if lines:
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return buffer.getvalue()


def _with_interval(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return "–"
    return f"{decimal(estimate.mean, digits)} {interval(estimate, 2)}".strip()


def _gain_text(gain: Gain | None) -> str:
    if gain is None:
        return "–"
    text = signed(gain.estimate.mean, 3)
    if gain.estimate.low is not None and gain.estimate.high is not None:
        text += f" [{signed(gain.estimate.low)}, {signed(gain.estimate.high)}]"
    return text


def markdown_table(results: Results) -> str:
    """Return one Markdown table a block, ready to paste into a paper."""
    parts = []
    for block in results.blocks:
        rows = results.of(block)
        header = [
            "method",
            f"{metric_name(block.primary)} {arrow(block.higher_is_better)}",
            "gain over population",
            "NLL ↓",
            "private bytes",
            "down",
            "up",
            "s a user",
            "tokens a user",
            "ms a token",
            "leaves the device",
        ]
        lines = [header, ["---", *["---:"] * (len(header) - 2), "---"]]
        lines += [_markdown_row(results, row) for row in rows]
        users, queries = rows[0].estimate.users, rows[0].queries
        seeds = ", ".join(map(str, rows[0].seeds))
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts.append(
            f"**{block_title(block).capitalize()}** "
            f"({users} users, {queries} queries, seeds {seeds})\n\n{table}\n"
        )
    note = (
        "Means over users with 95 % bootstrap intervals; bold: best mean; \\*: clearly different "
        f"from population (sign-flip test over users, Holm-corrected for {results.comparisons} "
        "comparisons, p < 0.05).\n"
    )
    return "\n".join([*parts, note])


def _markdown_row(results: Results, row: Row) -> list[str]:
    value = _with_interval(row.estimate)
    if row.estimate.mean == results.best(row.block):
        value = f"**{value}**"
    cost = row.cost
    return [
        row.method,
        value,
        f"{_gain_text(row.gain)}{' *' if row.gain is not None and row.gain.clear else ''}",
        _with_interval(row.nll, 2),
        f"{cost.private_bytes:,.0f}",
        f"{cost.bytes_down:,.0f}",
        f"{cost.bytes_up:,.0f}",
        decimal(cost.seconds, 1),
        f"{cost.tokens:,.0f}",
        "–" if cost.added_ms is None else decimal(cost.added_ms, 1),
        leaves(row),
    ]


def render_tables(results: Results) -> Group:
    """Return one table a block for the terminal, at most 100 columns wide, and what marks mean."""
    tables, leaving = [], "leaves the device"
    for block in results.blocks:
        metric = f"{metric_name(block.primary)} {arrow(block.higher_is_better)}"
        table = Table(
            title=block_title(block).capitalize(),
            title_justify="left",
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for name in ("method", metric, "gain", "", "NLL ↓", "private", leaving):
            # Only words may break: numbers are what the table is for.
            words = name in ("method", leaving)
            table.add_column(name, justify="left" if words else "right", no_wrap=name != leaving)
        for row in results.of(block):
            best = row.estimate.mean == results.best(block)
            # Bold does not survive a pipe.
            level = f"{decimal(row.estimate.mean)}{'*' if best else ' '}"
            table.add_row(
                Text(row.method),
                Text(f"{level} {interval(row.estimate)}", style="bold" if best else ""),
                Text(_gain_text(row.gain)),
                Text(clear_mark(row.gain)),
                Text("–" if row.nll is None else decimal(row.nll.mean, 2)),
                Text(byte_size(row.cost.private_bytes) if row.cost.private_bytes else "–"),
                Text(leaves(row)),
            )
        tables.append(table)
    spaced = [part for table in tables for part in (Text(), table)]
    users = max((row.estimate.users for row in results.rows), default=0)
    few = f"; with fewer than {MIN_USERS} users none can be" if 0 < users < MIN_USERS else ""
    return Group(*spaced, Text(f"{MARKS}{few}" if tables else "", style="dim"))
