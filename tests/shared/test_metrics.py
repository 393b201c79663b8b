"""Metrics against numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import PRIMARY, parse_score, score_pooled, score_user
from shared.tasks import TASKS, Kind


def test_classification_by_hand() -> None:
    # a: precision 1/2, recall 1/2, F1 1/2; b: precision 1, recall 1/2, F1 2/3; c never: 0.
    golds = ["a", "a", "b", "b"]
    answers = ["a", "nonsense", " B\n", "a"]
    metrics = score_pooled("classification", answers, golds, ("a", "b", "c"))
    assert metrics["accuracy"] == pytest.approx(2 / 4)
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_rating_by_hand_with_answers_that_are_no_scores() -> None:
    # Errors: 1; "great" for gold 2 counts as 5, so 3; "nan" for gold 4 counts as 1, so -3.
    metrics = score_pooled("rating", ["4", "great", "nan"], ["3", "2", "4"])
    assert metrics["mae"] == pytest.approx((1 + 3 + 3) / 3)
    assert metrics["rmse"] == pytest.approx(math.sqrt((1 + 9 + 9) / 3))


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("4.5", "1", 4.5),
        (" 2\n", "5", 2.0),
        ("", "1", 5.0),
        ("", "3", 5.0),
        ("", "5", 1.0),
        ("7", "5", 1.0),
        ("inf", "2", 5.0),
        ("3 stars", "4", 1.0),
    ],
)
def test_scores_are_read_as_lamp_reads_them(answer: str, gold: str, expected: float) -> None:
    assert parse_score(answer, gold) == expected


def test_rouge_by_hand() -> None:
    # 3 of 4 answer words and 3 of 5 gold words; longest common run in order is "the dogs" + "run".
    metrics = score_user("generation", ["the dogs run home"], ["run the dogs ran run"])
    assert metrics["rouge_1"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert metrics["rouge_l"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    # LaMP does not stem: of "the dog runs home" only "the" is the same word.
    endings = score_user("generation", ["the dog runs home"], ["run the dogs ran run"])
    assert endings["rouge_1"] == pytest.approx(2 * (1 / 4) * (1 / 5) / (1 / 4 + 1 / 5))
    swapped = score_user("generation", ["home the dog"], ["dog the home"])
    assert swapped["rouge_1"] == pytest.approx(1.0)
    assert swapped["rouge_l"] == pytest.approx(1 / 3)


def test_rouge_of_nothing_is_zero() -> None:
    assert score_user("generation", ["", "same"], ["words", "same"]) == {
        "rouge_1": 0.5,
        "rouge_l": 0.5,
    }


@given(st.data())
def test_right_answers_are_the_best_and_bounds_hold(data: st.DataObject) -> None:
    task = data.draw(st.sampled_from([t for t in TASKS.values() if t.labels is not None]))
    assert task.labels is not None
    golds = data.draw(st.lists(st.sampled_from(task.labels), min_size=1, max_size=8))
    answers = [data.draw(st.sampled_from(task.labels) | st.text(max_size=5)) for _ in golds]
    name, higher_is_better = PRIMARY[task.kind]
    best = score_pooled(task.kind, golds, golds, task.labels)[name]
    some = score_pooled(task.kind, answers, golds, task.labels)[name]
    assert best == (1.0 if higher_is_better else 0.0)
    assert (some <= best) if higher_is_better else (best <= some <= 4)


@pytest.mark.parametrize(
    ("kind", "own", "pooled"),
    [
        ("classification", {"accuracy"}, {"accuracy", "macro_f1"}),
        ("rating", {"mae"}, {"mae", "rmse"}),
        ("generation", {"rouge_1", "rouge_l"}, {"rouge_1", "rouge_l"}),
    ],
)
def test_users_have_only_metrics_that_are_means_over_queries(
    kind: Kind, own: set[str], pooled: set[str]
) -> None:
    golds, answers, labels = ["1", "2", "5", "5"], ["1", "3", "2", "5"], ("1", "2", "3", "4", "5")
    everything = score_pooled(kind, answers, golds, labels)
    assert set(everything) == pooled
    # Two users with equally many queries: the mean over users is the pooled value, exactly.
    users = [score_user(kind, answers[:2], golds[:2]), score_user(kind, answers[2:], golds[2:])]
    for user in users:
        assert set(user) == own
    for name in own:
        assert sum(user[name] for user in users) / 2 == pytest.approx(everything[name])


@pytest.mark.parametrize("answers", [[], ["1", "2"]])
def test_nothing_to_judge_is_refused(answers: list[str]) -> None:
    with pytest.raises(ValueError, match="as many predictions as golds"):
        score_user("rating", answers, answers[:1])
    with pytest.raises(ValueError, match="as many predictions as golds"):
        score_pooled("rating", answers, answers[:1])


def test_classification_needs_labels() -> None:
    with pytest.raises(ValueError, match="labels"):
        score_pooled("classification", ["a"], ["a"])
