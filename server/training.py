"""Training a release, stage by stage: population, then experts and router, then the bank.

Each finished stage leaves its tensors and its log in ``training/r<version>``; the log is written
last, so a stage without one is trained again after a crash, and comes out the same.
"""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from server.anchors import select_anchors
from server.bank import train_bank
from server.curation import resample, user_weights
from server.experts import TrainedExperts, train_experts
from server.population import train_population
from server.private_training import PrivatelyTrained
from server.signing_keys import signer
from shared.atomic_file import write_bytes, write_json
from shared.base_model import BaseModel, load_base
from shared.cohort import Trained
from shared.config import RunConfig
from shared.corpus.user import User
from shared.embedding import EmbeddingSpace, embed_user
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.progress import stage
from shared.release import Release, pack_release, require_bounded, unpack_release
from shared.release_files import MANIFEST, read_release_files, write_release_files
from shared.retrieval import Examples, given_samples
from shared.routing import Router
from shared.run_settings import keys_folder
from shared.samples import Sample
from shared.seeding import derive_seed
from shared.signature import sign_release

# Axes of the embedding space: enough to tell a dozen groups apart, few enough that noise among a
# few dozen users does not drown them.
DIMENSIONS = 8

Tensors = dict[str, Tensor]
Log = dict[str, Any]


@dataclass(frozen=True)
class _Corpus:
    """The server's users as the stages see them.

    Attributes
    ----------
    users : sequence of User
        In a fixed order.
    samples : list of tuple of Sample
        By user: history and queries, for the server was given both.
    curated : list of tuple of Sample
        The same, weighed like the live population.
    places : Tensor, (users, k)
        In the embedding space.
    weights : Tensor, (users,)
        How much each user counts.
    """

    users: Sequence[User]
    samples: Sequence[Sequence[Sample]]
    curated: Sequence[Sequence[Sample]]
    places: Tensor
    weights: Tensor


def release_folder(run_dir: Path, version: int) -> Path:
    """Return where a release lies in a run."""
    return run_dir / "releases" / f"r{version}"


def train_release(config: RunConfig, run_dir: Path, version: int, users: Sequence[User]) -> Path:
    """Train release ``version`` on the server's users and return its folder.

    Finished stages and a finished release are read, not trained again. From the second release
    on, training goes on from the release before, with the corpus weighed by the statistics that
    the devices sent.
    """
    folder = release_folder(run_dir, version)
    if (folder / MANIFEST).exists():
        return folder
    base = load_base(config.base, config.adapt)
    training, seed = _training(run_dir, version), _seed(config, version)
    with base.lock:
        before = (
            unpack_release(read_release_files(release_folder(run_dir, version - 1)), base)
            if version > 1
            else None
        )
        embeddings = _embeddings(base, training, users)
        space = before.space if before else EmbeddingSpace.fit(embeddings, DIMENSIONS)
        examples = _examples(config)
        corpus = _corpus(base, run_dir, users, space.place(embeddings), examples, before, seed)
        # First, for without anybody to be an anchor nothing needs to be trained.
        anchors = _anchors(config, seed, corpus)
        population = _population(base, training, config, seed, corpus.curated, before)
        experts, router = _experts(base, training, config, seed, corpus, population, before)
        bank = _bank(base, training, config, seed, corpus, population, anchors)
    release = Release(
        version=version,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        population=population,
        experts=experts,
        router=router,
        bank=bank,
        anchors=corpus.places[list(anchors)],
        space=space,
        top_k=min(config.bank.top_k, len(bank)),
        temperature=config.bank.temperature,
        examples=examples,
    )
    files = sign_release(pack_release(release), signer(keys_folder(config, run_dir)))
    unpack_release(files, base)  # what devices would refuse, as values out of bounds, ends here
    write_release_files(folder, files)
    return folder


def train_population_alone(config: RunConfig, run_dir: Path, users: Sequence[User]) -> Lora:
    """Train the population LoRA of the first release on the server's users and return it.

    It is for whoever needs nothing else of a release. A release that is trained afterwards finds
    this stage finished.

    Raises
    ------
    MesofedError
        If devices would refuse it: numbers that are not finite or beyond all bounds.
    """
    base, folder = load_base(config.base, config.adapt), _training(run_dir, 1)
    with base.lock:
        samples = [given_samples(base, user, _examples(config)) for user in users]
        population = _population(base, folder, config, _seed(config, 1), samples, None)
    for key, tensor in population.tensors().items():
        require_bounded(tensor, f"{key} in the population LoRA")
    return population


def _training(run_dir: Path, version: int) -> Path:
    return run_dir / "training" / f"r{version}"


def _seed(config: RunConfig, version: int) -> int:
    return derive_seed(config.seed, "release", version)


def _examples(config: RunConfig) -> Examples:
    retrieval = config.retrieval
    return Examples(retrieval.items, retrieval.item_tokens, retrieval.tasks)


def _finished(folder: Path, name: str, train: Callable[[], tuple[Tensors, Log]]) -> Tensors:
    """Return a stage's tensors: those it left when it finished, or else train it now."""
    tensors_path, log_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not log_path.exists():
        started = time.monotonic()
        tensors, log = train()
        write_bytes(tensors_path, save(tensors))
        write_json(log_path, {"stage": name, "seconds": time.monotonic() - started, **log})
    return load_file(tensors_path)


