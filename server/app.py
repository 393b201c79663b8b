"""The Flower ServerApp: train a release, bring it to the devices, gather router statistics; again.

A round is finished when its ``statistics/r<k>.json`` is there. A run that is started anew skips
finished rounds and goes on with the first that is not. When a quorum is missed,
``missed/r<k>.json`` tells who was refused and why. In a deployment nobody else writes down what the
run is, nor shows how far it has come: then the ServerApp does.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.exchange import Exchange
from server.refusals import QuorumError
from server.round_record import (
    Record,
    RoundPrivacy,
    describe_noised,
    describe_round,
    describe_sum,
)
from server.rounds import (
    broadcast_release,
    gather_noised,
    gather_statistics,
    quorum_of,
    wait_for_devices,
)
from server.secure_round import gather_sum, new_session
from shared.atomic_file import write_json
from shared.compute import compute, use_threads
from shared.config import RunConfig, require_devices
from shared.console import output, say
from shared.errors import MesofedError
from shared.flower_internals import plain_errors
from shared.privacy import (
    calibrate,
    honest_devices,
    noise_variance,
    share_variance,
    summed_multiplier,
)
from shared.privacy_cost import cost_sentences
from shared.program import command
from shared.progress import is_shown, shown, stage
from shared.run_settings import resolve_run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run every round that is not finished yet.

    Raises
    ------
    MesofedError
        If the settings, the corpus or a release is not usable, or a round misses its quorum.
    """
    plain_errors()
    settings = resolve_run(context)
    config, run_dir = settings.config, settings.run_dir
    if is_shown():
        _run(grid, config, run_dir)
        return
    console = output()
    with shown(console):
        _run(grid, config, run_dir)
    for line in (
        f"All {config.rounds.count} rounds are done." if config.rounds.count > 1 else "Done.",
        f"Router statistics: {_statistics_file(run_dir, config.rounds.count)}",
        *cost_sentences(list(_records(run_dir, config.rounds.count))),
    ):
        console.print(line, markup=False, soft_wrap=True)
    say(console, f"Next: `{command('report', run_dir)}`")


def _run(grid: Grid, config: RunConfig, run_dir: Path) -> None:
    # The corpus and the trainer bring the deep-learning stack; a ServerApp must load without.
    from server.training import train_release
    from shared.base_model import load_base
    from shared.corpus.load import load_corpus
    from shared.corpus.split import server_users, split_users
    from shared.run_record import write_run_record

    use_threads(config.threads)
    unfinished = [k for k in range(1, config.rounds.count + 1) if not _finished(run_dir, k)]
    if not unfinished:
        return
    corpus = load_corpus(config.corpus, config.seed)
    if config.rounds.devices:
        users, devices = server_users(corpus, config.corpus, config.seed), config.rounds.devices
        require_devices(config.privacy, devices)
    else:
        people = split_users(corpus, config.corpus, config.seed)
        users, devices = people.server, len(people.device)
    if not (run_dir / "run.json").is_file():
        base = compute(lambda: load_base(config.base, config.adapt))
        write_run_record(run_dir, config, base, corpus, "deployment", ("flwr", "run"), users)
    for release in unfinished:
        folder = compute(partial(train_release, config, run_dir, release, users))
        try:
            record = run_round(grid, config, folder, release, devices)
        except QuorumError as missed:
            file = run_dir / "missed" / f"r{release}.json"
            write_json(file, missed.record())
            raise MesofedError(f"{missed} Who was refused, and why: {file}") from missed
        write_json(_statistics_file(run_dir, release), record)
        _sum_file(run_dir, release).unlink(missing_ok=True)


def run_round(grid: Grid, config: RunConfig, folder: Path, release: int, devices: int) -> Record:
    """Bring one release to the devices and gather their statistics.

    Parameters
    ----------
    folder : Path
        The release, in the run's folder.
    devices : int
        How many devices are expected; fewer may come, and the quorum counts those that came.

    Returns
    -------
    dict
        What ``statistics/r<release>.json`` holds.

    Raises
    ------
    QuorumError
        If too few devices install the release or send valid statistics.
    """
    # The release brings the deep-learning stack; a ServerApp must load without.
    from shared.release_files import read_release_files

    files = read_release_files(folder)
    manifest = json.loads(files["manifest.json"])
    deadline = config.rounds.deadline_seconds
    nodes = wait_for_devices(grid, devices, deadline)
    needed = quorum_of(config.rounds, len(nodes))
    with _progress(f"personalise, release {release}", len(nodes)) as on_reply:
        installed = broadcast_release(
            grid,
            files,
            release,
            nodes=nodes,
            needed=needed,
            deadline_seconds=deadline,
            on_reply=on_reply,
        )
    run_dir = folder.parent.parent
    experts, anchors = manifest["experts"], manifest["anchors"]
    with _progress(f"statistics, release {release}", len(installed.answers)) as on_reply:
        gather = _GATHER[config.privacy.mode]
        a_round = _Round(grid, config, run_dir, release, installed, needed, experts, anchors)
        try:
            return gather(a_round, on_reply)
        except QuorumError as missed:
            raise missed.after(installed.refused, installed.stray) from None


