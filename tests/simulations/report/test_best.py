"""The best of several means, and that there is none among equals."""

import pytest

from simulations.report.statistics import best_of


@pytest.mark.parametrize(
    ("means", "highest", "lowest"),
    [((0.2, 0.5, 0.1), 0.5, 0.1), ((0.3,), 0.3, 0.3), ((0.0, 0.0), None, None), ((), None, None)],
)
def test_the_best_of_equals_is_none(
    means: tuple[float, ...], highest: float | None, lowest: float | None
) -> None:
    assert (best_of(means, True), best_of(means, False)) == (highest, lowest)
