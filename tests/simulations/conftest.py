"""Runs that begin where training would end, and what two runs of the same settings share."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.config import RunConfig
from simulations.prepare import prepare


@pytest.fixture
def started(federation: Any, tmp_path: Path) -> Callable[..., tuple[RunConfig, Path]]:
    """Return a prepared run of one round whose release has been trained already."""

    def make(
        devices: int, privacy: dict[str, Any] | None = None, **rounds: Any
    ) -> tuple[RunConfig, Path]:
        corpus = {**federation.config.corpus.model_dump(), "device_users": devices}
        config = RunConfig.model_validate(
            {
                **federation.config.model_dump(),
                "methods": ("population", "oppu"),
                "corpus": corpus,
                "privacy": privacy or {},
                "rounds": {"count": 1, "deadline_seconds": 300.0, **rounds},
            }
        )
        run = tmp_path / "run"
        prepare(config, run, ["pytest"])
        shutil.copytree(federation.run_dir / "keys", run / "keys")
        for part in ("training", "releases"):
            shutil.copytree(federation.run_dir / part / "r1", run / part / "r1")
        return config, run

    return make


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lasting(run: Path) -> dict[str, Any]:
    """What two runs of the same settings have in common: everything but times and paths."""
    kept: dict[str, Any] = {}
    for pattern in ("releases/**/*", "training/**/*.safetensors", "vaults/**/*.safetensors"):
        for path in run.glob(pattern):
            # Every run signs with a key of its own.
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".sig":
                kept[str(path.relative_to(run))] = path.read_bytes()
    for pattern in ("statistics/*.json", "results/*.json", "training/**/*.json", "corpus.json"):
        for path in run.glob(pattern):
            kept[str(path.relative_to(run))] = timeless(read(path))
    kept["config.toml"] = (run / "config.toml").read_bytes()
    table = read(run / "summary.json")["table"]
    kept["summary.json"] = timeless(table)
    kept["person"] = [p.read_bytes() for p in sorted(run.glob("vaults/*/person.jsonl"))]
    return kept


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(name="lasting")
def _lasting() -> Callable[[Path], dict[str, Any]]:
    return lasting
