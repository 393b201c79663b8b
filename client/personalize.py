"""Personalisation on the device: compose the shared parts, then train the private one.

y = W x + B_p A_p x + sum_e g_e B_e A_e x + sum_k f_k B_k A_k x + b a x
population    routed experts        fused anchors         private
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from client.gate import Choice, best_fitting
from shared.base_model import BaseModel
from shared.cohort import Member
from shared.compute import wait_for
from shared.config import PrivateConfig
from shared.dynamic_batching import TrainingRequest, train
from shared.errors import MesofedError
from shared.lora.algebra import concatenate, fuse, widened
from shared.lora.layer import Parts, expand_weights
from shared.lora.lora import LinearMap, Lora
from shared.lora.slab import Slab
from shared.methods import Method
from shared.release import Release
from shared.retrieval import NO_EXAMPLES, Examples
from shared.routing import Retrieval, retrieve
from shared.samples import Sample
from shared.seeding import derive_seed
from shared.training import Trainee

# Chosen among 1, 1/2, 1/4 and halves of both, on server users alone (docs/results.md).
ANCHORS_BESIDE_EXPERTS = 0.25


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
    label_prior : bool
        Whether the label frequencies of the own history take part in the choice among labels.
    examples : Examples
        The own items that stand before every question.
    tuned : int
        How many of the weights the device has learned.
    curve : tuple of (step, loss)
        Learning curve of the private training.
    tokens : int
        Tokens processed in training, and in the choice of a gated method's parts.
    seconds : float
        Time spent on both; of a batch, this person's share.
    """

    shared: tuple[Lora, ...]
    weights: Tensor
    private: Lora | None = None
    label_prior: bool = False
    examples: Examples = NO_EXAMPLES
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
            private = widened(self.private, loras[0]) if loras else self.private
            loras, weights = [*loras, private], [*weights, 1.0]
        return fuse(loras, weights) if loras else None


def parts_of(base: BaseModel, stacks: Sequence[Personalised]) -> Parts:
    """Return the stacks of several people, under one method, as what the adapter layers take.

    Shared parts that several people use are laid in once, with a weight of zero for the others.
    One person's stack is one LoRA, its weights in the factors: two products a map, nothing else.
    """
    if len(stacks) == 1:
        (stack,) = stacks
        folded = stack.folded()
        return Parts(1, folded.to(base.dtype, base.device) if folded is not None else None)
    loras = list({id(lora): lora for stack in stacks for lora in stack.shared}.values())
    place = {id(lora): index for index, lora in enumerate(loras)}
    weights = torch.zeros(len(stacks), len(loras))
    for user, stack in enumerate(stacks):
        for lora, weight in zip(stack.shared, stack.weights, strict=True):
            weights[user, place[id(lora)]] = weight
    private = [stack.private for stack in stacks if stack.private is not None]
    slab = Slab.of(_carrying(base, private[0]), private) if private else None
    return Parts(
        users=len(stacks),
        shared=concatenate(loras).to(base.dtype, base.device) if loras else None,
        weights=expand_weights(loras, weights.to(base.device)),
        private=slab.to(base.dtype, base.device).views() if slab is not None else None,
    )


def _carrying(base: BaseModel, lora: Lora) -> tuple[LinearMap, ...]:
    """Return the maps that a LoRA is on."""
    return tuple(linear for linear in base.maps if linear.name in lora.factors)


