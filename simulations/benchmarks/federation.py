"""One federation from end to end, its time and memory measured in a process of its own.

    python -m simulations.benchmarks.federation MODEL DEVICES THREADS

prints one line of JSON. The server and each device do the same whatever the number of devices, so
that time and memory per device can be compared.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.benchmarks.own_process import MIB, kept_bytes, status_bytes

if TYPE_CHECKING:
    from shared.config import RunConfig

SERVER_USERS, HISTORY, METHOD = 8, 2, "meso"


def main() -> None:
    """Measure the federation that the command line names."""
    model, devices, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    from shared.quiet import quiet_libraries

    quiet_libraries()
    print(json.dumps(measure(model, devices, threads)))


def measure(model: str, devices: int, threads: int) -> dict[str, float]:
    """Run a federation; return what it took.

    Returns
    -------
    dict
        ``server``, ``devices`` and ``evaluation``: seconds on the wall; ``processor``: seconds
        of all cores for devices and evaluation; ``results``: devices with a result;
        ``ready_mib``: memory when the release was trained; ``peak_mib``: the most there was;
        ``kept_mib``: memory in the end, what is free given back; ``disk_mib``: the run's folder.
    """
    from client.app import app as client_app
    from server.app import app as server_app
    from server.training import train_release
    from shared.compute import compute, use_threads
    from shared.corpus.load import load_corpus
    from shared.corpus.split import split_users
    from simulations.federated import evaluate_devices
    from simulations.local_grid import run_local
    from simulations.prepare import prepare
    from simulations.report.conclude import conclude

    config = run_config(model, devices, threads)
    use_threads(threads)
    with tempfile.TemporaryDirectory(prefix="mesofed-") as name:
        folder = Path(name) / "run"
        prepare(config, folder, ["bench"])
        people = split_users(load_corpus(config.corpus, config.seed), config.corpus, config.seed)
        began = time.perf_counter()
        compute(lambda: train_release(config, folder, 1, people.server))
        trained, processor, ready = time.perf_counter(), time.process_time(), status_bytes("VmRSS")
        run_local(server_app, client_app, folder, devices)
        answered = time.perf_counter()
        compute(lambda: evaluate_devices(config, folder, people))
        conclude(folder)
        ended = time.perf_counter()
        return {
            "devices": answered - trained,
            "evaluation": ended - answered,
            "server": trained - began,
            "processor": time.process_time() - processor,
            "results": len(list((folder / "results").glob("*.json"))),
            "ready_mib": ready / MIB,
            "peak_mib": status_bytes("VmHWM") / MIB,
            "kept_mib": kept_bytes() / MIB,
            "disk_mib": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / MIB,
        }


def run_config(model: str, devices: int, threads: int) -> "RunConfig":
    """Return the configuration of the run: the defaults, but for its size."""
    from shared.config import RunConfig

    return RunConfig.model_validate(
        {
            "threads": threads,
            "methods": [METHOD],
            "base": {"name": model},
            "population": {"epochs": 1},
            "bank": {"anchors": 2, "min_history": 1, "epochs": 1},
            "private": {"epochs": 1},
            "corpus": {
                "server_users": SERVER_USERS,
                "device_users": devices,
                "max_history": HISTORY,
                "max_queries": 1,
            },
        }
    )


if __name__ == "__main__":
    main()
