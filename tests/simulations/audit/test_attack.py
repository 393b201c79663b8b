"""The area is scikit-learn's, and its interval is over people."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from simulations.audit.attack import Scored, area, judge

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_the_area_is_that_of_the_roc_curve(members: list[float], others: list[float]) -> None:
    truth = [1] * len(members) + [0] * len(others)
    expected = roc_auc_score(truth, members + others)
    assert area(np.array(members), np.array(others)) == pytest.approx(expected)


def people(shift: float, count: int) -> list[Scored]:
    rng = np.random.default_rng(3)
    return [Scored(rng.normal(shift, 1, 5), rng.normal(0, 1, 5)) for _ in range(count)]


def test_an_attack_that_works_is_above_chance_and_one_that_does_not_is_not() -> None:
    works, guesses = (judge("it", "q?", "k", people(s, 20), seed=1) for s in (1.5, 0.0))
    assert works.above_chance
    assert 0.8 < works.low < works.auc < works.high < 0.95
    assert not guesses.above_chance
    assert guesses.low < 0.5 < guesses.high
    assert (works.people, works.members, works.others) == (20, 100, 100)
    assert judge("it", "q?", "k", people(1.5, 20), seed=1) == works


def test_the_interval_grows_when_people_and_not_items_differ() -> None:
    rng = np.random.default_rng(4)
    # The attack works fully on half of the people and not at all on the others.
    mixed = [Scored(rng.normal(4 * (i % 2), 1, 40), rng.normal(0, 1, 40)) for i in range(8)]
    alike = [Scored(rng.normal(1, 1, 40), rng.normal(0, 1, 40)) for _ in range(8)]
    one, other = (judge("it", "q?", "k", group, seed=1) for group in (mixed, alike))
    assert abs(one.auc - other.auc) < 0.1
    assert one.high - one.low > 2 * (other.high - other.low)
