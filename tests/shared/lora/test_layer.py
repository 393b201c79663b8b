"""The adapter layer against the dense formula y = W x + sum_p g_p B_p A_p x + b a x."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.lora.algebra import concatenate
from shared.lora.layer import AdapterStack, Parts, expand_weights
from shared.lora.lora import Factors, LinearMap, Lora
from shared.lora.slab import Slab

NAME = "block.q"


@dataclass
class Case:
    """A random linear map, parts over it, and a batch of several users."""

    model: nn.Module
    stack: AdapterStack
    weight: Tensor
    bias: Tensor
    loras: list[Lora]
    weights: Tensor  # (users, parts)
    private: Factors
    x: Tensor  # (users * rows, tokens, in)

    @property
    def users(self) -> int:
        return len(self.weights)

    def run(self, parts: Parts) -> Tensor:
        with self.stack.using(parts):
            y: Tensor = self.model.get_submodule(NAME)(self.x)
        return y

    def dense(self, weights: Tensor | None, private: Factors | None, shared: bool = True) -> Tensor:
        """Compute every user's rows with that user's own dense weight."""
        outputs = []
        for user, rows in enumerate(self.x.chunk(self.users)):
            total = self.weight
            for part, lora in enumerate(self.loras if shared else []):
                share = 1.0 if weights is None else weights[user, part]
                factors = lora.factors[NAME]
                total = total + share * (factors.b.T @ factors.a.T)
            if private is not None:
                total = total + private.b[user].T @ private.a[user].T
            outputs.append(torch.einsum("rti,oi->rto", rows, total) + self.bias)
        return torch.cat(outputs)


def case(
    seed: int = 0, users: int = 3, rows: int = 2, ranks: Sequence[int] = (2, 1, 3), width: int = 5
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    out, rank = width + 2, 2
    model = nn.Module()
    model.block = nn.Module()
    model.block.q = nn.Linear(width, out, dtype=torch.float64).requires_grad_(False)
    linear = model.block.q
    stack = AdapterStack.attach(model, [LinearMap(NAME, width, out)])
    return Case(
        model=model,
        stack=stack,
        weight=linear.weight,
        bias=linear.bias,
        loras=[Lora({NAME: Factors(normal(width, r), normal(r, out))}) for r in ranks],
        weights=normal(users, len(ranks)),
        private=Factors(normal(users, width, rank), normal(users, rank, out)),
        x=normal(users * rows, 4, width),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_forward_and_gradients_are_those_of_the_dense_formula(
    seed: int, users: int, rows: int, ranks: list[int], width: int
) -> None:
    c = case(seed, users, rows, ranks, width)
    weights = c.weights.clone().requires_grad_()
    private = Factors(c.private.a.clone().requires_grad_(), c.private.b.clone().requires_grad_())
    c.x.requires_grad_()
    leaves = (weights, private.a, private.b, c.x)
    expected = c.dense(weights, private)
    direction = torch.cos(torch.arange(expected.numel()).double()).view_as(expected)
    wanted = torch.autograd.grad(expected, leaves, direction)

    parts = Parts(users, concatenate(c.loras), expand_weights(c.loras, weights), {NAME: private})
    came = c.run(parts)
    torch.testing.assert_close(came, expected, rtol=1e-9, atol=1e-9)
    for gradient, dense in zip(torch.autograd.grad(came, leaves, direction), wanted, strict=True):
        torch.testing.assert_close(gradient, dense, rtol=1e-9, atol=1e-9)


def test_each_part_may_be_off() -> None:
    c = case()
    shared = concatenate(c.loras)
    weights = expand_weights(c.loras, c.weights)
    private = {NAME: c.private}
    for parts, expected in (
        (Parts(c.users), c.dense(None, None, shared=False)),
        (Parts(c.users, shared), c.dense(None, None)),
        (Parts(c.users, shared, weights), c.dense(c.weights, None)),
        (Parts(c.users, None, None, private), c.dense(None, c.private, shared=False)),
        (Parts(c.users, shared, None, private), c.dense(None, c.private)),
    ):
        torch.testing.assert_close(c.run(parts), expected, rtol=1e-9, atol=1e-9)


def test_maps_that_no_part_names_are_the_plain_base() -> None:
    c = case()
    (factors,) = c.loras[0].factors.values()
    plain = c.run(Parts(c.users))
    other = Parts(c.users, Lora({"block.v": factors}), None, {"block.v": c.private})
    assert torch.equal(c.run(other), plain)


def test_weights_repeat_along_the_ranks_of_their_part() -> None:
    loras = case(ranks=(2, 1, 3)).loras
    weights = torch.tensor([[0.1, 0.2, 0.3], [4.0, 5.0, 6.0]])
    expected = torch.tensor([[0.1, 0.1, 0.2, 0.3, 0.3, 0.3], [4.0, 4.0, 5.0, 6.0, 6.0, 6.0]])
    came = expand_weights(loras, weights)
    assert came is not None
    assert torch.equal(came, expected)
    assert expand_weights(loras, None) is None
    assert expand_weights([], weights) is None


def test_the_former_parts_come_back_after_a_block_even_if_it_raises() -> None:
    stack = AdapterStack([])
    outer, inner = Parts(2), Parts(3)

    def fail() -> None:
        with stack.using(inner):
            assert stack.parts is inner
            raise KeyboardInterrupt

    with stack.using(outer):
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert stack.parts is outer
    assert stack.parts == Parts()


def test_layers_add_no_parameters_and_leave_the_names_of_others_alone() -> None:
    model = nn.ModuleDict({"q": nn.Linear(3, 4), "v": nn.Linear(3, 2), "w": nn.Linear(3, 2)})
    before = sum(p.numel() for p in model.parameters())
    AdapterStack.attach(model, [LinearMap("q", 3, 4), LinearMap("v", 3, 2)])
    assert sum(p.numel() for p in model.parameters()) == before
    assert set(model.state_dict()) == {
        "q.base.weight", "q.base.bias", "v.base.weight", "v.base.bias", "w.weight", "w.bias",
    }  # fmt: skip


def test_parts_follow_the_format_of_the_activations() -> None:
    c = case()
    c.model.to(torch.bfloat16)
    c.x = c.x.bfloat16()
    slab = Slab((LinearMap(NAME, 5, 7),), 2, torch.zeros(c.users, 2 * (5 + 7)))
    view = slab.views()[NAME]
    view.a.copy_(c.private.a)
    view.b.copy_(c.private.b)
    shared = concatenate(c.loras).to(torch.float32, torch.device("cpu"))
    weights = expand_weights(c.loras, c.weights.float())
    came = c.run(Parts(c.users, shared, weights, slab.views()))
    assert came.dtype == torch.bfloat16
    c.weight, c.bias, c.x = c.weight.double(), c.bias.double(), c.x.double()
    torch.testing.assert_close(came.double(), c.dense(c.weights, c.private), rtol=0.05, atol=0.3)
