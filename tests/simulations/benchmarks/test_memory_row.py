"""Peak memory: what is counted, and what becomes of a process that fails."""

import json
import subprocess
import sys

import pytest

from shared.errors import MesofedError
from simulations.benchmarks import memory
from simulations.benchmarks.measurement import Settings

linux = pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")


STEP = """
import json, torch
from simulations.benchmarks.own_process import MIB
from simulations.benchmarks.peak_memory import measure
kept = []
def load():
    kept.append(torch.ones(64 * MIB // 4))  # the model
    return lambda: torch.ones(128 * MIB // 4).sum()
print(json.dumps(measure(load)))
"""


@linux
def test_the_peak_of_a_step_is_above_rest() -> None:
    # In a process of its own, as the row measures: another's freed memory would be taken again.
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
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
