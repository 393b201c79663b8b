"""Peak memory of one way to train, measured in a process of its own.

    python -m simulations.benchmarks.peak_memory VARIANT MODEL THREADS

prints one line of JSON. A process keeps what its allocator once had, so that variants in one
process would hide each other's peaks.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simulations.benchmarks.own_process import MIB, status_bytes


def main() -> None:
    """Measure the variant that the command line names."""
    variant, model, threads = sys.argv[1:4]
    from shared.compute import compute, use_threads
    from shared.quiet import quiet_libraries

    quiet_libraries()
    use_threads(int(threads))
    print(json.dumps(compute(lambda: measure(lambda: prepare(variant, model)))))


def prepare(variant: str, model: str) -> Callable[[], None]:
    """Return a training step of a variant, its model loaded.

    Parameters
    ----------
    variant : {"peft", "cohort", "cohort-small", "cohort-top"}
        One user in fp32 through PEFT; eight over the default format, as many in a batch as the
        default memory allows; as many as half of it allows; eight on the top layers.
    """
    import torch

    from simulations.benchmarks.cohort import CohortStep
    from simulations.benchmarks.measurement import Settings
    from simulations.benchmarks.models import plain_model, resident
    from simulations.benchmarks.peft_peer import peft_step, wrap
    from simulations.benchmarks.training import (
        ANSWER_SHARE,
        RANK,
        SMALL_MEMORY,
        TOP_SHARE,
        USERS,
    )
    from simulations.benchmarks.workload import QUERY_VALUE, make_workload, started_slab

    users = 1 if variant == "peft" else USERS
    top_share = TOP_SHARE if variant == "cohort-top" else 1.0
    base = resident(Settings(model), "auto", QUERY_VALUE, top_share)
    slab = started_slab(base, RANK, users)
    workload = make_workload(base, [128] * users, ANSWER_SHARE)
    if variant == "cohort-small":
        base = replace(base, memory=SMALL_MEMORY)
    if variant != "peft":
        return CohortStep(base, slab, workload)
    device = base.device
    del base
    resident(Settings("tiny"), "auto", QUERY_VALUE)  # in the place of the peer's own weights
    return peft_step(wrap(plain_model(model, torch.float32, device), slab), workload, device)


def measure(load: Callable[[], Callable[[], None]]) -> dict[str, float]:
    """Return the peak of a training step in MiB.

    Parameters
    ----------
    load : callable
        Returns the step, ready to run.

    Returns
    -------
    dict
        ``step``: above the resting process; ``with_model``: above the process before it had
        loaded the model.
    """
    import peft  # noqa: F401 - libraries are no part of what is measured
    import torch

    if torch.cuda.is_available():
        step = load()
        step()
        torch.cuda.reset_peak_memory_stats()
        rest = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated()
        return {"step": (peak - rest) / MIB, "with_model": peak / MIB}
    empty = status_bytes("VmRSS")
    step = load()
    step()  # what stays: optimiser state, prepared kernels
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    rest = status_bytes("VmRSS")
    step()
    peak = status_bytes("VmHWM")
    return {"step": (peak - rest) / MIB, "with_model": (peak - empty) / MIB}


if __name__ == "__main__":
    main()
