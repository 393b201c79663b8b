"""The memory row: eight users in one batch against one user at a time through PEFT in fp32."""

from collections.abc import Callable

import torch

from simulations.benchmarks.measurement import Bar, Figure, Finding, Settings, ratios
from simulations.benchmarks.own_process import STATUS, measured_apart

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
    arguments = (variant, settings.model, str(settings.threads))
    return measured_apart(MEASURE, arguments, settings, f"the peak memory of {variant}", "memory")
