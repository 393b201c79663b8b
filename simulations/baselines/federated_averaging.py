"""Federated training in which what devices learn leaves them: FedIT, FLoRA, FedDPA.

    fedavg-lora    everyone trains the global LoRA; the server averages A and B apart (FedIT,
                   arXiv 2305.05644)
    flora          everyone trains a LoRA over the global one; the server lays them side by side,
                   weighed, which is their exact average (FLoRA, arXiv 2409.05976)
    fedavg-local   fedavg-lora, then an own LoRA over it that stays (as FedDPA-F, arXiv 2403.19211)

All start from the population LoRA of the server corpus; the devices are the people who are asked,
all of them in every round. A client's weight is its share of the samples.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from client.personalize import Personalised
from shared.base_model import BaseModel
from shared.cohort import FusionWeights, train_cohort
from shared.lora.algebra import concatenate, fuse
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.methods import METHODS
from shared.progress import stage
from shared.seeding import derive_seed
from shared.training import Trainee
from simulations.comparison.config import AveragingConfig
from simulations.comparison.contender import Answered, Contender, evaluated, personalised
from simulations.comparison.scene import Scene
from simulations.comparison.traffic import Traffic, lora_bytes


def shares(trainees: Sequence[Trainee]) -> Tensor:
    """Return each client's share of all samples, (clients,)."""
    counts = torch.tensor([float(len(trainee.samples)) for trainee in trainees])
    return counts / counts.sum()


def averaged_apart(locals_: Slab, weights: Tensor) -> Lora:
    """Return the average of clients' factors, A and B apart (FedAvg on LoRA parameters)."""
    return Slab(locals_.maps, locals_.rank, (weights @ locals_.rows)[None]).lora(0)


def laid_side_by_side(before: Lora, locals_: Slab, weights: Tensor) -> Lora:
    """Return the global LoRA with the exact average of the clients' LoRAs on top."""
    return concatenate([before, fuse(locals_.loras(), weights)])


def _clients(scene: Scene, round_: int) -> list[Trainee]:
    return [
        Trainee(user.user_id, history, derive_seed(scene.private_seed(user), "round", round_))
        for user, history in zip(scene.people, scene.histories, strict=True)
    ]


@dataclass(frozen=True)
class AveragingRound:
    """One round of FedIT.

    Attributes
    ----------
    uploads : Slab
        What everyone sends to the server: the global LoRA as it has become, a row a client.
    average : Lora
        The next global LoRA.
    """

    uploads: Slab
    average: Lora


def averaging_rounds(
    base: BaseModel,
    clients: Callable[[int], Sequence[Trainee]],
    start: Lora,
    config: AveragingConfig,
) -> Iterator[AveragingRound]:
    """Train by FedIT, round by round.

    Parameters
    ----------
    clients : callable
        Who trains, and on what, by the number of the round from 0.
    start : Lora
        The first global LoRA.
    """
    for round_ in range(config.rounds):
        taking_part = clients(round_)
        rows = Slab.of(base.maps, [start] * len(taking_part))
        uploads = _local_round(base, taking_part, rows, None, config)
        average = averaged_apart(uploads, shares(taking_part))
        yield AveragingRound(uploads, average)
        start = average


def _local_round(
    base: BaseModel,
    clients: Sequence[Trainee],
    start: Slab,
    below: Lora | None,
    config: AveragingConfig,
) -> Slab:
    total = config.epochs * sum(len(s) for client in clients for s in client.samples)
    fusion = FusionWeights((below,), torch.ones(len(clients), 1)) if below is not None else None
    with stage("local round", total, "tokens"), base.lock:
        return train_cohort(base, clients, start, config, fusion).slab


