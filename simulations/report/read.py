"""A run directory, read into the frozen values of ``run.py``: the report's only source.

    run.json  config.toml  corpus.json          how the run was made, and on whom
    training/r1/{population,experts,bank}.json  what the server trained
    statistics/r1.json                          what crossed the wire
    results/0000.json                           one device each, every method

Files that a run has not written yet are simply absent from the result; a file that is there but
broken raises an error that names it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import MesofedError
from shared.program import command
from simulations.report.run import (
    Answer,
    CorpusRecord,
    Curve,
    DeviceResult,
    MethodResult,
    RoundStatistics,
    RouterStep,
    RouterUse,
    Run,
    Skip,
    StageTraining,
    Traffic,
)

Value = TypeVar("Value")

STAGES = ("population", "experts", "bank")


@contextmanager
def _meaning(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading ``path`` into one sentence that names it."""
    try:
        yield
    except OSError as error:
        raise MesofedError(f"Cannot read {path}: {error.strerror}.") from error
    except KeyError as error:
        raise MesofedError(
            f"Expected the field {error} in {path}; it is missing. Run the simulation again with "
            "--resume after deleting this file."
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise MesofedError(
            f"Expected a file of a Mesofed run in {path}; {error}. Run the simulation again with "
            "--resume after deleting this file."
        ) from error


def _load(path: Path, build: Callable[[Any], Value]) -> Value:
    """Parse one JSON file and build its value."""
    with _meaning(path):
        return build(json.loads(path.read_text(encoding="utf-8")))


def _release_of(path: Path) -> int:
    """Return the round in a name such as ``r12`` or ``r12.json``."""
    with _meaning(path):
        return int(path.name.removesuffix(".json").removeprefix("r"))


def _curve(points: Any) -> Curve:
    return tuple((int(step), float("nan") if y is None else float(y)) for step, y in points)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _router(data: Mapping[str, Any] | None) -> RouterUse | None:
    """Read router statistics, spelled as on the wire (``expert-weights``) or as in Python."""
    if not data:
        return None
    fields = {name.replace("-", "_"): value for name, value in data.items()}
    return RouterUse(
        expert_weights=_floats(fields["expert_weights"]),
        anchor_weights=_floats(fields["anchor_weights"]),
        best_similarity=float(fields["best_similarity"]),
        entropy=float(fields["entropy"]),
    )


def _answer(data: Mapping[str, Any]) -> Answer:
    nll = data.get("nll")
    return Answer(
        query_id=str(data["query_id"]),
        task=str(data["task"]),
        prediction=str(data["prediction"]),
        gold=str(data["gold"]),
        nll=None if nll is None else float(nll),
    )


def _method(data: Mapping[str, Any]) -> MethodResult:
    return MethodResult(
        private_parameters=int(data["private_parameters"]),
        private_bytes=int(data["private_bytes"]),
        seconds=float(data["seconds"]),
        tokens=int(data["tokens"]),
        curve=_curve(data.get("curve") or ()),
        answers=tuple(_answer(query) for query in data["queries"]),
    )


def _device(data: Mapping[str, Any]) -> DeviceResult:
    group = data.get("group")
    return DeviceResult(
        user_id=str(data["user_id"]),
        group=None if group is None else int(group),
        history=int(data["history"]),
        release=int(data["release"]),
        router=_router(data.get("statistics")),
        methods={name: _method(result) for name, result in data["methods"].items()},
    )


def _stage(data: Mapping[str, Any], stage: str, release: int) -> StageTraining:
    return StageTraining(
        stage=stage,
        release=release,
        seconds=float(data["seconds"]),
        tokens=int(data["tokens"]),
        curves={str(name): _curve(points) for name, points in data["curves"].items()},
        router=tuple(
            RouterStep(int(s["step"]), _floats(s["mean_gates"]), float(s["gate_entropy"]))
            for s in data.get("router") or ()
        ),
        gates={str(user): _floats(gates) for user, gates in (data.get("gates") or {}).items()},
        groups={str(user): int(group) for user, group in (data.get("groups") or {}).items()},
    )


def _round(data: Mapping[str, Any], release: int) -> RoundStatistics:
    return RoundStatistics(
        release=release,
        asked=int(data["asked"]),
        joined=None if data.get("joined") is None else int(data["joined"]),
        answered=int(data["answered"]),
        refused=tuple((str(r["node"]), str(r["reason"])) for r in data.get("refused") or ()),
        traffic=tuple(
            Traffic(str(d["node"]), int(d["bytes_down"]), int(d["bytes_up"]))
            for d in data.get("devices") or ()
        ),
        router={
            str(d["node"]): use
            for d in data.get("devices") or ()
            if (use := _router(d.get("statistics"))) is not None
        },
        mean_experts=_floats((data.get("mean") or {}).get("expert_weights") or ()),
        cost={name: data[name] for name in ("privacy", "sum") if data.get(name) is not None},
    )


UNKNOWN = CorpusRecord("unknown", 0, (), (), ())


def _corpus(data: Mapping[str, Any]) -> CorpusRecord:
    return CorpusRecord(
        origin=str(data["origin"]),
        users=int(data["users"]),
        server_users=tuple(map(str, data["server_users"])),
        device_users=tuple(map(str, data["device_users"])),
        skipped=tuple(Skip(str(s["where"]), str(s["reason"])) for s in data.get("skipped") or ()),
    )


def _read_devices(folder: Path) -> tuple[DeviceResult, ...]:
    devices: dict[str, DeviceResult] = {}
    for path in sorted(folder.glob("*.json")):
        device = _load(path, _device)
        if device.user_id in devices:
            raise MesofedError(
                f"Expected one result per user; {path} repeats the user {device.user_id!r}. "
                "Delete one of the two files and resume the run."
            )
        devices[device.user_id] = device
    return tuple(devices.values())


def read_record(folder: Path) -> dict[str, Any]:
    """Return how a run was made, from its ``run.json``.

    Raises
    ------
    MesofedError
        If there is none, or it is broken.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise MesofedError(
            f"Expected the directory of a run, with a run.json, at {folder}; found none. "
            f"Give the path that `{command('simulate')}` printed."
        )
    return _load(path, dict)


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises
    ------
    MesofedError
        If ``folder`` holds no ``run.json``, or one of the run's files is broken.
    """
    record = read_record(folder)
    training = [
        _load(path, partial(_stage, stage=stage, release=release))
        for round_folder in sorted((folder / "training").glob("r*"), key=_release_of)
        for release in (_release_of(round_folder),)
        for stage in STAGES
        for path in (round_folder / f"{stage}.json",)
        if path.is_file()
    ]
    rounds = [
        _load(path, partial(_round, release=_release_of(path)))
        for path in sorted((folder / "statistics").glob("r*.json"), key=_release_of)
    ]
    config, corpus = folder / "config.toml", folder / "corpus.json"
    with _meaning(config):
        config_text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return Run(
        folder=folder,
        record=record,
        config_text=config_text,
        corpus=_load(corpus, _corpus) if corpus.is_file() else UNKNOWN,
        training=tuple(training),
        rounds=tuple(rounds),
        devices=_read_devices(folder / "results"),
    )
