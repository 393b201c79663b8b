"""The memory row: eight users in one batch against one user at a time through PEFT in fp32."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import torch

from shared.errors import MesofedError
from simulations.benchmarks.measurement import Bar, Figure, Finding, Settings, ratios
from simulations.benchmarks.peak_memory import STATUS

# Memory hardly varies, and each measurement is a process that loads its own model.
ROUNDS = 2
MEASURE = "simulations.benchmarks.peak_memory"
VARIANTS = ("peft", "cohort", "cohort-small", "cohort-top")

Peaks = dict[str, list[dict[str, float]]]


def peak_memory(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Measure the peak memory of a training step, each variant in its own process."""
    if not (STATUS.exists() or torch.cuda.is_available()):
        return Finding(skipped="peak memory is read from /proc, which only Linux has")
    peaks: Peaks = {variant: [] for variant in VARIANTS}
    for _ in range(min(settings.rounds, ROUNDS)):
        for variant in VARIANTS:
            peaks[variant].append(_measured(variant, settings))
        on_round()
    bar = Bar(1.3, at_least=False)
    return Finding(
        figures=(
            _figure(peaks, "cohort", "with_model", "peak memory, 8 users", bar),
            _figure(peaks, "cohort", "step", "  model not counted"),
            _figure(peaks, "cohort-small", "with_model", "  smaller batches"),
            _figure(peaks, "cohort-top", "with_model", "  on top layers"),
        ),
        facts={"peak_mib": peaks},
    )


def _figure(peaks: Peaks, variant: str, kind: str, what: str, bar: Bar | None = None) -> Figure:
    own, peer = (tuple(peak[kind] for peak in peaks[name]) for name in (variant, "peft"))
    return Figure(
        what,
        "PEFT fp32, one user",
        ratios(own, peer),
        bar,
        higher_is_better=False,
    )


def _measured(variant: str, settings: Settings) -> dict[str, float]:
    threads = str(settings.threads)
    environment = dict(os.environ)
    if settings.threads:
        environment["OMP_NUM_THREADS"] = threads
    done = subprocess.run(
        [sys.executable, "-m", MEASURE, variant, settings.model, threads],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MesofedError(
            f"Expected a process to measure the peak memory of {variant}; it ended with code "
            f"{done.returncode}: {last}. Free some memory, or leave this row out with --only."
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
