"""Per-Pcs against the formulas of its paper, written out once more."""

import numpy as np
import pytest
import torch

from client.personalize import Personalised, parts_of
from shared.base_model import BaseModel
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.samples import collate
from simulations.baselines.gated_layer import adding
from simulations.baselines.per_pcs import (
    PER_PCS,
    assemble,
    assembled,
    gated_update,
    piece_scores,
)
from simulations.comparison.config import PiecesConfig
from simulations.comparison.scene import Scene


def normed(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_a_gate_scales_the_update_by_a_sigmoid_and_starts_at_a_half() -> None:
    factors = Factors(torch.randn(4, 2), torch.randn(2, 3))
    x, gate = torch.randn(1, 5, 4), torch.randn(4)
    dense = np.einsum("rti,ij,jo->rto", x.numpy(), factors.a.numpy(), factors.b.numpy())
    open_ = 1 / (1 + np.exp(-(x.numpy() @ gate.numpy())))
    np.testing.assert_allclose(
        gated_update(factors, gate)(x), open_[..., None] * dense, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        gated_update(factors, torch.zeros(4))(x), 0.5 * dense, rtol=1e-4, atol=1e-5
    )


def test_scores_are_mean_products_of_layer_norms_over_root_width() -> None:
    x, gates = torch.randn(7, 6), torch.randn(3, 6)
    by_hand = (normed(x.numpy()) @ normed(gates.numpy()).T).mean(0) / 6**0.5
    np.testing.assert_allclose(piece_scores(x, gates), by_hand, rtol=1e-4, atol=1e-5)


def test_the_best_pieces_are_mixed_by_factors() -> None:
    pieces = [Factors(torch.full((2, 1), float(i)), torch.full((1, 2), 1.0 + i)) for i in range(4)]
    scores = torch.tensor([0.0, 1.0, 3.0, 2.0])
    found = assembled(pieces, scores, PiecesConfig(top_k=3))
    e = np.exp([3.0, 2.0, 1.0])
    w = e / e.sum()
    np.testing.assert_allclose(found.a, np.full((2, 1), w @ [2, 3, 1]), rtol=1e-5)
    np.testing.assert_allclose(found.b, np.full((1, 2), w @ [3, 4, 2]), rtol=1e-5)


def test_maps_are_assembled_in_forward_order_each_over_those_before(scene: Scene) -> None:
    base: BaseModel = scene.base
    release, config = scene.release, PiecesConfig(top_k=2)
    generator = torch.Generator().manual_seed(0)
    gates = {
        m.name: torch.randn(len(release.bank), m.in_features, generator=generator)
        for m in base.maps
    }
    # Larger pieces, so that what is assembled below does change what is scored above.
    bank = tuple(
        Lora({name: Factors(5 * f.a, 5 * f.b) for name, f in lora}) for lora in release.bank
    )
    history = scene.histories[0]
    found = assemble(base, release.population, bank, gates, history, config)
    batch = collate([history], base.pad_token, base.device)
    places = [
        (row, len(sample.prompt) + i)
        for row, sample in enumerate(history)
        for i in range(len(sample.answer) - 1)
    ]
    # Map by map, a whole pass each, with everything below laid in as an ordinary LoRA.
    done: dict[str, Factors] = {}
    for linear in base.maps:
        seen: list[torch.Tensor] = []
        below = Parts(1, release.population)
        private = {name: Factors(f.a[None], f.b[None]) for name, f in done.items()}
        with (
            torch.no_grad(),
            base.stack.using(Parts(1, below.shared, None, private)),
            adding(base, {linear.name: lambda x, seen=seen: seen.append(x)}),  # type: ignore[misc]
        ):
            base.hidden_states(batch.ids, batch.lengths)
        inputs = torch.stack([seen[0][row, place] for row, place in places]).numpy()
        scores = (normed(inputs) @ normed(gates[linear.name].numpy()).T).mean(0)
        scores /= linear.in_features**0.5
        best = np.argsort(-scores)[:2]
        e = np.exp(scores[best])
        w = e / e.sum()
        a = sum(wi * bank[i].factors[linear.name].a for wi, i in zip(w, best, strict=True))
        b = sum(wi * bank[i].factors[linear.name].b for wi, i in zip(w, best, strict=True))
        done[linear.name] = Factors(a.float(), b.float())
        torch.testing.assert_close(found.factors[linear.name].a, a.float(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.factors[linear.name].b, b.float(), atol=1e-4, rtol=1e-3)


def test_nothing_is_trained_and_nothing_kept_on_a_device(scene: Scene) -> None:
    answered = PER_PCS.answer(scene)
    assert all(o["private_bytes"] == 0 and o["tokens"] == 0 for o in answered.outcomes)
    gates = scene.finished("pieces", dict)
    assert {len(own) for own in gates.values()} == {len(scene.release.bank)}
    assert all(float(own.abs().max()) > 0 for own in gates.values())


def test_an_assembled_lora_is_an_ordinary_one(scene: Scene) -> None:
    gates = scene.finished("pieces", dict)
    lora = assemble(
        scene.base,
        scene.release.population,
        scene.release.bank,
        gates,
        scene.histories[0],
        scene.config.pieces,
    )
    assert lora.rank == scene.config.bank.rank
    stack = Personalised((scene.release.population, lora), torch.ones(2))
    assert parts_of(scene.base, [stack]).shared is not None
    with pytest.raises(KeyError):
        _ = lora.factors["no such map"]
