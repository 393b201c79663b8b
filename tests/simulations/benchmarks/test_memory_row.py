"""Peak memory: what is counted, and what becomes of a process that fails."""

import sys
from typing import Any

import pytest
import torch

from shared.errors import MesofedError
from simulations.benchmarks import memory
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.peak_memory import MIB, measure

linux = pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")


@linux
def test_the_peak_of_a_step_is_above_rest() -> None:
    kept: list[torch.Tensor] = []

    def load() -> Any:
        kept.append(torch.ones(64 * MIB // 4))  # the model
        return lambda: torch.ones(128 * MIB // 4).sum()

    found = measure(load)
    assert found["step"] == pytest.approx(128, abs=16)
    assert found["with_model"] == pytest.approx(192, abs=32)


@linux
def test_figures_are_ratios_of_peaks(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {
        "peft": {"step": 100.0, "with_model": 300.0},
        "cohort": {"step": 250.0, "with_model": 360.0},
        "cohort-small": {"step": 50.0, "with_model": 240.0},
        "cohort-top": {"step": 50.0, "with_model": 150.0},
    }
    monkeypatch.setattr(memory, "_measured", lambda variant, _: peaks[variant])
    found = memory.peak_memory(settings, lambda: None)
    assert [figure.median for figure in found.figures] == [1.2, 2.5, 0.8, 0.5]
    assert [figure.met for figure in found.figures] == [True, None, None, None]


@linux
def test_a_process_that_fails_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEASURE", "no.such.module")
    monkeypatch.setattr(sys, "executable", sys.executable)
    with pytest.raises(MesofedError, match="peak memory of peft; it ended with code 1"):
        memory.peak_memory(settings, lambda: None)
