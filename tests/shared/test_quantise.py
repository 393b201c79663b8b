"""Quantised bases: near the dense map, and never without a gradient."""

import logging

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig, Format
from shared.lora.layer import Parts
from shared.lora.lora import Factors
from shared.quantise import quantise

ADAPT = ("q_proj", "v_proj", "down_proj")
CPU = torch.device("cpu")
IDS = torch.tensor([[72, 101, 108, 108, 111, 33], [1, 2, 3, 4, 5, 6]])


def dense(bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64, bias=bias)).to(torch.bfloat16).requires_grad_(False)


def quantised(kind: str, bias: bool = False) -> nn.Sequential:
    model = dense(bias)
    quantise(model, ["0"], kind, CPU, torch.bfloat16)
    return model.eval()


def input_gradient(model: nn.Module) -> Tensor | None:
    x = torch.linspace(-1, 1, 6 * 128).reshape(6, 128).to(torch.bfloat16).requires_grad_()
    y = model(x).float()
    if not y.requires_grad:
        return None
    (y * torch.linspace(1, 2, 64)).sum().backward()
    return x.grad


def relative_error(came: Tensor, expected: Tensor) -> float:
    return float((came.float() - expected.float()).norm() / expected.float().norm())


# int8 rounds weights to 1/127 of a row's largest; NF4 loses about 9 %.
@pytest.mark.parametrize(("kind", "least", "most"), [("int8", 1e-4, 0.01), ("nf4", 0.02, 0.15)])
def test_quantised_maps_are_near_the_dense_one(kind: str, least: float, most: float) -> None:
    torch.manual_seed(3)
    x = torch.randn(16, 128, dtype=torch.bfloat16)
    for bias in (False, True):
        error = relative_error(quantised(kind, bias)(x), dense(bias)(x))
        assert least < error < most
    gradient, expected = input_gradient(quantised(kind)), input_gradient(dense())
    assert gradient is not None
    assert expected is not None
    assert relative_error(gradient, expected) < most


@pytest.mark.parametrize(("kind", "bytes_per_weight"), [("int8", 1.0), ("nf4", 0.5)])
def test_quantised_weights_are_small(kind: str, bytes_per_weight: float) -> None:
    weight = quantised(kind)[0].weight
    assert isinstance(weight, Tensor)
    assert weight.numel() * weight.element_size() == 128 * 64 * bytes_per_weight


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_evaluation_does_not_change_the_gradient(kind: str) -> None:
    expected = input_gradient(quantised(kind))
    model = quantised(kind)
    with torch.inference_mode():
        model(torch.ones(2, 128, dtype=torch.bfloat16))
    gradient = input_gradient(model)
    assert gradient is not None
    assert expected is not None
    assert expected.abs().sum() > 0
    assert torch.equal(gradient, expected)


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit:UserWarning")
@pytest.mark.skipif(not has_avx512bf16(), reason="the trap needs a CPU with AVX512-BF16")
def test_the_trap_is_real() -> None:
    """If this fails, bitsandbytes has mended it: the flag in ``quantise`` may go."""
    model = quantised("nf4")
    linear = model[0]
    assert isinstance(linear, Linear4bit)
    linear.support_avx512bf16_for_cpu = True
    with torch.inference_mode():
        model(torch.ones(2, 128, dtype=torch.bfloat16))
    assert input_gradient(model) is None


def train_step(base: BaseModel) -> dict[str, Tensor | None]:
    """Return the gradient of every tensor of a private LoRA of one user."""
    generator = torch.Generator().manual_seed(5)
    private = {
        linear.name: Factors(
            torch.randn(1, linear.in_features, 2, generator=generator).mul(0.1).requires_grad_(),
            torch.randn(1, 2, linear.out_features, generator=generator).mul(0.1).requires_grad_(),
        )
        for linear in base.maps
    }
    with base.lock, base.stack.using(Parts(users=1, private=private)):
        logits = base.logits(base.hidden_states(IDS, [6, 6])[:, :-1].flatten(0, 1))
        nn.functional.cross_entropy(logits, IDS[:, 1:].flatten()).backward()
    return {
        f"{name}.{side}": tensor.grad
        for name, factors in private.items()
        for side, tensor in (("a", factors.a), ("b", factors.b))
    }


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "nf4"])
def test_after_an_evaluation_every_trainable_tensor_has_a_gradient(kind: Format) -> None:
    base = load_base(BaseConfig(name="tiny", format=kind, top_layers=0), ADAPT)
    with torch.no_grad():
        base.hidden_states(IDS, [6, 6])
    gradients = train_step(base)
    assert len(gradients) == 2 * 3 * 4
    assert [name for name, g in gradients.items() if g is None or not g.abs().sum() > 0] == []
    exact = train_step(load_base(BaseConfig(name="tiny", format="fp32", top_layers=0), ADAPT))
    came, expected = (
        torch.cat([gradient.flatten() for gradient in found.values() if gradient is not None])
        for found in (gradients, exact)
    )
    # Measured 1, 0.9999, 0.998 and 0.9; random directions would give 0.
    cosine = torch.cosine_similarity(came, expected, dim=0)
    assert cosine > (0.6 if kind == "nf4" else 0.98)


def test_no_noise_at_every_forward(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.DEBUG):
        input_gradient(quantised("int8"))
        input_gradient(quantised("nf4"))
    assert [record for record in caplog.records if record.name.startswith("bitsandbytes")] == []
    assert [str(warning.message) for warning in recwarn] == []
