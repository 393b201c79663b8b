"""The Flower ServerApp: train a release, bring it to the devices, gather router statistics; again.

A round is finished when its ``statistics/r<k>.json`` is there. A run that is started anew skips
finished rounds and goes on with the first that is not. In a deployment nobody else writes down
what the run is, nor shows how far it has come: then the ServerApp does.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import (
    Exchange,
    broadcast_release,
    gather_statistics,
    quorum_of,
    wait_for_devices,
)
from shared.atomic_file import write_json
from shared.compute import compute, use_threads
from shared.config import RunConfig
from shared.console import output
from shared.program import command
from shared.progress import is_shown, shown, stage
from shared.protocol import RouterStatistics
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
        f"Next: {command('report', run_dir)}",
    ):
        console.print(line, markup=False, soft_wrap=True)


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
    else:
        people = split_users(corpus, config.corpus, config.seed)
        users, devices = people.server, len(people.device)
    if not (run_dir / "run.json").is_file():
        base = compute(lambda: load_base(config.base, config.adapt))
        write_run_record(run_dir, config, base, corpus, "deployment", ("flwr", "run"), users)
    for release in unfinished:
        folder = compute(partial(train_release, config, run_dir, release, users))
        statistics = run_round(grid, config, folder, release, devices)
        write_json(_statistics_file(run_dir, release), statistics)


def run_round(
    grid: Grid, config: RunConfig, folder: Path, release: int, devices: int
) -> dict[str, Any]:
    """Bring one release to the devices and gather their statistics.

    Parameters
    ----------
    folder : Path
        The release.
    devices : int
        How many devices are expected; fewer may come, and the quorum counts those that came.

    Returns
    -------
    dict
        What ``statistics/r<release>.json`` holds.

    Raises
    ------
    MesofedError
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
    with _progress(f"statistics, release {release}", len(installed.answers)) as on_reply:
        gathered = gather_statistics(
            grid,
            release,
            experts=manifest["experts"],
            anchors=manifest["anchors"],
            nodes=tuple(installed.answers),
            needed=needed,
            deadline_seconds=deadline,
            on_reply=on_reply,
        )
    return describe_round(installed, gathered)


def describe_round(
    installed: Exchange[None], gathered: Exchange[RouterStatistics]
) -> dict[str, Any]:
    """Return the record of a round, devices in the order of their node ids.

    The means are taken over the devices that answered, exactly rounded, so that they do not
    depend on the order in which an engine numbers its nodes.
    """
    answers = list(gathered.answers.values())
    return {
        "asked": len(installed.asked),
        "answered": len(answers),
        "refused": [
            {"node": entry.node, "reason": entry.reason}
            for entry in sorted((*installed.refused, *gathered.refused), key=lambda e: e.node)
        ],
        "devices": [
            {
                "node": node,
                "bytes_down": installed.bytes_down[node] + gathered.bytes_down[node],
                "bytes_up": installed.bytes_up[node] + gathered.bytes_up[node],
                "statistics": {
                    "release": statistics.release,
                    "expert_weights": list(statistics.expert_weights),
                    "anchor_weights": list(statistics.anchor_weights),
                    "best_similarity": statistics.best_similarity,
                    "entropy": statistics.entropy,
                },
            }
            for node, statistics in gathered.answers.items()
        ],
        "mean": {
            "expert_weights": _mean([s.expert_weights for s in answers]),
            "anchor_weights": _mean([s.anchor_weights for s in answers]),
        },
    }


def _mean(rows: list[tuple[float, ...]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _statistics_file(run_dir: Path, release: int) -> Path:
    return run_dir / "statistics" / f"r{release}.json"


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
