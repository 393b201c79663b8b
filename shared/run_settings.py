"""Where a Flower app finds its run: the same rule on every engine, for server and device.

run folder   run_config["run-dir"], else $MESOFED_RUN_DIR, else ~/.mesofed/runs/<run id>
config       <run folder>/config.toml, else the file run_config["config"], else the defaults
keys         the config's release.keys, else <run folder>/keys
vault        <run folder>/vaults/<partition:04d>

Vaults lie in a run's folder in a simulation alone: a real device has an agent, which reads no file
that a server names.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.config import RunConfig, load_config
from shared.errors import MesofedError

if TYPE_CHECKING:
    from flwr.app import Context

RUN_DIR_VARIABLE = "MESOFED_RUN_DIR"


@dataclass(frozen=True)
class RunSettings:
    """One run as an app sees it.

    Attributes
    ----------
    run_dir : Path
        Absolute; it need not exist yet.
    config : RunConfig
    """

    run_dir: Path
    config: RunConfig


def run_folder(context: "Context") -> Path:
    """Return the absolute path of the run's folder; nothing is created."""
    named = _text(context.run_config.get("run-dir", ""), "run-dir")
    named = named or os.environ.get(RUN_DIR_VARIABLE, "")
    folder = Path(named) if named else Path.home() / ".mesofed" / "runs" / str(context.run_id)
    return folder.expanduser().absolute()


def resolve_run(context: "Context") -> RunSettings:
    """Find the run's folder and read its configuration.

    Raises
    ------
    MesofedError
        If a setting is not text, or the configuration cannot be read or is not valid.
    """
    folder = run_folder(context)
    kept = folder / "config.toml"
    if kept.is_file():
        return RunSettings(folder, load_config(kept))
    named = _text(context.run_config.get("config", ""), "config")
    return RunSettings(folder, load_config(Path(named).expanduser() if named else None))


def keys_folder(config: RunConfig, run_dir: Path) -> Path:
    """Return the folder of the key that a run's releases are signed with."""
    return Path(config.release.keys) if config.release.keys else run_dir / "keys"


def partition(context: "Context") -> int:
    """Return which device of a simulation this node is, counted from 0.

    Raises
    ------
    MesofedError
        If the node has no ``partition-id``.
    """
    number = context.node_config.get("partition-id")
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise MesofedError(
            f"Expected node_config['partition-id'] to be a whole number from 0; got {number!r}. "
            "Simulations set it; a real device names the socket of its agent, node_config['agent']."
        )
    return number


def vault_folder(context: "Context") -> Path:
    """Return the absolute path of the vault of a simulation's node; nothing is created.

    Raises
    ------
    MesofedError
        If the node has no ``partition-id``.
    """
    return run_folder(context) / "vaults" / f"{partition(context):04d}"


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise MesofedError(f"Expected {name} to be text (a path, or empty); got {value!r}.")
    return value.strip()
