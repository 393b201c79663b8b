"""The test behind every claim: against p-values by hand, SciPy, and rates under no effect."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, permutation_test, wilcoxon

from simulations.report.statistics import SIGNIFICANCE, holm, paired_gain, sign_flip_test


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 1, 1, 1, 1, 1], 2 / 64),
        ([-1, -1, -1, -1, -1, -1], 2 / 64),
        ([1, 1, 1, 1, 1], 2 / 32),
        ([1, 1, 1, 1, 1, -1], 14 / 64),  # sums of 4 or 6, either way: 2 * (6 + 1)
        ([3, 2, -1], 4 / 8),  # sums 6, 4, 2, 0 and their opposites: 6 and 4 reach 4
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0, 0, 0], 2 / 64),
        ([1, -1], 1),
        ([0.5], 1),
        ([0, 0, 0, 0, 0, 0, 0, 0], 1),
        ([], 1),
    ],
)
def test_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_test(differences) == pytest.approx(p)


def test_sums_that_differ_by_rounding_alone_are_equal() -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point; 4 of 8 sums are zero on paper.
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1
    # One user's gain is nothing but the order in which a mean was taken.
    assert sign_flip_test([1, 1, 1, 1, 1, 0.3 - (0.1 + 0.2)]) == 2 / 32


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=7))
def test_enumeration_agrees_with_scipy(differences: list[int]) -> None:
    ours = np.array(differences, dtype=float)
    truth = permutation_test(
        (ours, np.zeros_like(ours)),
        lambda a, b: np.sum(a - b),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert sign_flip_test(ours) == pytest.approx(truth.pvalue)


def enumerated(differences: np.ndarray) -> float:
    signs = np.array(list(product((1, -1), repeat=len(differences))))
    least = abs(differences.sum()) - 1e-9
    return float(np.mean(np.abs(signs @ differences) >= least))


@pytest.mark.parametrize("users", [13, 14, 16])
@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
def test_counted_flips_agree_with_enumeration(users: int, mean: float) -> None:
    # Beyond 12 users that differ flips are counted, not gone through; here they are.
    rng = np.random.default_rng(users)
    differences = rng.normal(mean, 1.0, size=users)
    # Numbers without ties may change places with their neighbours on the grid.
    assert sign_flip_test(differences) == pytest.approx(enumerated(differences), rel=0.01)
    # Scores of four queries have many ties, and the grid keeps every one.
    quarters = rng.integers(-2, 4, size=users) / 4
    assert sign_flip_test(quarters) == pytest.approx(enumerated(quarters), rel=1e-12)


@pytest.mark.parametrize("better", [31, 45, 59, 60])
def test_equal_differences_are_a_sign_test(better: int) -> None:
    differences = np.where(np.arange(60) < better, 0.05, -0.05)
    assert sign_flip_test(differences) == pytest.approx(binomtest(better, 60).pvalue, rel=1e-9)


@given(st.lists(st.booleans(), min_size=13, max_size=50))
def test_ranks_are_the_exact_signed_rank_test(better: list[bool]) -> None:
    differences = np.arange(1, len(better) + 1) * np.where(better, 1, -1) / 7
    truth = wilcoxon(differences, method="exact").pvalue
    assert sign_flip_test(differences) == pytest.approx(truth, rel=1e-9)


def test_a_clear_gain_stays_clear_among_any_number_of_comparisons() -> None:
    # All of 40 users gain: one in 2**39 flips, where 10,000 drawn ones could tell no less than
    # 1 in 10,001, which no table of more than 500 comparisons calls clear.
    gain = sign_flip_test(np.linspace(0.5, 1.0, 40))
    assert gain == pytest.approx(2 / 2**40)
    others = [sign_flip_test(np.resize([1.0, -1.0], 40 - i % 3)) for i in range(600)]
    assert holm([gain, *others])[0] == pytest.approx(601 * gain)
    assert sum(p < SIGNIFICANCE for p in holm([gain, *others])) == 1


def test_a_crowd_of_users_is_counted_too() -> None:
    differences = np.random.default_rng(3).normal(0.1, 1.0, size=900)
    spread = np.linalg.norm(differences)
    z = abs(differences.sum()) / spread
    # Edgeworth: signs have no skewness, and a fourth cumulant of -2.
    fourth = -2 * np.sum(differences**4) / spread**4
    tail = norm.sf(z) + norm.pdf(z) * fourth / 24 * (z**3 - 3 * z)
    assert sign_flip_test(differences) == pytest.approx(2 * tail, rel=0.01)
    # 2 / 2**2000 is no number of a computer's; a p-value is never zero all the same.
    assert 0 < sign_flip_test(np.ones(2000)) < 1e-300


def test_of_all_signs_of_six_users_no_more_than_five_percent_are_called_clear() -> None:
    sizes = np.array([0.1, 0.25, 0.3, 0.7, 1.3, 2.9])
    p_values = [sign_flip_test(sizes * signs) for signs in product((1, -1), repeat=6)]
    assert sum(p < SIGNIFICANCE for p in p_values) == 2


@pytest.mark.parametrize("users", [6, 8, 12, 20])
def test_false_alarms_stay_below_five_percent(users: int) -> None:
    rng = np.random.default_rng(users)
    runs = 300
    alarms = 0
    for _ in range(runs):
        # Accuracies over four queries that differ by chance alone.
        ours, theirs = rng.binomial(4, 0.6, size=(2, users)) / 4
        alarms += sign_flip_test(ours - theirs) < SIGNIFICANCE
    # 5 % of 300 is 15, and more than 25 has probability below 0.005.
    assert alarms <= 25


def test_false_alarms_of_a_whole_table_stay_below_five_percent() -> None:
    rng = np.random.default_rng(0)
    runs = 200
    alarms = 0
    for _ in range(runs):
        reference = rng.normal(size=10)
        table = [sign_flip_test(rng.normal(size=10) - reference) for _ in range(15)]
        alarms += min(holm(table)) < SIGNIFICANCE
    assert alarms <= 18  # 5 % of 200 is 10, and more than 18 has probability below 0.01


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 lifted to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.7, 0.8]) == [1, 1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_five_users_are_too_few_for_a_claim_six_are_enough() -> None:
    for users, clear in ((5, False), (6, True)):
        method = {str(user): 1.0 + user / 10 for user in range(users)}
        gain = paired_gain(method, dict.fromkeys(method, 0.0), True)
        assert gain is not None
        assert gain.clear == clear
        assert gain.p == gain.adjusted_p == 2 / 2**users


def test_an_interval_without_zero_is_not_enough() -> None:
    method = {str(user): value for user, value in enumerate((0.0, 0.5, 0.5, 0.5, 0.75, 0.0))}
    gain = paired_gain(method, dict.fromkeys(method, 0.0), True)
    assert gain is not None
    assert gain.estimate.low is not None
    assert gain.estimate.low > 0
    assert gain.p == 2 / 16
    assert not gain.clear


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one value per user"):
        sign_flip_test([[1.0, 2.0]])