def compose(release: Release, method: Method, routing: Routing) -> tuple[Personalised, Tensor]:
    """Return a method's shared parts at their routed weights, and which weights it tunes.

    Experts and anchors were each trained over the population LoRA alone, so where both are on
    they say some things twice: anchors then count ``ANCHORS_BESIDE_EXPERTS``.

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
    found: list[tuple[Lora, float, bool]] = []
    if method.experts != "off":
        gates = routing.experts.tolist()
        found += [
            (expert, weight, method.experts == "tuned")
            for expert, weight in zip(release.experts, gates, strict=True)
        ]
    if method.anchors != "off":
        share = ANCHORS_BESIDE_EXPERTS if method.experts != "off" else 1.0
        fused = dict(zip(routing.retrieval.anchors, routing.retrieval.weights, strict=True))
        if method.anchors == "tuned-all":
            fused |= {index: 0.0 for index in range(len(release.bank)) if index not in fused}
        learns = method.anchors.startswith("tuned")
        found += [(release.bank[index], share * weight, learns) for index, weight in fused.items()]
    for lora, weight, learns in found:
        pieces = lora.by_rank if method.by_rank else (lora,)
        shared += pieces
        weights += [weight] * len(pieces)
        tuned += [learns] * len(pieces)
    start = Personalised(
        tuple(shared),
        torch.tensor(weights),
        label_prior=method.label_prior,
        examples=release.examples,
    )
    return start, torch.tensor(tuned)


def begin_personalising(
    base: BaseModel,
    release: Release,
    method: Method,
    routing: Routing,
    samples: tuple[Sample, ...],
    config: PrivateConfig,
    seed: int,
    share: float = 1.0,
) -> Callable[[], Personalised]:
    """Start to train what the method leaves to the device; return a function that waits for it.

    That is a private LoRA, fusion weights, both or nothing.

    Parameters
    ----------
    samples : tuple of Sample
        Of the person's history, oldest first; never of the queries.
    share : float
        How much of the device's work this is, for the progress display.
    """
    start, tuned = compose(release, method, routing)
    if not method.trains:
        return lambda: start
    rank = {"none": 0, "user_lora": config.rank, "stack": config.stack_rank}[method.private]
    rank = rank if method.rank is None else method.rank
    if method.private == "stack":
        config = config.model_copy(update={"learning_rate": config.stack_learning_rate})
    # People train in one batch over the same shared parts, so all anchors are laid in, those
    # that were not retrieved with weight zero.
    laid = _parts_of_release(release, method)
    place = [next(i for i, lora in enumerate(laid) if lora is own) for own in start.shared]
    learned = torch.zeros(len(laid), dtype=torch.bool)
    learned[place] = tuned
    carrying = tuple(
        m for m in base.maps if not method.maps or m.name.rpartition(".")[2] in method.maps
    )
    if not carrying and method.private == "stack":  # maps go by other names in other models
        carrying = base.maps
    if rank and not carrying:
        raise MesofedError(
            f"Expected some of {', '.join(method.maps)} among the maps that carry LoRAs, for "
            f"{method.name}; got none. Add one to adapt, or leave out the method."
        )
    trained: Future[Member] = Future()

    def begin(found: Future[Personalised]) -> None:
        try:
            weights = torch.zeros(len(laid))
            weights[place] = found.result().weights
            train(
                TrainingRequest(
                    replace(base, maps=carrying),
                    _trainee(method.name, samples, config.holdout, seed),
                    rank,
                    derive_seed(seed, "start"),
                    config,
                    laid,
                    weights if laid else None,
                    learned if learned.any() else None,
                    share,
                    trained,
                )
            )
        except Exception as error:  # it must reach whoever waits
            trained.set_exception(error)

    beginning = _beginning(base, release, method, start, samples, config.batch_size)
    beginning.add_done_callback(begin)

    def wait() -> Personalised:
        member = wait_for(trained)
        begun = beginning.result()
        return replace(
            begun,
            weights=member.weights.cpu()[place] if member.weights is not None else begun.weights,
            private=Slab(carrying, rank, member.row.cpu()[None]).lora(0) if rank else None,
            tuned=int(tuned.sum()),
            curve=tuple(member.curve),
            tokens=begun.tokens + member.tokens,
            seconds=begun.seconds + member.seconds,
        )

    return wait


def _beginning(
    base: BaseModel,
    release: Release,
    method: Method,
    start: Personalised,
    samples: Sequence[Sample],
    rows: int,
) -> Future[Personalised]:
    """Return what private training begins from: the start or, gated, the better of two.

    In a federation nothing of the release has seen the history, so experts and anchors that do not
    carry over to this person show before anything is trained.
    """
    beginning: Future[Personalised] = Future()
    if not method.gated:
        beginning.set_result(start)
        return beginning
    population = torch.tensor([lora is release.population for lora in start.shared])
    starts = replace(start, weights=start.weights * population), start

    def take(found: Future[Choice]) -> None:
        try:
            choice = found.result()
            chosen = starts[choice.index]
            beginning.set_result(replace(chosen, tokens=choice.tokens, seconds=choice.seconds))
        except Exception as error:
            beginning.set_exception(error)

    stacks = [partial(parts_of, base, [own]) for own in starts]
    best_fitting(base, stacks, samples, rows).add_done_callback(take)
    return beginning


def _trainee(name: str, samples: tuple[Sample, ...], holdout: float, seed: int) -> Trainee:
    """Return the trainee, of whose history, oldest first, the newest is held out.

    Anybody with three items or more keeps one at least, if any are to be kept.
    """
    held = max(1, round(holdout * len(samples))) if holdout and len(samples) > 2 else 0
    kept = len(samples) - held
    return Trainee(name, samples[:kept], seed, samples[kept:])


def _parts_of_release(release: Release, method: Method) -> tuple[Lora, ...]:
    """Return all parts of a release that a method could use."""
    above = (
        *(release.experts if method.experts != "off" else ()),
        *(release.bank if method.anchors != "off" else ()),
    )
    if method.by_rank:
        above = tuple(piece for lora in above for piece in lora.by_rank)
    return (*((release.population,) if method.population else ()), *above)
