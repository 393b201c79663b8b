"""PROPER, faithful (arXiv 2503.01303): experts gated by token and user, then a LoRA-aware router.

Experts and user LoRAs are on the feed-forward maps, over the population LoRA. ``proper`` has a
user embedding from content, so that people whom the server has never seen have one;
``proper-ids`` has the published table of trained ids: only people on whose data the server
trained have an id, so it exists in the centralized setting alone.

The gates look at every token, so nothing of this folds into a LoRA; ``proper-folded`` does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client.evaluation import evaluate_stacks
from client.personalize import Personalised, parts_of
from shared.base_model import BaseModel
from shared.corpus.user import User
from shared.lora.slab import Slab
from shared.progress import stage, under_way
from shared.samples import history_samples
from shared.training import Trainee
from simulations.baselines.gated_layer import adding
from simulations.baselines.proper_layer import (
    from_tensors,
    to_tensors,
    with_lora_router,
)
from simulations.baselines.proper_training import (
    Embeddings,
    Groups,
    Trained,
    content_embeddings,
    inference,
    on_feed_forward,
    standardised,
    train_groups,
    train_lora_router,
    train_user_loras,
)
from simulations.comparison.contender import (
    TRAINING,
    Answered,
    Contender,
    Outcome,
    people_at_once,
)
from simulations.comparison.scene import Scene
from simulations.comparison.timing import added_milliseconds
from simulations.comparison.traffic import BYTES, Traffic, lora_bytes


@dataclass(frozen=True)
class Stages:
    """PROPER in one scene, stage by stage; every stage is kept in the scene's folder."""

    scene: Scene
    name: str

    @property
    def base(self) -> BaseModel:
        """The base model, with LoRAs on feed-forward maps."""
        return on_feed_forward(self.scene.base)

    @property
    def ids(self) -> bool:
        """Whether user embeddings are a trained table."""
        return self.name == "proper-ids"

    def embeddings(self, slice_name: str, groups: Groups) -> Embeddings:
        """Return content embeddings of the users of a slice."""
        population = self.scene.foundation.population
        return self.scene.finished(
            f"proper-embeddings-{slice_name}",
            lambda: content_embeddings(self.base, population, groups),
        )

    def server_embeddings(self) -> Embeddings:
        """Return content embeddings of the server's users, from their histories."""
        histories = [history_samples(self.base, user.history) for user in self.scene.server]
        return self.embeddings("server", histories)

    def groups(self) -> Trained:
        """Return what stage 2 leaves."""
        scene, config = self.scene, self.scene.config.proper
        known = None
        if not self.ids:
            known = standardised(self.server_embeddings(), self.server_embeddings())

        def make() -> dict[str, Tensor]:
            total = config.epochs * _tokens(scene.server_samples)
            with stage(f"{self.name}: gated experts", total, "tokens"):
                trained = train_groups(
                    self.base,
                    scene.foundation.population,
                    scene.server_samples,
                    known,
                    config,
                    scene.seed,
                )
            table = {f"id/{name}": own for name, own in trained.table.items()}
            return to_tensors(trained.experts, trained.gates) | table

        kept = scene.finished(f"{self.name}-groups", make)
        experts, gates = from_tensors(self.base.maps, kept)
        table = {
            name.removeprefix("id/"): own for name, own in kept.items() if name.startswith("id/")
        }
        return Trained(experts, gates, table)

    def server_loras(self, groups: Trained) -> Slab:
        """Return the server users' own LoRAs, on which the LoRA-aware router is trained."""
        scene, config = self.scene, self.scene.config.proper
        own = groups.table or standardised(self.server_embeddings(), self.server_embeddings())

        def make() -> dict[str, Tensor]:
            trainees = [
                Trainee(user.user_id, samples, scene.private_seed(user))
                for user, samples in zip(scene.server, scene.server_samples, strict=True)
            ]
            total = config.user_epochs * _tokens(scene.server_samples)
            with stage(f"{self.name}: server users' LoRAs", total, "tokens"):
                slab, _ = train_user_loras(
                    self.base, scene.foundation.population, groups, own, trainees, config
                )
            return {"rows": slab.rows}

        kept = scene.finished(f"{self.name}-server-loras", make)
        return Slab.from_rows(self.base.maps, kept["rows"])

    def lora_router(self, groups: Trained) -> dict[str, Tensor]:
        """Return what stage 3.2 leaves, by map."""
        scene, config = self.scene, self.scene.config.proper

        def make() -> dict[str, Tensor]:
            users = self.server_loras(groups)
            total = config.lora_router_epochs * _tokens(scene.server_samples)
            with stage(f"{self.name}: LoRA-aware router", total, "tokens"):
                return train_lora_router(
                    self.base,
                    scene.foundation.population,
                    groups,
                    users,
                    scene.server_samples,
                    config,
                    scene.seed,
                )

        return scene.finished(f"{self.name}-lora-router", make)

    def people_embeddings(self, groups: Trained) -> Embeddings:
        """Return the embeddings of those who are asked.

        Raises
        ------
        KeyError
            If embeddings are trained ids and somebody has none.
        """
        scene = self.scene
        if not self.ids:
            found = self.embeddings(scene.slice, scene.histories)
            return standardised(found, self.server_embeddings())
        place = {user.user_id: index for index, user in enumerate(scene.server)}
        index = [place[user.user_id] for user in scene.people]
        return {name: table[index] for name, table in groups.table.items()}


