"""The results table against numbers computed another way from the same files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.errors import MesofedError
from shared.tasks import TASKS
from simulations.report.statistics import sign_flip_test
from simulations.report.summary import summarise, write_summary

Writer = Callable[..., Path]


def _queries(folder: Path, method: str, task: str) -> list[list[dict[str, str]]]:
    """Return each user's answers straight from the files."""
    return [
        [q for q in json.loads(path.read_text())["methods"][method]["queries"] if q["task"] == task]
        for path in sorted((folder / "results").glob("*.json"))
    ]


def _accuracy(folder: Path, method: str) -> list[float]:
    users = _queries(folder, method, "tagging")
    return [sum(q["prediction"] == q["gold"] for q in own) / len(own) for own in users]


def _mae(folder: Path, method: str) -> list[float]:
    users = _queries(folder, method, "rating")
    return [sum(abs(int(q["prediction"]) - int(q["gold"])) for q in o) / len(o) for o in users]


def test_means_over_users(fake_run: Writer) -> None:
    folder = fake_run()
    summary = summarise(folder)
    for method in summary.methods:
        tagging, rating = summary.row(method, "tagging"), summary.row(method, "rating")
        assert tagging is not None
        assert rating is not None
        assert tagging.estimate.mean == pytest.approx(np.mean(_accuracy(folder, method)))
        assert rating.estimate.mean == pytest.approx(np.mean(_mae(folder, method)))
        assert (tagging.users, tagging.queries) == (12, 48)
        nll = [np.mean([q["nll"] for q in own]) for own in _queries(folder, method, "tagging")]
        assert tagging.nll == pytest.approx(np.mean(nll))


def test_gain_is_paired_and_positive_when_better(fake_run: Writer) -> None:
    folder = fake_run(skill={"population": 0.1, "meso": 1.0})
    summary = summarise(folder)
    rating = summary.row("meso", "rating")
    assert rating is not None
    assert rating.gain is not None
    difference = np.subtract(_mae(folder, "population"), _mae(folder, "meso"))
    assert rating.gain.estimate.mean == pytest.approx(difference.mean())
    assert rating.gain.estimate.mean > 0
    assert rating.gain.clear
    population = summary.row("population", "rating")
    assert population is not None
    assert population.gain is None


def test_users_count_alike_however_many_queries_they_have(fake_run: Writer) -> None:
    folder = fake_run(tasks=("tagging",), devices=2, queries=2)
    for number, (right, wrong) in enumerate(((1, 0), (1, 9))):
        path = folder / f"results/{number:04d}.json"
        data = json.loads(path.read_text())
        answer = {"query_id": "q", "task": "tagging", "gold": "gear", "nll": None}
        data["methods"]["meso"]["queries"] = [answer | {"prediction": "gear"}] * right + [
            answer | {"prediction": "dream"}
        ] * wrong
        path.write_text(json.dumps(data))
    row = summarise(folder).row("meso", "tagging")
    assert row is not None
    assert row.metrics["accuracy"] == pytest.approx((1.0 + 0.1) / 2)
    assert row.pooled["accuracy"] == pytest.approx(2 / 11)
    assert row.nll is None


def test_means_over_users_hold_only_what_one_user_can_have(fake_run: Writer) -> None:
    folder = fake_run(tasks=("tagging", "rating"), skill={"meso": 2.0})
    summary = summarise(folder)
    tagging, rating = summary.row("meso", "tagging"), summary.row("meso", "rating")
    assert tagging is not None
    assert rating is not None
    # Everyone is right, and the label list is longer than anyone's queries.
    assert tagging.metrics == {"accuracy": 1.0}
    assert rating.metrics == {"mae": 0.0}
    assert rating.pooled == {"mae": 0.0, "rmse": 0.0}
    golds = {q["gold"] for own in _queries(folder, "meso", "tagging") for q in own}
    assert tagging.pooled["macro_f1"] == pytest.approx(
        len(golds) / len(TASKS["tagging"].labels or ())
    )
    population = summary.row("population", "rating")
    assert population is not None
    answers = [q for own in _queries(folder, "population", "rating") for q in own]
    squares = [(int(q["prediction"]) - int(q["gold"])) ** 2 for q in answers]
    assert population.pooled["rmse"] == pytest.approx(np.sqrt(np.mean(squares)))


def test_p_values_are_corrected_over_all_methods_and_tasks(fake_run: Writer) -> None:
    summary = summarise(fake_run())
    gains = {(r.method, r.task): r.gain for r in summary.rows if r.gain is not None}
    assert len(gains) == 5 * 3  # every method but population, on every task
    for (method, task), gain in gains.items():
        own, reference = summary.by_user[method, task], summary.by_user["population", task]
        assert gain.p == sign_flip_test([own[user] - reference[user] for user in own])
        # Holm, counted from the other side: the worst of all that are at most as probable.
        smaller = sorted(g.p for g in gains.values() if g.p <= gain.p)
        steps = [(15 - rank) * p for rank, p in enumerate(smaller)]
        assert gain.adjusted_p == pytest.approx(min(1.0, max(steps)))


def test_written_summary_holds_the_same_numbers(fake_run: Writer) -> None:
    folder = fake_run(skill={"population": 0.1, "meso": 1.0})
    data = json.loads(write_summary(folder).read_text())
    rows = {(row["method"], row["task"]): row for row in data["table"]}
    assert len(rows) == 18
    meso = rows["meso", "tagging"]
    assert meso["metrics"]["accuracy"] == pytest.approx(np.mean(_accuracy(folder, "meso")))
    assert meso["low"] <= meso["metrics"]["accuracy"] <= meso["high"]
    assert meso["private_bytes"] == 115_200
    assert meso["gain"]["clear"] is True
    assert 0 < meso["gain"]["p"] <= meso["gain"]["p_holm"] < 0.05
    assert {row["gain"]["clear"] for row in data["table"] if row["gain"]} == {True, False}
    assert data["bytes"] == {"devices": 12, "down": 12 * 2_431_744, "up": 12 * 132}
    assert data["seconds"]["population"] == 61.5
    assert data["seconds"]["private"] == pytest.approx(12 * 4 * 2.5)


def test_featured_method_is_named_before_scores_are_seen(fake_run: Writer, tmp_path: Path) -> None:
    bad_meso = summarise(fake_run(skill={"meso": 0.0, "mta-exact": 1.0}))
    assert bad_meso.featured == "meso"
    (tmp_path / "run").rename(tmp_path / "first")
    assert summarise(fake_run(methods=("base", "population"))).featured is None
    (tmp_path / "run").rename(tmp_path / "second")
    assert summarise(fake_run(methods=("population", "mta-exact", "oppu"))).featured == "mta-exact"


def test_unknown_task_is_named(fake_run: Writer) -> None:
    folder = fake_run(devices=1)
    path = folder / "results/0000.json"
    path.write_text(path.read_text().replace('"tagging"', '"juggling"'))
    with pytest.raises(MesofedError, match="juggling"):
        summarise(folder)
