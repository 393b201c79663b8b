"""int8 weights against dense algebra on the weights they stand for."""

import pytest
import torch
from torch import Tensor, nn

from shared.int8 import FEW_ROWS, Int8Linear, rounded

WIDTH, OUT = 64, 48


def dense(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, OUT, bias=bias).to(torch.bfloat16).requires_grad_(False)


def rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, WIDTH, generator=generator)
    x[:, 3] *= 100  # an outlier column, which int8 activations would lose the others by
    return x.to(torch.bfloat16)


def stands_for(layer: Int8Linear) -> Tensor:
    """Return the weights, in fp64."""
    return layer.weight.double() * layer.scale.double()[:, None]


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(200, WIDTH) * torch.logspace(-6, 3, 200)[:, None]
    weight[7] = 0
    q, scale = rounded(weight)
    off = (q.double() * scale.double()[:, None] - weight.double()).abs()
    # The largest weight of a row may lie at 127.25 steps.
    assert (off <= 0.5001 * scale.double()[:, None]).all()
    assert q.abs().max() == 127
    assert not q[7].any()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("count", [1, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_the_weights(count: int, bias: bool) -> None:
    linear = dense(bias)
    layer, x = Int8Linear(linear), rows(count)
    exact = x.double() @ stands_for(layer).T + (linear.bias.double() if bias else 0)
    size = exact.abs().max()
    with torch.no_grad():
        assert (layer(x).double() - exact).abs().max() < 0.01 * size
    own = x.clone().requires_grad_()
    y = layer(own)
    assert (y.double() - exact).abs().max() < 0.01 * size
    by_y = torch.linspace(-1, 1, OUT).expand(count, OUT).to(torch.bfloat16)
    (gradient,) = torch.autograd.grad(y, own, by_y)
    wanted = by_y.double() @ stands_for(layer)
    assert (gradient.double() - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_what_a_row_gives_does_not_depend_on_the_others() -> None:
    layer, x = Int8Linear(dense()), rows(24)
    louder = x.clone()
    louder[8:] *= 50  # LLM.int8() would now keep other columns apart for everybody
    quiet, loud = layer(x.requires_grad_())[:8], layer(louder.requires_grad_())[:8]
    assert torch.equal(quiet, loud)


def test_no_copy_of_the_weights_is_kept_for_the_way_back() -> None:
    layer, kept = Int8Linear(dense()), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        layer(rows(9).requires_grad_())
    assert kept == [torch.int8, torch.bfloat16]