def _tokens(groups: Groups) -> int:
    return sum(len(sample) for own in groups for sample in own)


def _answer(scene: Scene, name: str) -> Answered:
    stages = Stages(scene, name)
    base, config = stages.base, scene.config.proper
    with base.lock:
        groups = stages.groups()
        router = stages.lora_router(groups)
        embeddings = stages.people_embeddings(groups)
        final = replace(groups, gates=with_lora_router(groups.gates, router))
        population, rows, stacks = scene.foundation.population, [], []
        for user, person in enumerate(scene.people):
            trainee = Trainee(person.user_id, scene.histories[user], scene.private_seed(person))
            own = {key: table[user : user + 1] for key, table in embeddings.items()}
            started = time.monotonic()
            slab, curves = train_user_loras(base, population, groups, own, [trainee], config)
            rows.append(slab.rows[0])
            stacks.append(
                Personalised(
                    (population,),
                    torch.ones(1),
                    curve=tuple(curves[0]),
                    tokens=config.user_epochs * _tokens([trainee.samples]),
                    seconds=time.monotonic() - started,
                )
            )
            under_way(TRAINING)
        users = Slab(base.maps, config.rank, torch.stack(rows))
        added = added_milliseconds(
            base, parts_of(base, stacks[:1]), inference(base, final, _of(users, [0]))
        )
        outcomes: dict[int, Outcome] = {}
        for batch in _batches(scene.people, people_at_once(base.device)):
            with adding(base, inference(base, final, _of(users, batch))):
                found = evaluate_stacks(
                    base, [scene.people[u] for u in batch], [stacks[u] for u in batch]
                )
            outcomes |= dict(zip(batch, found, strict=True))
            under_way((1 - TRAINING) * len(batch))
    private = BYTES * Slab.parameters(base.maps, config.rank)
    return Answered(
        [{**outcomes[user], "private_bytes": private} for user in range(len(stacks))], added
    )


def _of(users: Slab, index: list[int]) -> Slab:
    return Slab(users.maps, users.rank, users.rows[index])


def _batches(people: Sequence[User], size: int) -> list[list[int]]:
    """Return who is asked at once: people with queries of the same tasks, so many at most.

    The gates of a batch are laid over every task's questions, in the order of the batch.
    """
    alike: dict[frozenset[str], list[int]] = {}
    for index, person in enumerate(people):
        alike.setdefault(frozenset(query.task for query in person.queries), []).append(index)
    return [
        own[start : start + size] for own in alike.values() for start in range(0, len(own), size)
    ]


def _traffic(scene: Scene) -> Traffic:
    config = scene.config.proper
    maps = on_feed_forward(scene.base).maps
    experts = config.count * Slab.parameters(maps, config.rank)
    routers = config.count * sum(2 * m.in_features + m.out_features for m in maps)
    centre = sum(m.in_features for m in maps)
    down = lora_bytes(scene.foundation.population) + BYTES * (experts + routers + centre)
    return Traffic(down, 0)


PROPERS = (
    Contender(
        "proper",
        "as published: token and user gates, constraint, LoRA-aware router; content embedding",
        lambda scene: _answer(scene, "proper"),
        traffic=_traffic,
    ),
    Contender(
        "proper-ids",
        "proper with the published table of trained user ids",
        lambda scene: _answer(scene, "proper-ids"),
        settings=("centralized",),
    ),
)
