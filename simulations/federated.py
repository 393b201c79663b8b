"""A federation on one machine: the same apps as in deployment, then what only a simulation may do.

    prepare   write what the run is
    engine    ServerApp and ClientApps exchange releases and router statistics, nothing else
    evaluate  open each device's vault in place, answer its queries, write results/<device>.json
    conclude  summary, metrics and report

Each step skips what it finds finished, so a run that was killed goes on where it stopped.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

import json
from pathlib import Path
from typing import Any

from client.app import app as client_app
from client.device import Device
from client.evaluation import evaluate_stacks
from client.vault import Vault
from server.app import app as server_app
from shared.atomic_file import write_json, write_text
from shared.base_model import BaseModel, load_base
from shared.compute import compute
from shared.config import RunConfig, load_config
from shared.corpus.load import load_corpus
from shared.corpus.split import Split, split_users
from shared.errors import MesofedError
from shared.progress import stage
from simulations.local_grid import run_local
from simulations.report.page import write_report
from simulations.report.summary import Summary, summarise, write_summary
from simulations.run_record import write_run_record

# Devices evaluated in one batch: it bounds the memory of the vocabulary head.
DEVICES_AT_ONCE = 8


def open_run(run_dir: Path) -> RunConfig:
    """Return the configuration of a run that has been prepared.

    Raises
    ------
    MesofedError
        If the folder is not a run.
    """
    if not (run_dir / "config.toml").is_file():
        raise MesofedError(
            f"Expected a run in {run_dir}, with its config.toml; there is none. "
            "Name the folder that `mesofed simulate` printed."
        )
    return load_config(run_dir / "config.toml")


def prepare(config: RunConfig, run_dir: Path, command: list[str]) -> None:
    """Check that the run can be made, and write what it is.

    Raises
    ------
    MesofedError
        If the folder holds another run, the settings are for a deployment, or the corpus or the
        base model cannot be used.
    """
    if (run_dir / "config.toml").exists():
        raise MesofedError(
            f"{run_dir} holds a run already. Continue it with `mesofed simulate --resume "
            f"{run_dir}`, or name another folder with --out."
        )
    if config.rounds.devices:
        raise MesofedError(
            f"Expected rounds.devices=0 in a simulation, whose devices come from the corpus; got "
            f"{config.rounds.devices}. Set corpus.device_users instead."
        )
    corpus = load_corpus(config.corpus, config.seed)
    people = split_users(corpus, config.corpus, config.seed)
    with stage(f"load {config.base.name}", 1, "model"):
        base = compute(lambda: load_base(config.base, config.adapt))
    write_run_record(run_dir, config, base, corpus, people, command)


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


def conclude(run_dir: Path) -> Summary:
    """Write summary, metrics and report from what the run has left on disk."""
    write_summary(run_dir)
    write_metrics(run_dir)
    write_report(run_dir)
    return summarise(run_dir)


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


def write_metrics(run_dir: Path) -> None:
    """Gather every measurement of the run in ``metrics.jsonl``, one a line."""
    lines: list[dict[str, Any]] = []
    for path in sorted((run_dir / "training").glob("r*/*.json")):
        log = _read(path)
        where = {"round": int(path.parent.name[1:]), "stage": log["stage"]}
        lines.append({**where, "name": "seconds", "value": log["seconds"]})
        for trainee, curve in log.get("curves", {}).items():
            lines += [
                {**where, "trainee": trainee, "step": step, "name": "loss", "value": loss}
                for step, loss in curve
            ]
        for step in log.get("router", []):
            lines += [
                {**where, "step": step["step"], "name": name, "value": step[name]}
                for name in ("balance", "gate_entropy", "mean_gates")
            ]
    for path in sorted((run_dir / "results").glob("*.json")):
        result = _read(path)
        for method, outcome in result["methods"].items():
            where = {"round": result["release"], "user": result["user_id"], "method": method}
            lines += [
                {**where, "stage": "private training", "step": step, "name": "loss", "value": loss}
                for step, loss in outcome["curve"]
            ]
            lines += [
                {**where, "stage": "evaluation", "task": task, "name": name, "value": value}
                for task, scores in outcome["scores"].items()
                for name, value in scores.items()
            ]
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