def _fedavg(scene: Scene) -> tuple[Lora, float]:
    """Return the global LoRA after all rounds of FedIT, and the seconds that each person spent."""
    maps = scene.base.maps

    def make() -> dict[str, Tensor]:
        found, started = scene.foundation.population, time.monotonic()
        config = scene.config.averaging
        for done in averaging_rounds(scene.base, partial(_clients, scene), found, config):
            found = done.average
        return {"rows": Slab.of(maps, [found]).rows, "seconds": _each(scene, started)}

    kept = scene.finished(f"fedavg-{scene.slice}", make)
    return Slab.from_rows(maps, kept["rows"]).lora(0), float(kept["seconds"])


def _flora(scene: Scene) -> tuple[Lora, float]:
    """Return the global LoRA after all rounds of FLoRA, and the seconds that each person spent.

    Its rank has grown with every client and round.
    """
    maps, config = scene.base.maps, scene.config.averaging

    def make() -> dict[str, Tensor]:
        found, started = scene.foundation.population, time.monotonic()
        for round_ in range(config.rounds):
            clients = _clients(scene, round_)
            seeds = [derive_seed(client.seed, "start") for client in clients]
            start = Slab.initial(maps, config.rank, seeds)
            uploads = _local_round(scene.base, clients, start, found, config)
            found = laid_side_by_side(found, uploads, shares(clients))
        return {**found.tensors(), "seconds": _each(scene, started)}

    kept = scene.finished(f"flora-{scene.slice}", make)
    seconds = float(kept.pop("seconds"))
    return Lora.from_tensors(kept), seconds


def _each(scene: Scene, started: float) -> Tensor:
    """Return each person's share of the seconds since a time."""
    return torch.tensor((time.monotonic() - started) / len(scene.people))


def _spent(scene: Scene, stacks: Sequence[Personalised], seconds: float) -> list[Personalised]:
    """Count the tokens and seconds of all rounds to each person's training."""
    rounds = scene.config.averaging.rounds * scene.config.averaging.epochs
    return [
        replace(
            stack,
            tokens=stack.tokens + rounds * sum(map(len, history)),
            seconds=stack.seconds + seconds,
        )
        for stack, history in zip(stacks, scene.histories, strict=True)
    ]


def _answer_global(scene: Scene, trained: tuple[Lora, float]) -> Answered:
    found, seconds = trained
    stack = Personalised((found,), torch.ones(1))
    return evaluated(scene, _spent(scene, [stack] * len(scene.people), seconds))


def _answer_local(scene: Scene) -> Answered:
    found, seconds = _fedavg(scene)
    own = personalised(scene, METHODS["oppu"], replace(scene.foundation, population=found))
    return evaluated(scene, _spent(scene, own, seconds))


def _fedavg_traffic(scene: Scene) -> Traffic:
    size = lora_bytes(scene.foundation.population)
    rounds = scene.config.averaging.rounds
    return Traffic(size * (rounds + 1), size * rounds)


def _flora_traffic(scene: Scene) -> Traffic:
    config, maps = scene.config.averaging, scene.base.maps
    one = 4 * Slab.parameters(maps, config.rank)
    down = lora_bytes(scene.foundation.population) + config.rounds * len(scene.people) * one
    return Traffic(down, config.rounds * one)


_UPDATES = "a LoRA update every round"

FEDERATED = (
    Contender(
        "fedavg-lora",
        "FedIT: the population LoRA trained on by the devices, averaged by factors",
        lambda scene: _answer_global(scene, _fedavg(scene)),
        _UPDATES,
        traffic=_fedavg_traffic,
        settings=("federated",),
    ),
    Contender(
        "flora",
        "FLoRA: devices' LoRAs laid side by side over the population LoRA",
        lambda scene: _answer_global(scene, _flora(scene)),
        _UPDATES,
        traffic=_flora_traffic,
        settings=("federated",),
    ),
    Contender(
        "fedavg-local",
        "fedavg-lora, then an own LoRA over it",
        _answer_local,
        _UPDATES,
        traffic=_fedavg_traffic,
        settings=("federated",),
    ),
)
