"""Who is whose neighbour, and how likely a device is to lose too many of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from shared.secure_aggregation.graph import (
    MOST_DEVICES,
    MOST_NEIGHBOURS,
    neighbours_of,
    threshold_of,
)


@given(st.integers(3, 400), st.data())
def test_neighbours_are_mutual_and_as_many_for_everyone(devices: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, devices - 1))
    neighbours = neighbours_of(index, devices)
    assert len(neighbours) == min(devices - 1, MOST_NEIGHBOURS)
    assert list(neighbours) == sorted(set(neighbours) - {index})
    assert all(0 <= other < devices for other in neighbours)
    assert all(index in neighbours_of(other, devices) for other in neighbours)


def test_a_small_circle_by_hand() -> None:
    assert neighbours_of(1, 4) == (0, 2, 3)
    assert neighbours_of(0, 101) == tuple(range(1, 101))
    assert neighbours_of(0, 150) == (*range(1, 51), *range(100, 150))


@given(st.integers(3, MOST_DEVICES))
def test_opening_both_secrets_of_a_device_takes_a_fifth_of_its_neighbours(devices: int) -> None:
    neighbours, threshold = min(devices - 1, MOST_NEIGHBOURS), threshold_of(devices)
    assert threshold <= neighbours
    # Honest neighbours open one of the two; whoever wants both needs so many that open both.
    assert 2 * threshold - neighbours > neighbours / 5 - 1e-9


@pytest.mark.parametrize(
    ("devices", "gone", "lost", "told"), [(1_000, 0.2, 1e-3, 1e-5), (10_000, 0.1, 1e-9, 1e-3)]
)
def test_a_large_round_is_hardly_ever_lost_nor_a_device_betrayed(
    devices: int, gone: float, lost: float, told: float
) -> None:
    """When places are shuffled: of any device, some gone, or a third the server's accomplices.

    The first loses the sum, the second opens one device's numbers.
    """
    threshold, others = threshold_of(devices), devices - 1
    staying = hypergeom(others, others - int(devices * gone), MOST_NEIGHBOURS)
    assert devices * staying.cdf(threshold - 1) < lost
    accomplices = hypergeom(others, devices // 3, MOST_NEIGHBOURS)
    assert devices * accomplices.sf(threshold - 1) < told
