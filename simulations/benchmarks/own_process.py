"""Measurements that need a process of their own: one that shares it would hide another's peak."""

import contextlib
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.errors import MesofedError
from simulations.benchmarks.measurement import Settings

MIB = 1 << 20
STATUS = Path("/proc/self/status")  # Linux's account of this process


def status_bytes(name: str) -> int:
    """Return a size of this process in bytes: ``VmRSS`` for now, ``VmHWM`` for its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def kept_bytes() -> int:
    """Return this process's memory once garbage is collected and the heap's free pages go back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone can be told to
        ctypes.CDLL(None).malloc_trim(0)
    return status_bytes("VmRSS")


def measured_apart(
    module: str, arguments: Sequence[str], settings: Settings, what: str, row: str
) -> dict[str, float]:
    """Run a module with arguments; return the JSON object that it prints last.

    Parameters
    ----------
    what, row : str
        What is measured, and for which row, for the error.

    Raises
    ------
    MesofedError
        If the process fails.
    """
    environment = dict(os.environ)
    if settings.threads:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MesofedError(
            f"Expected a process to measure {what}; it ended with code {done.returncode}: {last}. "
            f"Free some memory, or leave the row {row} out: name others with --only."
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
