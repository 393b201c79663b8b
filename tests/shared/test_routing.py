"""Routing and retrieval: weights over experts and anchors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from shared.routing import Router, normalised_entropy, retrieve


def unit(seed: int, *shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_router_is_a_softmax_of_a_linear_map() -> None:
    router = Router(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0]))
    first, second = router(torch.tensor([1.0, 0.5])).tolist()
    assert first == pytest.approx(math.exp(2.0) / (math.exp(2.0) + math.exp(1.5)))
    assert first + second == pytest.approx(1.0)
    assert router(torch.zeros(3, 2)).shape == (3, 2)


def test_retrieval_by_hand() -> None:
    anchors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    found = retrieve(torch.tensor([1.0, 0.0]), anchors, top_k=2, temperature=0.5)
    assert found.anchors == (1, 2)
    assert found.similarities == pytest.approx((1.0, 0.6))
    share = 1 / (1 + math.exp(-0.4 / 0.5))
    assert found.weights == pytest.approx((share, 1 - share))


@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.integers(1, 15),
    st.floats(1e-6, 10.0),
)
def test_the_nearer_anchor_gets_the_larger_weight(
    seed: int, count: int, top_k: int, temperature: float
) -> None:
    place, anchors = unit(seed, 5), unit(seed + 1, count, 5)
    found = retrieve(place, anchors, top_k, temperature)
    assert len(found.anchors) == len(set(found.anchors)) == min(top_k, count)
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-5)
    assert list(found.similarities) == sorted(found.similarities, reverse=True)
    assert list(found.weights) == sorted(found.weights, reverse=True)
    # Nobody who is left out is nearer than those who were found.
    cosines = [float(anchor.dot(place)) for anchor in anchors]
    left_out = [cosines[i] for i in range(count) if i not in found.anchors]
    assert max(left_out, default=-2.0) <= min(found.similarities) + 1e-6
    for index, similarity in zip(found.anchors, found.similarities, strict=True):
        assert similarity == pytest.approx(cosines[index], abs=1e-5)


def test_a_lower_temperature_is_closer_to_the_nearest_anchor_alone() -> None:
    place, anchors = unit(1, 5), unit(2, 6, 5)
    first = [retrieve(place, anchors, 3, t).weights[0] for t in (10.0, 1.0, 0.1, 0.001)]
    assert first == sorted(first)
    assert first[0] == pytest.approx(1 / 3, abs=0.05)
    assert first[-1] == pytest.approx(1.0, abs=1e-3)


def test_entropy_by_hand() -> None:
    weights = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    assert normalised_entropy(weights).tolist() == pytest.approx([1.0, 0.0, 0.5])


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=9))
def test_entropy_is_a_share(logits: list[float]) -> None:
    entropy = normalised_entropy(torch.softmax(torch.tensor(logits), dim=0)).item()
    assert 0.0 <= entropy <= 1.0


@pytest.mark.parametrize("count", range(1, 40))
def test_entropy_of_equal_weights_is_at_most_one(count: int) -> None:
    entropy = normalised_entropy(torch.full((count,), 1 / count)).item()
    assert entropy <= 1.0
    assert entropy == pytest.approx(float(count > 1))
