"""What noise costs, held against exact formulas and distributions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from shared.config import PrivacyConfig, load_config
from shared.errors import MesofedError
from shared.privacy import (
    LedgerEntry,
    calibrate,
    honest_devices,
    noise_variance,
    share_variance,
    spent,
    summed_multiplier,
    would_exceed,
)
from shared.statistic_vector import SQUARED_SENSITIVITY, noise_bound

DELTA = 1e-5


def entries(multiplier: float, count: int = 1) -> list[LedgerEntry]:
    return [LedgerEntry(k + 1, "local", multiplier, "2026-01-01") for k in range(count)]


def exact_delta(multiplier: float, epsilon: float) -> float:
    """Delta of the continuous Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    half = 1 / (2 * multiplier)
    return float(
        norm.cdf(half - epsilon * multiplier)
        - math.exp(epsilon) * norm.cdf(-half - epsilon * multiplier)
    )


def exact_epsilon(multiplier: float) -> float:
    low, high = 0.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(multiplier, middle) > DELTA else (low, middle)
    return high


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 2.5, 10.0, 60.0])
def test_the_accountant_is_above_the_exact_epsilon_and_not_far(multiplier: float) -> None:
    exact, accounted = exact_epsilon(multiplier), spent(entries(multiplier), DELTA)
    assert exact <= accounted <= 1.15 * exact


@pytest.mark.parametrize("rounds", [2, 9])
def test_rounds_cost_as_much_as_one_with_so_much_less_noise(rounds: int) -> None:
    together = spent(entries(4.0, rounds), DELTA)
    assert together == pytest.approx(spent(entries(4.0 / math.sqrt(rounds)), DELTA), rel=1e-9)
    assert together >= exact_epsilon(4.0 / math.sqrt(rounds))


def test_nothing_sent_is_nothing_spent() -> None:
    assert spent([], DELTA) == 0.0


@pytest.mark.parametrize(("epsilon", "rounds"), [(0.5, 1), (8.0, 1), (8.0, 5), (3.0, 20)])
def test_the_noise_fits_the_budget_to_the_last_round_and_no_further(
    epsilon: float, rounds: int
) -> None:
    multiplier = calibrate(epsilon, DELTA, rounds)
    assert 0.98 * epsilon < spent(entries(multiplier, rounds), DELTA) <= epsilon
    before = entries(multiplier, rounds - 1)
    assert not would_exceed(before, multiplier, epsilon, DELTA)
    assert would_exceed(before, 0.98 * multiplier, epsilon, DELTA)
    assert would_exceed(entries(multiplier, rounds), multiplier, epsilon, DELTA)


def hockey_stick(pmf: np.ndarray, shift: int, epsilon: float) -> float:
    """Delta at epsilon of a mechanism that adds noise of this distribution, exactly."""
    moved = np.zeros(len(pmf) + shift)
    moved[shift:] = pmf
    padded = np.zeros(len(pmf) + shift)
    padded[: len(pmf)] = pmf
    return float(np.maximum(padded - math.exp(epsilon) * moved, 0).sum())


@pytest.mark.parametrize(("variance", "shift"), [(3, 1), (40, 5), (2, 3)])
def test_discrete_noise_protects_as_the_accountant_says(variance: int, shift: int) -> None:
    reach = 60 * (math.isqrt(variance) + 1)
    x = np.arange(-reach, reach + 1)
    pmf = np.exp(-(x**2) / (2 * variance))
    pmf /= pmf.sum()
    epsilon = spent(entries(math.sqrt(variance) / shift), DELTA)
    assert hockey_stick(pmf, shift, epsilon) <= DELTA


@pytest.mark.parametrize(("variance", "shares", "shift"), [(3, 4, 4), (5, 10, 9)])
def test_a_sum_of_discrete_shares_protects_as_much(variance: int, shares: int, shift: int) -> None:
    """The bound that ``summed_multiplier`` uses, on sums whose distribution can be written down."""
    x = np.arange(-200, 201)
    pmf = np.exp(-(x**2) / (2 * variance))
    pmf /= pmf.sum()
    total = pmf
    for _ in range(shares - 1):
        total = np.convolve(total, pmf)
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))
    multiplier = 1 / (shift / math.sqrt(shares * variance) + tau)
    assert hockey_stick(total, shift, spent(entries(multiplier), DELTA)) <= DELTA
    loose = 10 * shares * math.exp(-(math.pi**2) * variance)
    assert loose >= tau  # what the module takes for tau, since k / (k + 1) >= 1 / 2


