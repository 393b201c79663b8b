"""The row on a whole round: sixteen devices personalise, against one PEFT model a client on Ray."""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from client.app import app as client_app
from client.personalize import begin_personalising, route
from client.vault import Vault
from server.app import run_round
from server.signing_keys import signer
from shared.atomic_file import write_text
from shared.base_model import BaseModel, load_base
from shared.compute import compute
from shared.config import BaseConfig, RunConfig, dump_config
from shared.corpus.load import load_corpus
from shared.corpus.split import split_users
from shared.corpus.user import User
from shared.embedding import EmbeddingSpace
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.methods import METHODS
from shared.progress import shown
from shared.release import Release, pack_release
from shared.release_files import write_release_files
from shared.routing import Router
from shared.run_settings import keys_folder
from shared.samples import history_samples
from shared.seeding import derive_seed
from shared.signature import sign_release
from shared.training import Trainee, batches_of, learning_rate
from simulations.benchmarks import ray_peer
from simulations.benchmarks.equality import FP32_OUTPUTS
from simulations.benchmarks.measurement import (
    Bar,
    Equality,
    Figure,
    Finding,
    Settings,
    checked,
    ratios,
)
from simulations.benchmarks.workload import started_slab
from simulations.local_grid import run_local
from simulations.ray_engine import run_on_ray

DEVICES, HISTORY, EPOCHS, METHOD, RELEASE = 16, 4, 2, "oppu", 1
# Ours is in bf16 where that is fast, the peer in fp32; the losses of a short training stay so
# close, relatively.
BF16_LOSSES = 0.05
# One round of the peer takes as long as all rounds of another row.
ROUNDS_EACH = 3


