"""Rows from cells, worked by hand."""

import csv
import io
import json

import pytest
from rich.console import Console

from simulations.comparison.cell import Cell, Person
from simulations.comparison.results import Block, Results, Row, results_of
from simulations.comparison.tables import (
    csv_table,
    markdown_table,
    render_tables,
    results_data,
)
from simulations.report.run import Answer
from simulations.report.statistics import sign_flip_test

TASK = "tagging"


def cell(
    method: str,
    right: dict[str, list[int]],
    *,
    seed: int = 1,
    setting: str = "federated",
    nll: float | None = 1.0,
    **changes: float,
) -> Cell:
    """Make a cell from whether each person's answers were right."""
    people = tuple(
        Person(
            user_id,
            None,
            4,
            int(changes.get("private_bytes", 0)),
            2.0,
            10,
            (),
            tuple(
                Answer(f"q{i}", TASK, "gear" if ok else "dream", "gear", nll)
                for i, ok in enumerate(own)
            ),
        )
        for user_id, own in right.items()
    )
    return Cell(method, "all", setting, seed, 100.0, 7.0, 0.5, {"tagging": 9.0}, people)


def of(results: Results, method: str, setting: str = "federated") -> Row:
    row = results.row(method, Block(TASK, "all", setting))
    assert row is not None
    return row


def test_a_person_counts_once_however_many_seeds_ask() -> None:
    results = results_of(
        [
            cell("population", {"ann": [1, 0], "bob": [0, 0]}),
            cell("population", {"ann": [1, 1]}, seed=2),
        ],
        ["population"],
    )
    row = of(results, "population")
    assert row.scores == {"ann": 0.75, "bob": 0.0}
    assert row.estimate.mean == pytest.approx(0.375)
    assert row.pooled["accuracy"] == pytest.approx(3 / 6)
    assert (row.estimate.users, row.queries, row.seeds) == (2, 6, (1, 2))


def test_gains_are_paired_and_ours_also_meets_the_best_of_the_others() -> None:
    people = [f"u{i}" for i in range(8)]
    results = results_of(
        [
            cell("population", {u: [0, 0] for u in people}),
            cell("oppu", {u: [1, 0] for u in people}),
            cell("rag-1", {u: [0, 0] for u in people}),
            cell("meso-r1", {u: [1, 1] for u in people}),
            cell("meso", {u: [1, 1] for u in people}),
        ],
        ["population", "oppu", "rag-1", "meso-r1", "meso"],
    )
    meso = of(results, "meso")
    assert meso.gain is not None
    assert meso.against_rival is not None
    assert meso.gain.estimate.mean == 1.0
    # The best rival is neither population nor another form of ours.
    assert meso.rival == "oppu"
    assert meso.against_rival.estimate.mean == 0.5
    assert of(results, "population").gain is None
    assert of(results, "oppu").against_rival is None
    # Four gains over population, and two of ours over the best rival: one family of six.
    assert results.comparisons == 6
    p = sign_flip_test([1.0] * 8)
    assert p == pytest.approx(2 / 2**8)
    assert meso.gain.p == p
    assert meso.gain.adjusted_p == pytest.approx(6 * p)
    assert meso.gain.clear


def test_errors_count_the_other_way() -> None:
    def rated(method: str, said: str) -> Cell:
        answers = (Answer("q", "rating", said, "4", None),)
        people = (Person("u", None, 3, 0, 0.0, 0, (), answers),)
        return Cell(method, "all", "federated", 1, 0, 0, None, {}, people)

    results = results_of([rated("population", "1"), rated("user-mean", "3.5")], [])
    row = results.row("user-mean", Block("rating", "all", "federated"))
    assert row is not None
    assert row.gain is not None
    assert row.estimate.mean == 0.5
    assert row.gain.estimate.mean == 2.5
    assert row.nll is None
    assert row.nll_gain is None
    assert row.cost.added_ms is None


def test_the_gap_is_centralized_over_federated_on_the_same_people() -> None:
    results = results_of(
        [
            cell("meso", {"ann": [0, 0], "bob": [1, 0]}),
            cell("meso", {"ann": [1, 0], "bob": [1, 0]}, setting="centralized"),
            cell("fedavg-lora", {"ann": [1, 1], "bob": [1, 1]}),
        ],
        ["fedavg-lora", "meso"],
    )
    assert set(results.gaps) == {("meso", TASK, "all")}
    assert results.gaps["meso", TASK, "all"].estimate.mean == pytest.approx(0.25)


def test_the_same_numbers_stand_in_every_table() -> None:
    results = results_of(
        [
            cell("population", {"ann": [1, 0], "bob": [0, 0]}),
            cell("meso", {"ann": [1, 1], "bob": [1, 0]}, private_bytes=8192),
        ],
        ["population", "meso"],
    )
    lines = list(csv.DictReader(io.StringIO(csv_table(results))))
    data = json.loads(json.dumps(results_data(results), allow_nan=False))["rows"]
    assert [line["method"] for line in lines] == ["population", "meso"]
    for line, entry in zip(lines, data, strict=True):
        assert float(line["score"]) == entry["score"]
        assert float(line["private_bytes"]) == entry["private_bytes"]
    assert lines[1]["leaves_the_device"] == "router statistics"
    assert float(lines[1]["gain"]) == 0.5
    text = markdown_table(results)
    assert "| meso | **0.750 [0.50, 1.00]** | +0.500 [+0.50, +0.50] | 1.00 [1.00, 1.00] |" in text
    assert "8,192" in text
    assert text.count("\n| ") == 4


def shown(results: Results) -> str:
    out = io.StringIO()
    Console(width=100, file=out, force_terminal=False).print(render_tables(results))
    return out.getvalue()


def test_in_the_terminal_marks_tell_the_best_and_what_is_clear_without_bold() -> None:
    people = {f"p{i}": [0, 0] for i in range(8)}
    long = "meso-rag-1-no-release"
    results = results_of(
        [
            cell("population", people),
            cell(long, {name: [1, 0] for name in people}, private_bytes=322_620),
            cell("fedavg-lora", people),
        ],
        ["population", long, "fedavg-lora"],
    )
    text = shown(results)
    by_method = {line.split()[0]: line for line in text.splitlines() if "[" in line}
    assert "0.500* [0.50, 0.50] +0.500 [+0.50, +0.50] +" in by_method[long]
    assert by_method["fedavg-lora"].split("[0.00, 0.00]")[2].split()[:2] == ["1.00", "–"]
    assert "…" not in text
    assert "clearly better or worse than population" in text
    assert "fewer than" not in text


def test_with_too_few_people_the_terminal_says_that_nothing_can_be_clear() -> None:
    results = results_of(
        [cell("population", {"ann": [0]}), cell("meso", {"ann": [1]})], ["population", "meso"]
    )
    assert "with fewer than 6 users none can be" in shown(results)
