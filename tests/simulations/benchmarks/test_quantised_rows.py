"""Base formats: every one trains, and its footprint counts all that it keeps."""

import pytest
import torch
from torch import nn

from shared.lora.lora import Factors
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.models import resident
from simulations.benchmarks.quantised import (
    FORMATS,
    check_gradients_of,
    footprint,
    share_without,
    text_loss,
    training_loss,
)
from simulations.benchmarks.workload import QUERY_VALUE, make_workload


def test_every_format_trains_after_an_evaluation(settings: Settings) -> None:
    bases = {form: resident(settings, form, QUERY_VALUE) for form in FORMATS}
    losses = {form: text_loss(base) for form, base in bases.items()}
    workload = make_workload(bases["fp32"], [16] * 2, 1.0)
    cosines, equalities = check_gradients_of(bases, workload)
    assert [e.value for e in equalities[: len(FORMATS)]] == [0.0] * len(FORMATS)
    assert cosines["fp32"] == pytest.approx(1.0)
    assert cosines["int8"] > 0.95
    trained = {form: training_loss(base, workload) for form, base in bases.items()}
    assert abs(losses["int8"] - losses["fp32"]) < 0.03
    assert abs(trained["int8"] - trained["fp32"]) < 0.03


def test_the_footprint_counts_scales_and_tied_weights_once(settings: Settings) -> None:
    model = resident(settings, "fp32", QUERY_VALUE).model
    weights = {p.data_ptr(): p.numel() for p in model.parameters()}
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert footprint(model) == 4 * sum(weights.values()) + buffers
    nf4 = resident(settings, "nf4", QUERY_VALUE).model
    maps = [m for m in nf4.modules() if type(m).__name__ == "Linear4bit"]
    packed = sum(m.weight.nbytes + m.weight.quant_state.absmax.nbytes for m in maps)
    rest = sum({p.data_ptr(): p.nbytes for p in nf4.parameters() if p.is_floating_point()}.values())
    extra = footprint(nf4) - packed - rest - buffers
    assert 0 <= extra <= len(maps) * 16 * 4  # the sixteen levels, which may be shared


def test_missing_gradients_are_counted() -> None:
    some = Factors(torch.ones(1, 2, 3), torch.zeros(1, 3, 2))
    assert share_without({"map": some}) == 0.5


def test_tied_tensors_of_a_module() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    assert footprint(nn.Sequential(first, second)) == 36
