"""MTA as released, bug for bug, against numbers worked by hand."""

import pytest
import torch

from shared.lora.lora import Factors, Lora
from simulations.baselines.mta import MTA, STACK_RANK, merged_by_factors, two_nearest
from simulations.comparison.scene import Scene


def lora(a: list[list[float]], b: list[list[float]]) -> Lora:
    return Lora({"map": Factors(torch.tensor(a), torch.tensor(b))})


def test_alpha_is_the_nearer_anchors_share_of_two_cosines() -> None:
    anchors = torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    first, second, alpha = two_nearest(torch.tensor([1.0, 0.0]), anchors)
    assert (first, second) == (1, 2)
    assert alpha == pytest.approx(1 / (1 + 0.5**0.5))


def test_factors_are_averaged_apart_and_the_nearer_gets_the_smaller_weight() -> None:
    near, far = lora([[1.0], [0.0]], [[2.0, 0.0]]), lora([[0.0], [1.0]], [[0.0, 4.0]])
    merged = merged_by_factors(near, far, alpha=0.75).factors["map"]
    # A = 0.25 A_near + 0.75 A_far, and B alike: the nearer anchor counts a quarter.
    assert merged.a.tolist() == [[0.25], [0.75]]
    assert merged.b.tolist() == [[0.5, 3.0]]
    # Rows of a @ b: cross terms stand where the exact merge has zeros.
    exact = 0.25 * near.factors["map"].delta().T + 0.75 * far.factors["map"].delta().T
    assert exact.tolist() == [[0.5, 0.0], [0.0, 3.0]]
    assert (merged.a @ merged.b).tolist() == [[0.125, 0.75], [0.375, 2.25]]


def test_no_population_lora_and_a_stack_of_rank_four(scene: Scene) -> None:
    answered = MTA.answer(scene)
    numbers = sum(m.in_features + m.out_features for m in scene.base.maps)
    assert {o["private_bytes"] for o in answered.outcomes} == {4 * STACK_RANK * numbers}
    assert all(o["tokens"] > 0 and o["curve"] for o in answered.outcomes)
    # The bank over the bare base is not the release's, which is over the population LoRA.
    bare = scene.finished("bare-bank", dict)["rows"]
    own = torch.cat(
        [torch.cat([f.a.flatten(), f.b.flatten()]) for f in scene.release.bank[0].factors.values()]
    )
    assert bare.shape == (len(scene.release.bank), len(own))
    assert not torch.allclose(bare[0], own)
