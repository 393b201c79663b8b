"""Answers without a model, worked by hand."""

from collections.abc import Callable

import pytest

from shared.corpus.user import ProfileItem, Query, User
from shared.tasks import TASKS
from simulations.baselines.majority import (
    MAJORITIES,
    majority,
    mean_score,
    median_score,
    targets_of,
)
from simulations.comparison.scene import Scene


def person(*targets: str, task: str = "tagging") -> User:
    items = tuple(ProfileItem(f"h{i}", task, "text", t) for i, t in enumerate(targets))
    return User("u", items, (Query("q", task, "text", "gear"),))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["a", "b", "b"], "b"),
        (["a", "b", "b", "a"], "a"),  # as many: the latest
        (["a", "a", "b", "b"], "b"),
        (["c"], "c"),
    ],
)
def test_majority(targets: list[str], expected: str) -> None:
    assert majority(targets) == expected


def test_mean_and_median_of_scores() -> None:
    assert float(mean_score(["1", "4", "5"])) == pytest.approx(10 / 3, abs=1e-3)
    assert float(median_score(["1", "4", "5"])) == 4
    assert float(median_score(["1", "2"])) == 1.5


def test_only_a_history_that_asks_the_same_counts() -> None:
    assert targets_of("tagging", [person("gear", "dream")]) == ["gear", "dream"]
    assert targets_of("rating", [person("gear")]) == []
    assert targets_of("citation", [person("A title", task="citation")]) == []


def test_each_answers_its_kind_of_task_from_own_history_or_else_the_servers(scene: Scene) -> None:
    by_name = {contender.name: contender for contender in MAJORITIES}
    rules: dict[str, Callable[..., str]] = {
        "user-majority": majority,
        "user-mean": mean_score,
        "user-median": median_score,
    }
    asked = 0
    for name, contender in by_name.items():
        for user, outcome in zip(scene.people, contender.answer(scene).outcomes, strict=True):
            wanted = [q for q in user.queries if TASKS[q.task].kind in contender.kinds]
            assert [a["query_id"] for a in outcome["queries"]] == [q.query_id for q in wanted]
            for query, answer in zip(wanted, outcome["queries"], strict=True):
                own = targets_of(query.task, [user])
                known = own or targets_of(query.task, scene.server)
                assert answer["prediction"] == rules[name](known)
                asked += 1
    assert asked > 0
