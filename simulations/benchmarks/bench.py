"""Run the rows of the benchmark, one after another, and keep what each has found."""

import gc
import time
from collections.abc import Sequence
from pathlib import Path

from shared.base_model import load_base
from shared.compute import compute, use_threads
from shared.config import BaseConfig
from shared.progress import stage
from simulations.benchmarks.catalogue import Row
from simulations.benchmarks.machine import describe_machine
from simulations.benchmarks.measurement import (
    MODEL_OF_BARS,
    Finding,
    Settings,
    without_bars,
)
from simulations.benchmarks.page import write_page
from simulations.benchmarks.results import Results


def run_benchmark(settings: Settings, rows: Sequence[Row], folder: Path) -> Results:
    """Measure the rows; results and page are written after each, so that a stop loses one row.

    Raises
    ------
    MesofedError
        If the two sides of a row do not compute the same, or the model cannot be loaded.
    """
    use_threads(settings.threads)
    results = Results(settings, describe_machine(settings))
    for row in rows:
        started = time.perf_counter()
        results.findings[row.name] = measure(row, settings)
        results.took[row.name] = time.perf_counter() - started
        results.write(folder)
        write_page(results, folder)
    return results


def measure(row: Row, settings: Settings) -> Finding:
    """Measure one row and let go of its models."""
    with stage(row.name, row.interleavings * settings.rounds, "rounds") as progress:

        def on_round() -> None:
            progress.advance(1)

        measure = row.load()
        if row.computes:
            finding = compute(lambda: measure(settings, on_round))
        else:
            finding = measure(settings, on_round)
    compute(_release_memory)
    return finding if settings.model == MODEL_OF_BARS else without_bars(finding)


def _release_memory() -> None:
    """Put a small model in the place of the resident one, which the next row may not want."""
    load_base(BaseConfig(name="tiny", top_layers=1), ("q_proj",))
    gc.collect()
