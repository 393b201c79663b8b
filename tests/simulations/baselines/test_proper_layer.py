"""PROPER's layer against its formulas, worked by hand and in dense algebra."""

import math

import numpy as np
import pytest
import torch

from shared.lora.lora import Factors, LinearMap
from simulations.baselines.proper_layer import (
    MapGates,
    constraint,
    gated_sum,
    group_updates,
    initial_gates,
    lora_aware_gates,
    token_and_user_gates,
    user_updates,
)

E, IN, OUT, RANK = 3, 4, 5, 2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random_parts(seed: int) -> tuple[Factors, MapGates]:
    g = torch.Generator().manual_seed(seed)
    experts = Factors(torch.randn(E, IN, RANK, generator=g), torch.randn(E, RANK, OUT, generator=g))
    gates = MapGates(
        torch.randn(IN, E, generator=g),
        torch.randn(IN, E, generator=g),
        torch.randn(OUT, E, generator=g),
    )
    return experts, gates


def test_gates_are_a_softmax_of_the_sum_of_two_softmaxes() -> None:
    # One expert certain for both: p_x = p_u = (1, 0, 0, 0, 0), w = softmax(2, 0, 0, 0, 0); the
    # dossier's bounds for five experts are 0.649 and 0.088.
    sure = 1000 * torch.eye(1, 5)
    gates = MapGates(sure, sure, torch.zeros(1, 5))
    w = token_and_user_gates(torch.ones(1, 1, 1), torch.ones(1, 1), gates)[0, 0]
    top = math.e**2 / (math.e**2 + 4)
    assert w.tolist() == pytest.approx([top] + [(1 - top) / 4] * 4)
    assert w[0].item() == pytest.approx(0.649, abs=1e-3)
    assert w[1].item() == pytest.approx(0.088, abs=1e-3)
    # Token and user of two minds: 0.322 each for theirs, 0.119 for the others.
    other = 1000 * torch.eye(5)[1:2]
    split = token_and_user_gates(
        torch.ones(1, 1, 1), torch.ones(1, 1), MapGates(sure, other, torch.zeros(1, 5))
    )[0, 0]
    assert split.tolist() == pytest.approx([0.322, 0.322, 0.119, 0.119, 0.119], abs=1e-3)


def test_the_group_update_is_a_fifth_of_the_gated_sum() -> None:
    experts, gates = random_parts(0)
    x, embedding = torch.randn(2, 3, IN), torch.randn(2, IN)
    by_hand = np.zeros((2, 3, OUT))
    for row in range(2):
        p_u = softmax(embedding[row].numpy() @ gates.user.numpy())
        for token in range(3):
            one = x[row, token].numpy()
            w = softmax(softmax(one @ gates.input.numpy()) + p_u)
            for i in range(E):
                by_hand[row, token] += w[i] * (one @ experts.a[i].numpy() @ experts.b[i].numpy())
    by_hand /= E
    update = group_updates({"m": experts}, {"m": gates}, {"m": embedding})["m"]
    np.testing.assert_allclose(update(x), by_hand, rtol=1e-4, atol=1e-5)


def test_from_stage_three_two_the_users_own_output_gates_the_experts() -> None:
    experts, gates = random_parts(1)
    x = torch.randn(2, 3, IN)
    own = Factors(torch.randn(2, IN, RANK), torch.randn(2, RANK, OUT))
    by_hand = np.zeros((2, 3, OUT))
    for row in range(2):
        for token in range(3):
            one = x[row, token].numpy()
            o = one @ own.a[row].numpy() @ own.b[row].numpy()
            w = softmax(o @ gates.lora.numpy())
            by_hand[row, token] = (
                o
                + sum(w[i] * (one @ experts.a[i].numpy() @ experts.b[i].numpy()) for i in range(E))
                / E
            )
    update = user_updates({"m": experts}, {"m": gates}, {"m": own})["m"]
    np.testing.assert_allclose(update(x), by_hand, rtol=1e-4, atol=1e-5)
    # Two rows a user: each by its own user's LoRA.
    grouped = update(torch.cat([x, x])[[0, 2, 1, 3]])
    np.testing.assert_allclose(grouped, by_hand[[0, 0, 1, 1]], rtol=1e-4, atol=1e-5)
    weights = lora_aware_gates(torch.randn(1, 1, OUT), gates)
    assert weights.sum().item() == pytest.approx(1)


def test_the_constraint_is_one_minus_the_sum_of_squares_over_real_tokens() -> None:
    weights = torch.tensor([[[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.0, 0.0, 1.0]]])
    real = torch.tensor([[True, True, False]])
    # Mean over the two tokens: 0.6, 0.2, 0.2; pairs: 2 (0.12 + 0.12 + 0.04) = 0.56.
    assert constraint(weights, real).item() == pytest.approx(0.56)
    assert pytest.approx(0.56) == 1 - (0.6**2 + 0.2**2 + 0.2**2)


def test_the_constraint_has_a_gradient_that_decides_the_gates() -> None:
    experts, gates = random_parts(2)
    routers = [gates.input.requires_grad_(), gates.user.requires_grad_()]
    x, embedding = torch.randn(4, 6, IN), torch.randn(4, IN)
    real = torch.ones(4, 6, dtype=torch.bool)
    optimiser = torch.optim.Adam(routers, lr=0.1)

    def value() -> torch.Tensor:
        return constraint(token_and_user_gates(x, embedding, gates), real)

    first = value()
    gradients = torch.autograd.grad(first, routers)
    assert all(float(g.abs().max()) > 0 for g in gradients)
    for _ in range(100):
        optimiser.zero_grad()
        value().backward()
        optimiser.step()
    assert value().item() < first.item() - 0.02
    # Zero gates in the product, as at the start of training: the experts say nothing.
    silent = Factors(experts.a, torch.zeros_like(experts.b))
    weights = token_and_user_gates(x, embedding, gates).detach()
    assert float(gated_sum(x, weights, silent).abs().max()) == 0


def test_routers_start_as_nn_linear_does_and_by_seed() -> None:
    maps = (LinearMap("m", 16, 9),)
    first = initial_gates(maps, E, 1)["m"]
    assert (first.input.shape, first.user.shape, first.lora.shape) == ((16, 3), (16, 3), (9, 3))
    assert float(first.input.abs().max()) <= 1 / 4
    assert float(first.lora.abs().max()) <= 1 / 3
    assert torch.equal(first.input, initial_gates(maps, E, 1)["m"].input)
    assert not torch.equal(first.input, initial_gates(maps, E, 2)["m"].input)
