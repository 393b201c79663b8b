"""Statistics as whole numbers: how far two people can be apart, and the way back."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol import ReplyError, RouterStatistics, as_sent
from shared.statistic_vector import (
    SQUARED_SENSITIVITY,
    UNITS,
    bound_influence,
    clip,
    decode_mean,
    encode,
    noise_bound,
    plausible,
    project_to_simplex,
    within_bounds,
)

STATISTICS = RouterStatistics(3, (0.7, 0.3), (1.0, 0.0, 0.0), 0.91, 0.8813)


def shares(size: int) -> st.SearchStrategy[tuple[float, ...]]:
    corners = st.integers(0, size - 1).map(lambda i: tuple(float(i == j) for j in range(size)))
    parts = st.lists(st.floats(0, 1), min_size=size, max_size=size).filter(lambda p: sum(p) > 1e-6)
    return st.one_of(corners, parts.map(lambda p: tuple(x / math.fsum(p) for x in p)))


def people(experts: int, anchors: int) -> st.SearchStrategy[RouterStatistics]:
    return st.builds(
        RouterStatistics,
        st.just(1),
        shares(experts),
        shares(anchors),
        st.floats(-1, 1),
        st.floats(0, 1),
    )


def test_a_vector_by_hand() -> None:
    assert encode(STATISTICS) == [7000, 3000, 10000, 0, 0, 4550, 4406]


@given(st.data(), st.integers(1, 16), st.integers(1, 64))
def test_no_two_people_are_farther_apart_than_the_sensitivity(
    data: st.DataObject, experts: int, anchors: int
) -> None:
    x, y = (encode(data.draw(people(experts, anchors))) for _ in range(2))
    assert sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) <= SQUARED_SENSITIVITY
    assert within_bounds(x, experts, anchors)
    assert clip(x, experts, anchors, 0) == x


def test_two_people_can_be_as_far_apart_as_that() -> None:
    one = RouterStatistics(1, (1.0, 0.0), (0.0, 1.0), 1.0, 0.0)
    other = RouterStatistics(1, (0.0, 1.0), (1.0, 0.0), -1.0, 1.0)
    apart = sum((a - b) ** 2 for a, b in zip(encode(one), encode(other), strict=True))
    assert apart == SQUARED_SENSITIVITY


def test_statistics_out_of_bounds_are_no_vector() -> None:
    for wrong in (
        replace(STATISTICS, expert_weights=(1.2, -0.2)),
        replace(STATISTICS, best_similarity=math.nan),
        replace(STATISTICS, entropy=7.0),
    ):
        with pytest.raises(ReplyError):
            encode(wrong)


def test_bounds_reach_as_far_as_noise_may() -> None:
    vector = encode(STATISTICS)
    for place, edge in ((0, UNITS), (5, UNITS // 2), (6, UNITS // 2)):
        assert within_bounds([*vector[:place], edge + 9, *vector[place + 1 :]], 2, 3, 9)
        assert not within_bounds([*vector[:place], edge + 10, *vector[place + 1 :]], 2, 3, 9)
    for place, edge in ((0, 0), (5, -UNITS // 2), (6, 0)):
        assert within_bounds([*vector[:place], edge - 9, *vector[place + 1 :]], 2, 3, 9)
        assert not within_bounds([*vector[:place], edge - 10, *vector[place + 1 :]], 2, 3, 9)
    assert not within_bounds(vector, 3, 3, 9)
    assert clip([10**9, -(10**9), 0, 0, 0, -(10**9), 10**9], 2, 3, 9) == [
        *(UNITS + 9, -9, 0, 0, 0, -UNITS // 2 - 9, UNITS // 2 + 9)
    ]
    assert noise_bound(100) == 8 * 11


def test_one_device_s_noise_may_move_its_sums_as_far_as_noise_goes() -> None:
    """Noise of variance 100 is cut at 88: the sum of two numbers at 8 * 15, of three at 8 * 18."""
    vector = encode(STATISTICS)
    assert plausible(vector, 1, 2, 100)
    for group, cut in ((0, 120), (2, 144)):
        half = cut // 2
        moved = list(vector)
        moved[group], moved[group + 1] = moved[group] + half, moved[group + 1] + half
        assert plausible(moved, 1, 2, 100)
        moved[group] += 1
        assert not plausible(moved, 1, 2, 100)


def test_a_number_counts_as_if_its_noise_had_been_at_most_three_standard_deviations() -> None:
    # Variance 100: three times eleven.
    assert bound_influence([10_033, -33, 10_033, 0, 0, 5_033, -33], 2, 100) == [
        *(10_033, -33, 10_033, 0, 0, 5_033, -33)
    ]
    assert bound_influence([10_034, -34, 9_999, 0, 0, -5_034, 5_034], 2, 100) == [
        *(10_033, -33, 9_999, 0, 0, -5_033, 5_033)
    ]


def test_what_counts_of_noised_numbers_is_all_but_right_on_average() -> None:
    """At an end of the range and with much noise, where cutting noise shifts a mean most."""
    deviation, rest = 30_000, encode(STATISTICS)[1:]
    total = weight = 0.0
    for noise in range(-6 * deviation, 6 * deviation + 1, 100):
        density = math.exp(-((noise / deviation) ** 2) / 2)
        counted = bound_influence([UNITS + noise, *rest], 2, deviation**2)[0]
        total, weight = total + density * (counted - UNITS), weight + density
    assert -0.0004 < total / weight / deviation < 0


@given(st.data(), st.integers(1, 5))
def test_the_mean_of_vectors_is_the_mean_of_the_statistics(
    data: st.DataObject, devices: int
) -> None:
    everyone = [as_sent(data.draw(people(3, 4))) for _ in range(devices)]
    total = [sum(column) for column in zip(*map(encode, everyone), strict=True)]
    mean = decode_mean(total, devices, 3)
    for name in ("expert_weights", "anchor_weights"):
        columns = zip(*(getattr(person, name) for person in everyone), strict=True)
        wanted = [math.fsum(column) / devices for column in columns]
        assert getattr(mean, name) == pytest.approx(wanted, abs=1e-9)
    wanted = math.fsum(person.best_similarity for person in everyone) / devices
    assert mean.best_similarity == pytest.approx(wanted, abs=1.01e-4)
    wanted = math.fsum(person.entropy for person in everyone) / devices
    assert mean.entropy == pytest.approx(wanted, abs=1.01e-4)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8), st.integers(0, 2**32))
def test_no_weights_are_nearer_than_the_projection(point: list[float], seed: int) -> None:
    nearest = project_to_simplex(point)
    assert min(nearest) >= 0
    assert math.fsum(nearest) == pytest.approx(1, abs=1e-9)
    generator = random.Random(seed)
    for _ in range(30):
        parts = [generator.expovariate(1) ** 3 for _ in point]
        other = [part / math.fsum(parts) for part in parts]
        assert math.dist(point, nearest) <= math.dist(point, other) + 1e-9


def test_weights_stay_where_they_are() -> None:
    assert project_to_simplex([0.5, 0.25, 0.25]) == pytest.approx((0.5, 0.25, 0.25))
    assert project_to_simplex([1.5, -0.5]) == (1.0, 0.0)
    assert project_to_simplex([0.9, 0.5]) == pytest.approx((0.7, 0.3))


def test_a_sum_that_no_honest_devices_make_is_told() -> None:
    """Ten devices, noise that is cut at 88: one liar who adds more than all could have is seen."""
    honest = [10 * value for value in encode(STATISTICS)]
    assert noise_bound(10 * 10) == 88
    assert plausible(honest, 10, 2, 10)
    for place, change in ((0, 2**40), (3, -500), (2, 500), (5, 10**6), (6, -(10**6))):
        assert not plausible(
            [*honest[:place], honest[place] + change, *honest[place + 1 :]], 10, 2, 10
        )
    # What it takes from one weight and gives to another stays within what a tenth of them may do.
    moved = [honest[0] - 5_000, honest[1] + 5_000, *honest[2:]]
    assert plausible(moved, 10, 2, 10)
    assert not plausible([honest[0] - 10**5, honest[1] + 10**5, *honest[2:]], 10, 2, 10)
