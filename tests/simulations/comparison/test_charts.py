"""What the charts compute before they draw."""

import numpy as np
import pytest

from simulations.comparison.charts import together
from simulations.comparison.user_map import two_axes


def test_points_in_one_place_share_a_label_in_their_middle() -> None:
    labels = together([(0.0, 0.5), (5.0, 0.5), (0.4, 0.52), (0.0, 0.9)], width=1, height=0.1)
    assert {tuple(numbers): place for place, numbers in labels} == {
        (1, 3): (pytest.approx(0.2), 0.52),
        (2,): (5.0, 0.5),
        (4,): (0.0, 0.9),
    }


def test_the_map_keeps_distances_of_a_flat_cloud() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(9, 2))
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    found = two_axes(flat @ turned + 3)

    def distances(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    np.testing.assert_allclose(distances(found), distances(flat), atol=1e-9)


def test_people_on_a_line_have_a_flat_map() -> None:
    assert two_axes(np.array([[0.0], [2.0], [1.0]])).shape == (3, 2)
