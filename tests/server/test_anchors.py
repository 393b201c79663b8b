"""Anchors: nearest to their cluster's centre, with enough history."""

import math

import pytest
import torch
from torch import Tensor

from server.anchors import cluster_centres, select_anchors
from shared.errors import MesofedError

# Two clusters of three. The centres are (0, 0) and (10, 0): users 1 and 4 lie nearest to them,
# then users 0 and 3 (distance 1), then users 2 and 5 (distance 1.5).
TWO = torch.tensor(
    [[-1.0, 0.0], [-0.5, 0.0], [1.5, 0.0], [9.0, 0.0], [9.5, 0.0], [11.5, 0.0]], dtype=torch.float32
)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((5, 5, 5, 5, 5, 5), (1, 4)),
        ((5, 3, 5, 5, 5, 5), (0, 4)),  # the nearest has too little: the next one
        ((3, 3, 99, 5, 5, 5), (2, 4)),
        ((3, 3, 3, 5, 5, 5), (4,)),  # a cluster without a candidate has no anchor
        ((4, 4, 4, 4, 4, 99), (1, 4)),  # exactly enough is enough; the longest history is no merit
    ],
)
def test_the_nearest_with_enough_history_is_chosen(
    lengths: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert select_anchors(TWO, lengths, 2, 4, seed=1) == expected


def test_without_any_candidate_the_error_says_what_to_lower() -> None:
    with pytest.raises(MesofedError, match=r"at least 9 .*longest .* 8\. Lower bank\.min_history"):
        select_anchors(TWO, (1, 2, 3, 4, 5, 8), 2, 9, seed=1)


def test_more_anchors_than_users_makes_everyone_an_anchor() -> None:
    assert select_anchors(TWO, [5] * 6, 50, 1, seed=0) == (0, 1, 2, 3, 4, 5)


def test_the_weight_of_users_moves_the_centre_of_their_cluster() -> None:
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    # Unweighted, the centre is 4/3: user 1. With weight 10 on user 2 it is (1 + 30) / 12 = 2.58.
    assert select_anchors(places, (5, 5, 5), 1, 1, seed=0) == (1,)
    assert select_anchors(places, (5, 5, 5), 1, 1, seed=0, user_weights=(1, 1, 10)) == (2,)


def test_users_at_the_same_place_leave_no_empty_cluster() -> None:
    places = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    anchors = select_anchors(places, (5, 5, 5, 5), 3, 1, seed=0)
    assert sorted(places[i].tolist() for i in anchors) == [[0.0, 1.0], [1.0, 0.0]]


def test_cluster_centres_are_unit_vectors_in_the_middle_of_their_users() -> None:
    def at(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    places = torch.tensor([at(d) for d in (0, 10, 20, 90, 100, 110)])
    centres, cluster = cluster_centres(places, 2, seed=3)
    first = int(cluster[0])
    assert cluster.tolist() == [first] * 3 + [1 - first] * 3
    expected: dict[int, Tensor] = {first: torch.tensor(at(10)), 1 - first: torch.tensor(at(100))}
    for index, centre in expected.items():
        torch.testing.assert_close(centres[index], centre, atol=1e-5, rtol=0)


def test_cluster_centres_of_fewer_places_than_clusters_are_all_used() -> None:
    places = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    centres, cluster = cluster_centres(places, 3, seed=0)
    assert set(cluster.tolist()) == set(range(len(centres)))