def round_of_devices(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Send out a release, train every device's user LoRA on it, gather all answers."""
    if find_spec("ray") is None:
        return Finding(skipped="the peer needs Ray: pip install 'mesofed[ray]'")
    if torch.cuda.is_available():
        return Finding(skipped="Ray's workers get no GPU here, so the peer would run on the CPU")
    config = run_config(settings)
    people = split_users(load_corpus(config.corpus, config.seed), config.corpus, config.seed).device
    release, clients, equality = compute(lambda: prepare(config, people))
    ours: list[float] = []
    theirs: list[float] = []
    starts: list[float] = []
    differences: list[float] = []
    for _ in range(max(1, settings.rounds // ROUNDS_EACH)):
        with tempfile.TemporaryDirectory(prefix="mesofed-") as name:
            folder = Path(name)
            ray_peer.write_work(folder, clients)
            seconds, start, expected = peer_round(release.population, folder, settings.threads)
            theirs.append(seconds)
            starts.append(start)
            seconds, losses = our_round(config, release, folder)
            ours.append(seconds)
            differences.append(largest_difference(losses, expected))
        on_round()
    equalities = (
        equality,
        checked("losses of all devices", max(differences), BF16_LOSSES),
    )
    share = statistics.median(s / t for s, t in zip(starts, theirs, strict=True))
    working = tuple(t - s for s, t in zip(starts, theirs, strict=True))
    what = f"round of {DEVICES} devices, end to end"
    return Finding(
        (
            Figure(
                what,
                "PEFT, Flower on Ray",
                ratios(tuple(theirs), tuple(ours)),
                Bar(5.0, at_least=True),
            ),
            Figure(
                f"  without Ray's start ({share:.0%})",
                "PEFT, Flower on Ray",
                ratios(working, tuple(ours)),
            ),
        ),
        equalities,
        {"local engine": tuple(ours), "Ray": tuple(theirs), "start of Ray": tuple(starts)},
        {"start_share": share, "tokens": sum(_tokens(work) for work in clients)},
    )


def run_config(settings: Settings) -> RunConfig:
    """Return the configuration of the run: the defaults, but for its size."""
    return RunConfig.model_validate(
        {
            "threads": settings.threads,
            "methods": [METHOD],
            "base": {"name": settings.model},
            "private": {"epochs": EPOCHS, "holdout": 0.0},  # nobody stops early
            "corpus": {
                "server_users": 2,
                "device_users": DEVICES,
                "max_history": HISTORY,
                "max_queries": 1,
            },
        }
    )


def prepare(
    config: RunConfig, people: Sequence[User]
) -> tuple[Release, list[ray_peer.ClientWork], Equality]:
    """Return the release, each client's work, and that one client's losses are the device's.

    Raises
    ------
    MesofedError
        If they are not.
    """
    exact = load_base(config.base.model_copy(update={"format": "fp32"}), config.adapt)
    release = release_for(exact)
    clients = [work_of(config, exact, person) for person in people]
    first, seed = people[0], _seed(config, people[0])
    ours = begin_personalising(
        exact,
        release,
        METHODS[METHOD],
        route(release, torch.ones(exact.width)),
        tuple(history_samples(exact, first.history)),
        config.private,
        seed,
    )()
    theirs = ray_peer.train_client(clients[0], release.population.tensors())
    difference = largest_difference([[loss for _, loss in ours.curve]], [theirs])
    return release, clients, checked("losses of one device (fp32)", difference, FP32_OUTPUTS)


def release_for(base: BaseModel) -> Release:
    """Return a release whose population LoRA is in mid-training; the rest is as small as can be."""
    population = started_slab(base, 8, 1).to(torch.float32, torch.device("cpu")).lora(0)
    first, second, third = Slab.zeros(base.maps, 1, 3).loras()
    return Release(
        version=RELEASE,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        population=population,
        experts=(first, second),
        router=Router(torch.zeros(1, 2), torch.zeros(2)),
        bank=(third,),
        anchors=torch.ones(1, 1),
        space=EmbeddingSpace(torch.zeros(base.width), torch.eye(base.width, 1)),
        top_k=1,
        temperature=1.0,
    )


def work_of(config: RunConfig, base: BaseModel, person: User) -> ray_peer.ClientWork:
    """Return a client's work: the very batches, rates and start of our device."""
    private, seed = config.private, _seed(config, person)
    trainee = Trainee(METHOD, tuple(history_samples(base, person.history)), seed)
    batches = batches_of(trainee, private)
    return ray_peer.ClientWork(
        model=config.base.name,
        rank=private.rank,
        start_seed=derive_seed(seed, "start"),
        weight_decay=private.weight_decay,
        clip_norm=private.clip_norm,
        rates=[learning_rate(private, step, len(batches)) for step in range(len(batches))],
        batches=[[(list(s.prompt), list(s.answer)) for s in batch] for batch in batches],
    )


def our_round(config: RunConfig, release: Release, folder: Path) -> tuple[float, list[list[float]]]:
    """Run the round on the local engine; return its seconds and each device's losses."""
    write_text(folder / "config.toml", dump_config(config))
    files = folder / "releases" / f"r{RELEASE}"
    signed = sign_release(pack_release(release), signer(keys_folder(config, folder)))
    write_release_files(files, signed)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_round(grid, config, files, RELEASE, DEVICES)

    # Another model takes its place, so that loading the base model is part of the round.
    compute(lambda: load_base(BaseConfig(name="tiny", top_layers=1), ("q_proj",)))
    started = time.perf_counter()
    with shown(Console(quiet=True)):
        run_local(app, client_app, folder, DEVICES)
    seconds = time.perf_counter() - started
    losses = []
    for device in range(DEVICES):
        trained = Vault(folder / "vaults" / f"{device:04d}").load_private(RELEASE, METHOD)
        assert trained is not None
        losses.append([float(loss) for _, loss in trained[1]["curve"]])
    return seconds, losses


def peer_round(
    population: Lora, folder: Path, workers: int
) -> tuple[float, float, list[list[float]]]:
    """Run the peer's round on Ray; return its seconds, those before work began, and the losses.

    Parameters
    ----------
    workers : int
        Worker processes of one core each, as many as our side has threads; 0: one per core.
    """
    answers: dict[int, list[float]] = {}
    times: list[float] = []
    server = ray_peer.server_of(population.tensors(), DEVICES, answers, times)
    began, started = time.time(), time.perf_counter()
    run_on_ray(server, ray_peer.client, folder, DEVICES, workers)
    seconds = time.perf_counter() - started
    return seconds, min(times) - began, [answers[device] for device in range(DEVICES)]


def largest_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Return the largest relative difference between the losses of a device's steps."""
    return max(
        abs(a - b) / b
        for own, other in zip(ours, theirs, strict=True)
        for a, b in zip(own, other, strict=True)
    )


def _seed(config: RunConfig, person: User) -> int:
    """Return the seed of a device's training, as the device derives it."""
    return derive_seed(config.seed, "private", METHOD, person.user_id, RELEASE)


def _tokens(work: ray_peer.ClientWork) -> int:
    return sum(len(p) + len(a) for batch in work.batches for p, a in batch)