def test_shares_of_the_noise_make_up_the_noise() -> None:
    for multiplier, honest in ((0.4, 1), (1.3, 7), (25.0, 6_700)):
        share = share_variance(multiplier, honest)
        assert share * honest >= noise_variance(multiplier) >= multiplier**2 * SQUARED_SENSITIVITY
        assert share * honest <= noise_variance(multiplier) + honest
        assert multiplier <= summed_multiplier(share, honest, 82) < 1.001 * multiplier + 1e-6
    # So little noise that the sum is not smooth: the bound gives nothing for it.
    assert summed_multiplier(1, 10_000, 82) < 1 / math.sqrt(82)


@pytest.mark.parametrize(
    ("needed", "devices", "share", "honest"),
    [
        (8, 16, 0.67, 3),  # 5.28 of 16 are dishonest: 5, and all of them are among the 8
        (16, 16, 0.67, 11),
        (500, 1000, 0.67, 170),
        (33, 100, 0.67, 1),  # (1 - 0.67) * 100 is 32.99999...; taken for 33, which leaves none
        (3, 3, 1.0, 3),
        (3, 3, 0.5, 2),  # one and a half of three is one
        (3, 6, 0.5, 1),  # all three of the sum may be dishonest, but for oneself
        (3, 4, 0.5, 1),
    ],
)
def test_all_dishonest_devices_may_be_in_the_smallest_sum(
    needed: int, devices: int, share: float, honest: int
) -> None:
    assert honest_devices(needed, devices, share) == honest


def test_the_honest_noise_of_the_worst_sum_is_enough() -> None:
    """By counting every set of dishonest devices and every sum that can be opened of a few."""
    from itertools import combinations

    multiplier = 2.0
    for devices, needed, share in ((6, 4, 0.67), (6, 5, 0.5), (5, 3, 0.6), (7, 7, 0.7)):
        variance = share_variance(multiplier, honest_devices(needed, devices, share))
        everyone = range(devices)
        for bad in combinations(everyone, math.floor((1 - share) * devices + 1e-9)):
            for size in range(needed, devices + 1):
                for summed in combinations(everyone, size):
                    honest = len(set(summed) - set(bad))
                    # Whose privacy is at stake is honest and in the sum.
                    assert max(1, honest) * variance >= noise_variance(multiplier)


def test_with_few_needed_of_many_central_is_no_better_than_local() -> None:
    assert share_variance(2.0, honest_devices(3, 6, 0.5)) == noise_variance(2.0)


def test_noise_stays_below_the_modulus_for_ten_thousand_devices() -> None:
    most = calibrate(0.1, 1e-6, 50)
    assert 10_000 * (20_000 + noise_bound(noise_variance(most))) < 2**62


def test_an_entry_comes_back_from_json() -> None:
    entry = LedgerEntry(4, "central", 1.25, "2026-11-24T08:00:00+00:00")
    assert LedgerEntry.from_json(entry.to_json()) == entry


@pytest.mark.parametrize(
    "change",
    [
        {"release": "4"},
        {"release": True},
        {"mechanism": "none"},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": 1},
        {"timestamp": None},
        {"more": 1},
    ],
)
def test_a_damaged_entry_does_not_count_as_nothing_spent(change: dict[str, object]) -> None:
    data = {**entries(1.0)[0].to_json(), **change}
    with pytest.raises(MesofedError, match="privacy ledger"):
        LedgerEntry.from_json(data)
    for other in (None, [], "x"):
        with pytest.raises(MesofedError):
            LedgerEntry.from_json(other)


def test_an_impossible_entry_counts_as_too_much() -> None:
    assert would_exceed([replace(entries(1.0)[0], noise_multiplier=1e-9)], 50.0, 8.0, DELTA)


def test_a_budget_for_fewer_rounds_than_the_run_has_is_refused() -> None:
    with pytest.raises(MesofedError, match=r"privacy\.rounds=2 is fewer than rounds\.count=3"):
        load_config(None, ("privacy.mode=local", "privacy.rounds=2", "rounds.count=3"))
    assert load_config(None, ("privacy.rounds=5", "rounds.count=3")).budget_rounds == 5
    assert load_config(None, ("rounds.count=3",)).budget_rounds == 3
    for wrong in ("privacy.epsilon=0", "privacy.delta=0.5", "privacy.mode=some"):
        with pytest.raises(MesofedError):
            load_config(None, (wrong,))
    assert PrivacyConfig().mode == "off"
