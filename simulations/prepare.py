"""Before a federation runs: everything that can be refused is refused, then it is written down.

Nothing here needs the deep-learning stack until settings, folder, engine and corpus are found to
be right, so that what is wrong is said at once and leaves nothing behind.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.compute import compute
from shared.config import RunConfig, load_config, require_anchor, require_devices
from shared.console import notices, say
from shared.corpus.load import Corpus, load_corpus
from shared.corpus.split import Split, split_users
from shared.errors import MesofedError
from shared.program import command
from shared.progress import stage
from shared.run_record import RUN_FORMAT, write_run_record
from simulations.report.read import read_record

if TYPE_CHECKING:
    from shared.base_model import BaseModel


def open_run(run_dir: Path) -> RunConfig:
    """Return the configuration of a run that has been prepared.

    Raises
    ------
    MesofedError
        If the folder is not a run.
    """
    if not (run_dir / "config.toml").is_file():
        hint = "Name the folder that was printed when it began."
        if (run_dir / "comparison.toml").is_file():
            line = command("compare", "--resume", run_dir)
            hint = f"It is a comparison; its results are printed by: `{line}`"
        raise MesofedError(
            f"Expected a run in {run_dir}, with its config.toml; there is none. {hint}"
        )
    return load_config(run_dir / "config.toml")


def resume_run(run_dir: Path) -> RunConfig:
    """Return the configuration of a simulation that is to go on.

    Raises
    ------
    MesofedError
        If the folder is not a run, is one of a deployment or of a version that answers otherwise,
        or its engine is not installed.
    """
    config, record = open_run(run_dir), read_record(run_dir)
    if record.get("kind") == "deployment":
        raise MesofedError(
            f"Expected a simulation in {run_dir}; it is a run of a deployment, whose devices are "
            f"not here. Continue it with `flwr run` and the same run-dir, or look at it with "
            f"`{command('report', run_dir)}`."
        )
    made = record.get("run_format", 1)
    if made != RUN_FORMAT:
        raise MesofedError(
            f"Expected a run of format {RUN_FORMAT} in {run_dir}; it is of format {made}, and its "
            "devices would answer in two ways. Begin a new one, or go on with the version that "
            f"began it. What it has measured is printed by `{command('report', run_dir)}`."
        )
    require_engine(config.engine)
    return config


def check_run(config: RunConfig, run_dir: Path) -> tuple[Corpus, Split]:
    """Check that a new run can be made in a folder; return its people.

    Raises
    ------
    MesofedError
        If the folder holds another run, the settings are for a deployment, the engine is not
        installed, the corpus cannot be used, nobody could be an anchor, or a secure sum would have
        too few devices.
    """
    if (run_dir / "config.toml").exists():
        raise MesofedError(
            f"{run_dir} holds a run already. Continue it with "
            f"`{command('simulate', '--resume', run_dir)}`, or name another folder with --out."
        )
    if config.rounds.devices:
        raise MesofedError(
            f"Expected rounds.devices=0 in a simulation, whose devices come from the corpus; got "
            f"{config.rounds.devices}. Set corpus.device_users instead."
        )
    require_engine(config.engine)
    corpus = load_corpus(config.corpus, config.seed)
    people = split_users(corpus, config.corpus, config.seed)
    require_devices(config.privacy, len(people.device))
    require_anchor(config.bank.min_history, [len(user.history) for user in people.server])
    return corpus, people


def require_engine(engine: str) -> None:
    """Refuse an engine that is not installed."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise MesofedError(
            "Expected Ray for engine=ray; it is not installed. In a clone, run "
            "`.venv/bin/pip install -c constraints.txt -e '.[ray]'`; where Mesofed was installed "
            "as a wheel, `pip install 'mesofed[ray]'`. Or leave out engine=ray: the local engine "
            "gives the same results."
        )


def load_model(config: RunConfig) -> "BaseModel":
    """Load the base model, which stays resident; the first time, all libraries of a run too."""
    with stage(f"load {config.base.name}", 1, "model"):
        import simulations.federated  # noqa: F401 - takes seconds, which belong to this stage
        from shared.base_model import load_base

        return compute(lambda: load_base(config.base, config.adapt))


def prepare(config: RunConfig, run_dir: Path, called: Sequence[str]) -> "BaseModel":
    """Check that the run can be made, and write what it is; return the base model.

    Parameters
    ----------
    called : sequence of str
        The command, for the record.

    Raises
    ------
    MesofedError
        As :func:`check_run`, or if the base model cannot be used.
    """
    corpus, people = check_run(config, run_dir)
    if corpus.skipped:
        first, check = corpus.skipped[0], command("data", "check", config.corpus.path)
        say(
            notices(),
            f"Left out of the corpus: {len(corpus.skipped):,}, the first at {first.where}: "
            f"{first.reason}. The report has all of them, and so has `{check}`.",
        )
    base = load_model(config)
    write_run_record(
        run_dir, config, base, corpus, "simulation", called, people.server, people.device
    )
    return base
