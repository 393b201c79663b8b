"""Personalisation on the device: compose the shared parts, then train the private one.

y = W x + B_p A_p x + sum_e g_e B_e A_e x + sum_k f_k B_k A_k x + b a x
population    routed experts        fused anchors         private
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.config import PrivateConfig
from shared.lora.algebra import concatenate, fuse
from shared.lora.layer import Parts, expand_weights
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.methods import Method
from shared.release import Release
from shared.routing import Retrieval, retrieve
from shared.samples import Sample
from shared.seeding import derive_seed
from shared.training import FusionWeights, Trainee, train_cohort


@dataclass(frozen=True)
class Routing:
    """Where a person stands among the release's experts and anchors.

    Attributes
    ----------
    experts : Tensor, (experts,)
        Router weights.
    retrieval : Retrieval
        The nearest anchors.
    """

    experts: Tensor
    retrieval: Retrieval


def route(release: Release, embedding: Tensor) -> Routing:
    """Route a user embedding, (width,), through a release."""
    place = release.space.place(embedding)
    return Routing(
        release.router(place),
        retrieve(place, release.anchors, release.top_k, release.temperature),
    )


@dataclass(frozen=True)
class Personalised:
    """The stack of one person under one method.

    Attributes
    ----------
    shared : tuple of Lora
        Parts from the release that are on.
    weights : Tensor, (parts,)
        Their fusion weights.
    private : Lora or None
        The user LoRA or stack.
    tuned : int
        How many of the weights the device has learned.
    curve : tuple of (step, loss)
        Learning curve of the private training.
    tokens : int
        Tokens processed in training.
    seconds : float
        Time spent on training.
    """

    shared: tuple[Lora, ...]
    weights: Tensor
    private: Lora | None = None
    tuned: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    tokens: int = 0
    seconds: float = 0.0

    @property
    def private_parameters(self) -> int:
        """Numbers that only this device holds."""
        return self.tuned + (self.private.parameters if self.private is not None else 0)

    def folded(self) -> Lora | None:
        """Return the whole stack as one LoRA, exactly, or None if nothing is on.

        All weights are per user, not per token, so the stack is a plain sum of products.
        """
        loras, weights = list(self.shared), self.weights.tolist()
        if self.private is not None:
            loras, weights = [*loras, self.private], [*weights, 1.0]
        return fuse(loras, weights) if loras else None


def parts_of(base: BaseModel, stacks: Sequence[Personalised]) -> Parts:
    """Return the stacks of several people, under one method, as what the adapter layers take.

    Shared parts that several people use are laid in once, with a weight of zero for the others.
    """
    loras = list({id(lora): lora for stack in stacks for lora in stack.shared}.values())
    place = {id(lora): index for index, lora in enumerate(loras)}
    weights = torch.zeros(len(stacks), len(loras))
    for user, stack in enumerate(stacks):
        for lora, weight in zip(stack.shared, stack.weights, strict=True):
            weights[user, place[id(lora)]] = weight
    private = [stack.private for stack in stacks if stack.private is not None]
    slab = Slab.of(base.maps, private) if private else None
    return Parts(
        users=len(stacks),
        shared=concatenate(loras).to(base.dtype, base.device) if loras else None,
        weights=expand_weights(loras, weights.to(base.device)),
        private=slab.to(base.dtype, base.device).views() if slab is not None else None,
    )


def compose(release: Release, method: Method, routing: Routing) -> tuple[Personalised, Tensor]:
    """Return a method's shared parts at their routed weights, and which weights it tunes.

    Experts and anchors are two views of the same thing, what is left when the population LoRA
    has spoken, and each was trained as if alone: where both are on, each counts half.

    Returns
    -------
    Personalised
        Without a private part.
    Tensor (parts,) of bool
        True where the method tunes the weight.
    """
    shared: list[Lora] = []
    weights: list[float] = []
    tuned: list[bool] = []
    if method.population:
        shared, weights, tuned = [release.population], [1.0], [False]
    share = 0.5 if method.experts != "off" and method.anchors != "off" else 1.0
    if method.experts != "off":
        shared += release.experts
        weights += (share * routing.experts).tolist()
        tuned += [method.experts == "tuned"] * len(release.experts)
    if method.anchors != "off":
        shared += [release.bank[index] for index in routing.retrieval.anchors]
        weights += [share * weight for weight in routing.retrieval.weights]
        tuned += [method.anchors == "tuned"] * len(routing.retrieval.anchors)
    return Personalised(tuple(shared), torch.tensor(weights)), torch.tensor(tuned)


def personalise(
    base: BaseModel,
    release: Release,
    method: Method,
    routing: Routing,
    samples: tuple[Sample, ...],
    config: PrivateConfig,
    seed: int,
) -> Personalised:
    """Train what the method leaves to the device: private LoRA, fusion weights, both or nothing.

    Parameters
    ----------
    samples : tuple of Sample
        Of the person's history; never of the queries.
    """
    start, tuned = compose(release, method, routing)
    if not method.trains:
        return start
    started = time.monotonic()
    rank = {"none": 0, "user_lora": config.rank, "stack": config.stack_rank}[method.private]
    if method.private == "stack":
        config = config.model_copy(update={"learning_rate": config.stack_learning_rate})
    trained = train_cohort(
        base,
        [Trainee(method.name, samples, seed)],
        Slab.initial(base.maps, rank, [derive_seed(seed, "start")]),
        config,
        FusionWeights(
            start.shared,
            start.weights[None] if start.shared else None,
            tuned if tuned.any() else None,
            config.weights_learning_rate,
        ),
    )
    return Personalised(
        shared=start.shared,
        weights=trained.weights[0] if trained.weights is not None else start.weights,
        private=trained.slab.lora(0) if rank else None,
        tuned=int(tuned.sum()),
        curve=tuple(trained.curves[method.name]),
        tokens=trained.tokens,
        seconds=time.monotonic() - started,
    )
