"""Tables for the terminal and for Markdown."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from simulations.report.summary import summarise
from simulations.report.table import ResultsTable, markdown_table

Writer = Callable[..., Path]
MANY = ("tagging", "rating", "headline", "news_headline", "tweet_paraphrase", "writing")


def _printed(folder: Path) -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ResultsTable(summarise(folder)))
    return console.export_text(styles=True).splitlines()


def _plain(folder: Path) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(ResultsTable(summarise(folder)))
    return capture.get().splitlines()


def test_one_line_per_method_within_100_columns(fake_run: Writer) -> None:
    lines = _plain(fake_run())
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    for method in ("base", "population", "oppu", "proper-folded", "mta-exact", "meso"):
        assert sum(line.startswith(method + " ") for line in lines) == 1
    assert "accuracy ↑" in "".join(lines)
    assert "MAE ↓" in "".join(lines)


def test_a_narrower_terminal_gets_whole_means_without_intervals(fake_run: Writer) -> None:
    folder = fake_run()
    wide, console = _plain(folder), Console(width=80)
    with console.capture() as capture:
        console.print(ResultsTable(summarise(folder)))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert "[95 % interval]" in "".join(wide)
    assert "intervals in 100 columns" in "".join(lines)
    numbers = next(line.split() for line in lines if line.startswith("meso "))
    whole = next(line.split() for line in wide if line.startswith("meso "))
    assert numbers == [word for word in whole if "[" not in word and "]" not in word]


def test_many_tasks_still_fit(fake_run: Writer) -> None:
    lines = _plain(fake_run(tasks=MANY, devices=6))
    assert max(map(len, lines)) <= 100
    summary_line = next(line for line in lines if line.startswith("meso"))
    assert len(summary_line.split()) == 3 + len(MANY)  # name, "115", "kB", one value per task


def test_best_is_bold_and_only_best(fake_run: Writer) -> None:
    folder = fake_run(tasks=("rating",))
    summary = summarise(folder)
    bold = [line.split()[0] for line in _printed(folder) if "\x1b[1m" in line]
    best = min(summary.rows, key=lambda row: row.estimate.mean)
    assert best.method in bold
    assert {m for m in bold if m in summary.methods} == {
        row.method for row in summary.rows if row.estimate.mean == best.estimate.mean
    }


def test_best_survives_a_pipe(fake_run: Writer) -> None:
    folder = fake_run(tasks=("rating", "tagging"))
    summary, lines = summarise(folder), _plain(folder)
    for method in summary.methods:
        (line,) = (line for line in lines if line.startswith(f"{method} "))
        best = [summary.row(method, task) for task in summary.tasks]
        expected = sum(r is not None and r.estimate.mean == summary.best(r.task) for r in best)
        assert line.count("*") == expected
    assert sum(line.count("*") for line in lines) > len(summary.tasks)  # the caption names it


def test_where_all_are_as_good_none_is_the_best(fake_run: Writer) -> None:
    summary = summarise(fake_run(tasks=("tagging",), skill={"population": 0.3, "meso": 1.0}))
    assert summary.best("tagging") == max(row.estimate.mean for row in summary.rows)
    same = tuple(replace(row, estimate=summary.rows[0].estimate) for row in summary.rows)
    assert replace(summary, rows=same).best("tagging") is None
    assert replace(summary, rows=same[:1]).best("tagging") == same[0].estimate.mean


@pytest.mark.parametrize("methods", [("base", "population", "meso-tuned"), ("population", "meso")])
def test_three_tasks_with_both_marks_fit(fake_run: Writer, methods: tuple[str, ...]) -> None:
    skill = {"population": 0.3, "meso": 1.0, "meso-tuned": 1.0, "base": 0.0}
    lines = _plain(fake_run(methods=methods, skill=skill))
    assert any("*+ [" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_clear_gains_carry_a_sign(fake_run: Writer) -> None:
    skill = {"population": 0.5, "meso": 1.0, "oppu": 0.0, "mta-exact": 0.5}
    lines = _plain(fake_run(tasks=("tagging",), skill=skill))
    (meso,) = (line for line in lines if line.startswith("meso"))
    (oppu,) = (line for line in lines if line.startswith("oppu"))
    assert any(cell.endswith("+") for cell in meso.split())
    assert any(cell.endswith("−") for cell in oppu.split())


@pytest.mark.parametrize("tasks", [("tagging", "rating", "headline"), MANY], ids=len)
def test_the_caption_says_what_is_marked(fake_run: Writer, tasks: tuple[str, ...]) -> None:
    lines = _plain(fake_run(tasks=tasks, devices=6))
    caption = " ".join(" ".join(lines).split())
    assert "+ − clearly better or worse than population" in caption
    assert "clear: sign-flip test over users, Holm-corrected, p < 0.05" in caption


def test_markdown_has_every_number_and_equal_columns(fake_run: Writer) -> None:
    folder = fake_run()
    summary = summarise(folder)
    lines = markdown_table(summary).splitlines()
    assert len(lines) == 2 + 6
    assert {line.count("|") for line in lines} == {3 * 3 + 3}
    meso = next(line for line in lines if line.startswith("| meso"))
    row = summary.row("meso", "tagging")
    assert row is not None
    assert f"**{row.estimate.mean:.3f}**" in meso
    assert "115,200" in meso


@pytest.mark.parametrize(
    "changes", [{"devices": 0}, {"devices": 1}, {"methods": ("base",)}], ids=str
)
def test_small_runs_have_tables_too(fake_run: Writer, changes: dict[str, object]) -> None:
    folder = fake_run(**changes)
    assert _plain(folder)
    assert markdown_table(summarise(folder)).startswith("| method | private bytes |")
