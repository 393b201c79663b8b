"""Intervals against closed forms; gains against differences by hand."""

import math

import numpy as np
import pytest

from simulations.report.statistics import bootstrap_mean, paired_gain


def test_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    estimate = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(400)  # the bootstrap's own limit for many users
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.01)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.01)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        estimate = bootstrap_mean(rng.normal(0.0, 1.0, size=40))
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0 <= estimate.high
    assert 50 <= hits <= 60  # 0.95 * 60 = 57, less than 50 has probability below 0.001


def test_equal_seeds_give_equal_intervals_and_one_user_has_none() -> None:
    assert bootstrap_mean([0.1, 0.4, 0.9]) == bootstrap_mean([0.1, 0.4, 0.9])
    alone = bootstrap_mean([0.5])
    assert (alone.mean, alone.low, alone.high) == (0.5, None, None)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_wrong_shapes_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one value per user"):
        bootstrap_mean(values)


def test_gain_pairs_users_and_turns_the_sign() -> None:
    ours = {"a": 1.0, "b": 2.0, "only-ours": 50.0}
    theirs = {"b": 5.0, "a": 3.0, "only-theirs": 90.0}
    lower = paired_gain(ours, theirs, higher_is_better=False)
    higher = paired_gain(ours, theirs, higher_is_better=True)
    assert lower is not None
    assert higher is not None
    assert (lower.method, lower.reference, lower.estimate.users) == (1.5, 4.0, 2)
    assert lower.estimate.mean == 2.5
    assert higher.estimate.mean == -2.5
    assert paired_gain({"a": 1.0}, {"b": 1.0}, True) is None


def test_pairing_sees_what_levels_hide() -> None:
    levels = np.random.default_rng(1).normal(0, 1.0, size=30)
    reference = {str(n): float(level) for n, level in enumerate(levels)}
    method = {user: value + 0.1 + 0.01 * (int(user) % 3) for user, value in reference.items()}
    gain = paired_gain(method, reference, True)
    assert gain is not None
    assert gain.clear
    ours, theirs = bootstrap_mean(list(method.values())), bootstrap_mean(levels)
    assert ours.low is not None
    assert theirs.high is not None
    assert ours.low < theirs.high
