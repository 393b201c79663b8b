"""The number format that is computed in: bf16 where the machine has it, fp32 elsewhere."""

import platform
from pathlib import Path

import pytest
import torch

from shared import precision
from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig, Format
from shared.int8 import Int8Linear
from shared.precision import computing_dtype, multiplies_bf16, weight_format

CPU = torch.device("cpu")
IDS = torch.tensor([[72, 101, 108, 108, 111, 33, 10, 7, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]])


@pytest.fixture(params=[True, False], ids=["with bf16", "without bf16"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Play a machine that has products in bf16, and one that has none."""
    found: bool = request.param
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: found)
    return found


def load(kind: Format) -> BaseModel:
    load_base(BaseConfig(name="tiny", format="fp32", top_layers=1), ("q_proj",))  # drop the other
    return load_base(BaseConfig(name="tiny", format=kind, top_layers=0), ("q_proj",))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="reads the flags of a Linux x86 processor",
)
def test_bf16_is_taken_where_the_processor_says_it_can() -> None:
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    assert multiplies_bf16(CPU) == bool({"avx512_bf16", "amx_bf16"}.intersection(flags))


def test_auto_is_bf16_only_where_it_is_fast(has_bf16: bool) -> None:
    expected = "bf16" if has_bf16 else "fp32"
    assert weight_format("auto", CPU) == expected
    base = load("auto")
    assert base.format == expected
    assert base.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
    assert base.head.dtype == base.dtype


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "nf4"])
def test_a_format_that_is_named_is_kept(kind: Format, has_bf16: bool) -> None:
    base = load(kind)
    half = kind == "bf16" or (kind != "fp32" and has_bf16)
    assert base.format == kind == weight_format(kind, CPU)
    assert base.dtype == computing_dtype(kind, CPU) == (torch.bfloat16 if half else torch.float32)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_weights_are_the_same_whatever_they_are_multiplied_in(
    kind: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weights = [], []
    for half in (True, False):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device, half=half: half)
        base = load(kind)
        with torch.no_grad():
            hidden.append([base.hidden_states(IDS[:, :n], [n, n]).float() for n in (2, 9)])
        down = base.model.get_submodule("model.layers.0.mlp.down_proj")
        weights.append(down.weight.data.clone())
    assert torch.equal(*weights)
    assert load(kind).dtype == torch.float32
    for one, other in zip(*hidden, strict=True):  # 2 x 2 rows take the kernel for few rows
        assert not torch.equal(one, other)
        assert float((one - other).norm() / other.norm()) < 0.02


def test_int8_in_fp32_is_as_exact_as_its_weights() -> None:
    torch.manual_seed(0)
    dense = torch.nn.Linear(96, 40).requires_grad_(False)
    small = Int8Linear(dense)
    x = torch.randn(20, 96)
    expected = x.double() @ (small.weight.double() * small.scale.double()[:, None]).T
    expected += dense.bias.double()

    def error(came: torch.Tensor) -> float:
        assert came.dtype == torch.float32
        truth = expected[: len(came)]
        return float((came - truth).abs().max() / truth.abs().max())

    assert error(small(x)) < 1e-6
    assert error(small(x[:3])) < 1e-6
    with torch.no_grad():
        assert error(small(x)) < 1e-6
        # The kernel for few rows rounds them to bf16, whose numbers are 1/256 apart.
        assert 1e-4 < error(small(x[:3])) < 1 / 256
