"""A federation on one machine: the same apps as in deployment, then what only a simulation may do.

    prepare   write what the run is (prepare.py)
    engine    ServerApp and ClientApps exchange releases and router statistics, nothing else
    evaluate  open each device's vault in place, answer its queries, write results/<device>.json
    conclude  summary, metrics and report (report/conclude.py)

Each step skips what it finds finished, so a run that was killed goes on where it stopped.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

from pathlib import Path
from typing import Any

from client.app import app as client_app
from client.device import Device
from client.evaluation import evaluate_stacks
from client.vault import Vault
from server.app import app as server_app
from shared.atomic_file import write_json
from shared.base_model import BaseModel, load_base
from shared.compute import compute
from shared.config import RunConfig
from shared.corpus.load import load_corpus
from shared.corpus.split import Split, split_users
from shared.progress import stage
from simulations.local_grid import run_local
from simulations.report.conclude import conclude
from simulations.report.summary import Summary

# Devices evaluated in one batch: it bounds the memory of the vocabulary head.
DEVICES_AT_ONCE = 8


def simulate(config: RunConfig, run_dir: Path) -> Summary:
    """Run, or go on with, a prepared federation to its end.

    Returns
    -------
    Summary
        Also in ``summary.json``; the report is ``report.html``.
    """
    people = split_users(load_corpus(config.corpus, config.seed), config.corpus, config.seed)
    if config.engine == "ray":
        from simulations.ray_engine import run_on_ray

        run_on_ray(server_app, client_app, run_dir, len(people.device))
    else:
        run_local(server_app, client_app, run_dir, len(people.device))
    compute(lambda: evaluate_devices(config, run_dir, people))
    return conclude(run_dir)


def evaluate_devices(config: RunConfig, run_dir: Path, people: Split) -> None:
    """Evaluate every method on each device that has the last release, and write its result.

    A simulation may look into the vaults; no server can. Nothing of this crosses the wire.
    """
    base, last = load_base(config.base, config.adapt), config.rounds.count
    indices = [
        index
        for index in range(len(people.device))
        if _vault(run_dir, index).statistics(last) is not None
    ]
    with stage("evaluate devices", len(indices), "devices") as progress:
        for start in range(0, len(indices), DEVICES_AT_ONCE):
            # A batch is always made of the same devices, so a resumed run gives the same bits.
            batch = indices[start : start + DEVICES_AT_ONCE]
            if not all(_result(run_dir, index).exists() for index in batch):
                _evaluate(config, run_dir, base, people, batch)
            progress.advance(len(batch))


def _evaluate(
    config: RunConfig, run_dir: Path, base: BaseModel, people: Split, batch: list[int]
) -> None:
    last = config.rounds.count
    devices = [
        Device(base, _vault(run_dir, index), config.methods, config.private, config.seed)
        for index in batch
    ]
    users = [people.device[index] for index in batch]
    release = devices[0].release()
    outcomes: list[dict[str, Any]] = [{} for _ in batch]
    for method in config.methods:
        stacks = [device.personalised(method, release) for device in devices]
        for outcome, found in zip(outcomes, evaluate_stacks(base, users, stacks), strict=True):
            outcome[method] = found
    for index, user, outcome in zip(batch, users, outcomes, strict=True):
        write_json(
            _result(run_dir, index),
            {
                "user_id": user.user_id,
                "group": user.group,
                "history": len(user.history),
                "release": last,
                "statistics": _vault(run_dir, index).statistics(last),
                "methods": outcome,
            },
        )


def _vault(run_dir: Path, index: int) -> Vault:
    return Vault(run_dir / "vaults" / f"{index:04d}")


def _result(run_dir: Path, index: int) -> Path:
    return run_dir / "results" / f"{index:04d}.json"
