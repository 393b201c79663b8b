"""Budgets of DP-SGD against closed forms and published values."""

import math

import pytest
from scipy.optimize import brentq
from scipy.special import comb, log_ndtr
from scipy.stats import norm

from server.training_budget import epsilon_of, plan_budget
from shared.errors import MesofedError

DELTA = 1e-5


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """Steps over all samples are one Gaussian mechanism: Balle and Wang (2018), theorem 8."""
    mu = math.sqrt(steps) / noise

    def gap(epsilon: float) -> float:
        tail = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - tail - delta)

    return float(brentq(gap, 0.0, 200.0))


def renyi_epsilon(rate: float, noise: float, steps: int, delta: float) -> float:
    """Upper bound by Renyi divergences of whole order: Mironov, Talwar and Zhang (2019)."""
    best = math.inf
    for order in range(2, 200):
        terms = [
            math.log(comb(order, k, exact=True))
            + k * math.log(rate)
            + (order - k) * math.log1p(-rate)
            + (k * k - k) / (2 * noise**2)
            for k in range(order + 1)
        ]
        largest = max(terms)
        moment = largest + math.log(sum(math.exp(term - largest) for term in terms))
        best = min(best, (steps * moment + math.log(1 / delta)) / (order - 1))
    return best


@pytest.mark.parametrize(("steps", "noise"), [(1, 3.0), (4, 1.2), (30, 8.0)])
def test_full_batches_are_one_gaussian_mechanism(steps: int, noise: float) -> None:
    expected = gaussian_epsilon(noise, steps, DELTA)
    assert epsilon_of(1.0, steps, noise, DELTA) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("rate", "steps", "noise"), [(0.3, 12, 1.0), (0.05, 200, 1.5)])
def test_poisson_batches_cost_less_than_full_ones_and_than_the_renyi_bound(
    rate: float, steps: int, noise: float
) -> None:
    came = epsilon_of(rate, steps, noise, DELTA)
    bound = renyi_epsilon(rate, noise, steps, DELTA)
    assert 0.7 * bound < came < bound
    assert came < gaussian_epsilon(noise, steps, DELTA)


def test_the_published_example_is_met() -> None:
    # Abadi et al. (2016), section 3.2: q = 0.01, sigma = 4, 10,000 steps give epsilon 1.26 by
    # moments; exact accounting gives less, but not by half.
    assert 0.8 < epsilon_of(0.01, 10_000, 4.0, DELTA) < 1.26


def test_noise_is_calibrated_to_the_budget() -> None:
    budget = plan_budget(18, 8, 2, 1, epsilon=2.0, delta=DELTA)
    assert budget.sampling_rate == 8 / 18
    assert budget.steps == 2 * 3
    assert 1.98 < budget.epsilon <= 2.0
    assert budget.epsilon == epsilon_of(8 / 18, 6, budget.noise_multiplier, DELTA)
    assert epsilon_of(8 / 18, 6, 0.99 * budget.noise_multiplier, DELTA) > 2.0
    full = plan_budget(5, 8, 2, 1, epsilon=2.0, delta=DELTA)
    assert (full.sampling_rate, full.steps) == (1.0, 2)
    assert gaussian_epsilon(full.noise_multiplier, 2, DELTA) == pytest.approx(2.0, rel=5e-3)


def test_epsilon_grows_with_epochs_and_with_releases() -> None:
    spent = [epsilon_of(0.4, 3 * epochs, 2.0, DELTA) for epochs in (1, 2, 4)]
    assert spent[0] < spent[1] < spent[2]
    one, three = (plan_budget(18, 8, 2, r, epsilon=2.0, delta=DELTA) for r in (1, 3))
    assert three.noise_multiplier > 1.5 * one.noise_multiplier
    assert three.epsilon <= 2.0
    assert epsilon_of(8 / 18, 6, three.noise_multiplier, DELTA) < one.epsilon


def test_a_budget_that_leaves_nothing_to_learn_is_refused() -> None:
    with pytest.raises(MesofedError, match=r"Raise bank\.dp_epsilon"):
        plan_budget(9, 8, 2, 1, epsilon=1e-4, delta=1e-9)