@dataclass(frozen=True)
class _Round:
    """A round whose release is installed."""

    grid: Grid
    config: RunConfig
    run_dir: Path
    release: int
    installed: Exchange[None]
    needed: int
    experts: int
    anchors: int

    @property
    def multiplier(self) -> float:
        """The noise multiplier that the budget asks for."""
        privacy = self.config.privacy
        return calibrate(privacy.epsilon, privacy.delta, self.config.budget_rounds)

    def privacy(self, multiplier: float, variance: int) -> RoundPrivacy:
        """Return the round's noise, after that of the rounds before."""
        records = _records(self.run_dir, self.release - 1)
        before = tuple(record["privacy"]["noise_multiplier"] for _, record in records)
        return RoundPrivacy(self.config.privacy, multiplier, variance, before)


OnReply = Callable[[int], None]


def _gather_plain(a_round: _Round, on_reply: OnReply) -> Record:
    gathered = gather_statistics(
        a_round.grid,
        a_round.release,
        experts=a_round.experts,
        anchors=a_round.anchors,
        nodes=tuple(a_round.installed.answers),
        needed=a_round.needed,
        deadline_seconds=a_round.config.rounds.deadline_seconds,
        on_reply=on_reply,
    )
    return describe_round(a_round.installed, gathered)


def _gather_noised(a_round: _Round, on_reply: OnReply) -> Record:
    multiplier = a_round.multiplier
    gathered = gather_noised(
        a_round.grid,
        a_round.release,
        multiplier,
        experts=a_round.experts,
        anchors=a_round.anchors,
        nodes=tuple(a_round.installed.answers),
        needed=a_round.needed,
        deadline_seconds=a_round.config.rounds.deadline_seconds,
        on_reply=on_reply,
    )
    privacy = a_round.privacy(multiplier, noise_variance(multiplier))
    return describe_noised(a_round.installed, gathered, a_round.experts, privacy)


def _gather_sum(a_round: _Round, on_reply: OnReply) -> Record:
    settings, length = a_round.config.privacy, a_round.experts + a_round.anchors + 2
    multiplier = a_round.multiplier
    needed = max(a_round.needed, settings.minimum_devices)
    summed = gather_sum(
        a_round.grid,
        _sum_file(a_round.run_dir, a_round.release),
        lambda: new_session(
            a_round.grid.run.run_id, a_round.release, multiplier, needed=needed, length=length
        ),
        nodes=tuple(a_round.installed.answers),
        deadline_seconds=a_round.config.rounds.deadline_seconds,
        on_reply=on_reply,
    )
    honest = honest_devices(summed.needed, summed.joined, settings.honest_share)
    variance = share_variance(multiplier, honest)
    privacy = a_round.privacy(summed_multiplier(variance, honest, length), variance)
    return describe_sum(a_round.installed, summed, a_round.experts, privacy)


_GATHER = {"off": _gather_plain, "local": _gather_noised, "central": _gather_sum}


def _statistics_file(run_dir: Path, release: int) -> Path:
    return run_dir / "statistics" / f"r{release}.json"


def _records(run_dir: Path, count: int) -> Iterator[tuple[int, Record]]:
    """Go through the records of the first rounds."""
    for release in range(1, count + 1):
        yield release, json.loads(_statistics_file(run_dir, release).read_text(encoding="utf-8"))


def _sum_file(run_dir: Path, release: int) -> Path:
    """Return where a secure sum waits; it goes when the round's record is written."""
    return run_dir / "sums" / f"r{release}.json"


def _finished(run_dir: Path, release: int) -> bool:
    return _statistics_file(run_dir, release).is_file()


@contextmanager
def _progress(name: str, devices: int) -> Iterator[Callable[[int], None]]:
    done = 0
    with stage(name, devices, "devices") as progress:

        def on_reply(replies: int) -> None:
            nonlocal done
            progress.advance(replies - done)
            done = replies

        yield on_reply
