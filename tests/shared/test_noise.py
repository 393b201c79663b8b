"""Discrete Gaussian noise is what its formula says, and nothing else decides it."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, norm

from shared.noise import discrete_gaussian, simulated_randomness, system_randomness


@pytest.mark.parametrize("variance", [1, 2, 7, 40])
def test_every_value_comes_as_often_as_the_formula_says(variance: int) -> None:
    generator, draws = random.Random(5), 20_000
    counts = Counter(discrete_gaussian(variance, generator) for _ in range(draws))
    reach = math.ceil(3 * math.sqrt(variance))
    weights = {x: math.exp(-(x**2) / (2 * variance)) for x in range(-20 * reach, 20 * reach + 1)}
    total = math.fsum(weights.values())
    expected = [draws * weights[x] / total for x in range(-reach, reach + 1)]
    observed = [counts[x] for x in range(-reach, reach + 1)]
    expected.append(draws - math.fsum(expected))
    observed.append(draws - sum(observed))
    assert chisquare(observed, expected).pvalue > 1e-4


def test_wide_noise_has_the_spread_and_the_tails_of_the_bell_curve() -> None:
    variance, draws, generator = 3_000_000_017, 20_000, random.Random(6)
    values = [discrete_gaussian(variance, generator) / math.sqrt(variance) for _ in range(draws)]
    assert abs(math.fsum(values) / draws) < 5 / math.sqrt(draws)
    assert abs(math.fsum(v * v for v in values) / draws - 1) < 5 * math.sqrt(2 / draws)
    for threshold in (1.0, 2.0, 3.0):
        share = norm.sf(threshold)
        beyond = sum(v > threshold for v in values)
        assert abs(beyond - draws * share) < 5 * math.sqrt(draws * share)


@given(st.integers(-5, 0))
def test_noise_without_spread_is_refused(variance: int) -> None:
    with pytest.raises(ValueError, match="from 1"):
        discrete_gaussian(variance, random.Random(1))


def test_a_device_draws_from_the_system_and_a_simulation_from_its_seed() -> None:
    assert isinstance(system_randomness(1), random.SystemRandom)

    def drawn(seed: int, device: str, release: int) -> list[int]:
        generator = simulated_randomness(seed, device)(release)
        return [discrete_gaussian(10**8, generator) for _ in range(5)]

    assert drawn(7, "0001", 1) == drawn(7, "0001", 1)
    others = [drawn(8, "0001", 1), drawn(7, "0002", 1), drawn(7, "0001", 2)]
    assert len({tuple(values) for values in (drawn(7, "0001", 1), *others)}) == 4