def _embeddings(base: BaseModel, folder: Path, users: Sequence[User]) -> Tensor:
    """Return the embeddings of the server's users, (users, width)."""

    def train() -> tuple[Tensors, Log]:
        embeddings = []
        with stage("embed server users", len(users), "users") as progress:
            for user in users:
                embeddings.append(embed_user(base, user.history))
                progress.advance(1)
        return {"embeddings": torch.stack(embeddings)}, {"users": len(users)}

    return _finished(folder, "embedding", train)["embeddings"]


def _corpus(
    base: BaseModel,
    run_dir: Path,
    users: Sequence[User],
    places: Tensor,
    examples: Examples,
    before: Release | None,
    seed: int,
) -> _Corpus:
    samples = [given_samples(base, user, examples) for user in users]
    if before is None:
        return _Corpus(users, samples, samples, places, torch.ones(len(users)))
    path = run_dir / "statistics" / f"r{before.version}.json"
    mean = json.loads(path.read_text(encoding="utf-8"))["mean"]
    if mean is None:  # a secure sum that was lost, or that no honest devices made
        return _Corpus(users, samples, samples, places, torch.ones(len(users)))
    weights = user_weights(before.router(places), torch.tensor(mean["expert_weights"]))
    curated = resample(samples, weights, derive_seed(seed, "curation"))
    return _Corpus(users, samples, curated, places, weights)


def _population(
    base: BaseModel,
    folder: Path,
    config: RunConfig,
    seed: int,
    curated: Sequence[Sequence[Sample]],
    before: Release | None,
) -> Lora:
    def train() -> tuple[Tensors, Log]:
        pooled = [sample for own in curated for sample in own]
        with stage("population LoRA", _tokens([pooled]) * config.population.epochs, "tokens"):
            trained = train_population(
                base, pooled, config.population, seed, before.population if before else None
            )
        return {"rows": trained.slab.rows}, _log(trained)

    return Slab.from_rows(base.maps, _finished(folder, "population", train)["rows"]).lora(0)


def _experts(
    base: BaseModel,
    folder: Path,
    config: RunConfig,
    seed: int,
    corpus: _Corpus,
    population: Lora,
    before: Release | None,
) -> tuple[tuple[Lora, ...], Router]:
    def train() -> tuple[Tensors, Log]:
        passes = config.experts.epochs + (before is None)
        with stage("group experts + router", _tokens(corpus.curated) * passes, "tokens"):
            trained = train_experts(
                base,
                population,
                corpus.places,
                corpus.curated,
                config.experts,
                seed,
                (before.experts, before.router) if before else None,
            )
        gates = trained.router(corpus.places).tolist()
        router = {"router.weight": trained.router.weight, "router.bias": trained.router.bias}
        return {"rows": trained.slab.rows, **router}, {
            **_log(trained),
            "router": [asdict(step) for step in trained.steps],
            "gates": {user.user_id: g for user, g in zip(corpus.users, gates, strict=True)},
        }

    found = _finished(folder, "experts", train)
    experts = Slab.from_rows(base.maps, found["rows"]).loras()
    return experts, Router(found["router.weight"], found["router.bias"])


def _anchors(config: RunConfig, seed: int, corpus: _Corpus) -> tuple[int, ...]:
    """Return which of the corpus's users are the anchors."""
    return select_anchors(
        corpus.places,
        [len(user.history) for user in corpus.users],
        config.bank.anchors,
        config.bank.min_history,
        derive_seed(seed, "anchors"),
        corpus.weights.tolist(),
    )


def _bank(
    base: BaseModel,
    folder: Path,
    config: RunConfig,
    seed: int,
    corpus: _Corpus,
    population: Lora,
    chosen: Sequence[int],
) -> tuple[Lora, ...]:
    """Return the meta-LoRAs of the anchors, who are places in the corpus."""

    def train() -> tuple[Tensors, Log]:
        members = [(corpus.users[i].user_id, corpus.samples[i]) for i in chosen]
        total = _tokens([samples for _, samples in members]) * config.bank.epochs
        # In a deployment nobody may repeat the noise, not even from the configuration.
        secret = secrets.randbits(63) if config.rounds.devices else None
        with stage("meta-LoRA bank", total, "tokens"):
            trained = train_bank(
                base,
                population,
                members,
                config.bank,
                seed,
                secret,
                config.rounds.count,
            )
        return {"rows": trained.slab.rows}, {
            **_log(trained),
            "anchors": [name for name, _ in members],
            **_privacy(
                trained,
                config.bank.clip_norm,
                _NOISE_OF_SEED if secret is None else _NOISE_OF_SYSTEM,
            ),
        }

    rows = _finished(folder, "bank", train)["rows"]
    return Slab.from_rows(base.maps, rows).loras()


def _tokens(samples: Sequence[Sequence[Sample]]) -> int:
    return sum(len(sample) for own in samples for sample in own)


def _log(trained: Trained | TrainedExperts) -> Log:
    return {"tokens": trained.tokens, "curves": trained.curves}


_NOISE_OF_SEED = (
    "from the run's seed, as in every simulation: it can be repeated, and whoever knows the seed "
    "can take the noise away, so the budget below protects nobody from them"
)
_NOISE_OF_SYSTEM = "from the system's randomness, kept nowhere: it cannot be repeated"


def _privacy(trained: Trained, clip_norm: float, noise: str) -> Log:
    """Return what a private training guarantees and how, for the stage's log."""
    if not isinstance(trained, PrivatelyTrained):
        return {}
    budgets = {name: asdict(budget) for name, budget in trained.budgets.items()}
    return {
        "privacy": {
            "unit": "one sample of an anchor",
            "accountant": "dp-accounting, privacy loss distributions, Poisson sampling",
            "noise": noise,
            "clip_norm": clip_norm,
            "anchors": budgets,
        }
    }
