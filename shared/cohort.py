"""The cohort trainer: many users' LoRAs in one batch over one resident base model.

    users   next mini-batch                a step
    ada     4 samples of 48 tokens   \
    bob     4 samples of 32 tokens    >    ada, eve: one batch of 2 x 4 x 48 tokens
    eve     4 samples of 48 tokens   /     bob waits, at no loss: nobody trains in lockstep

Each user keeps its own samples, order, schedule, clipping and AdamW; a batch is only a way to run
users at once. It is made of users whose next mini-batches have the same shape, so nobody is
padded because of others, and products are taken so that each user gets the bits that it would get
alone (``shared.rowwise_product``).
"""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.config import TrainingConfig
from shared.lora.algebra import concatenate
from shared.lora.dropout import Dropout
from shared.lora.layer import Parts, expand_weights
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.progress import tokens_done
from shared.rowwise_product import rowwise
from shared.samples import Sample, collate, shape_of
from shared.seeding import derive_seed
from shared.training import Trainee, answer_losses, batches_of, learning_rate, mean_per_user

# The peak of a step over what its forward pass saves for the backward pass. On SmolLM2 1.5 to 2.0
# was measured, more the shorter the texts and the larger the LoRAs and the share of answers.
BACKWARD = 2.0


@dataclass(frozen=True)
class FusionWeights:
    """Shared parts under the users' own LoRAs, and how much of each every user gets.

    Attributes
    ----------
    loras : tuple of Lora
        The shared parts.
    values : Tensor, (users, parts)
        Weight of each part for each user.
    tuned : Tensor (parts,) of bool, optional
        Which weights the users learn; None for none.
    learning_rate : float
        For the tuned weights.
    """

    loras: tuple[Lora, ...] = ()
    values: Tensor | None = None
    tuned: Tensor | None = None
    learning_rate: float = 0.02


@dataclass(frozen=True)
class Trained:
    """What a cohort has learned.

    Attributes
    ----------
    slab : Slab
        Row u is trainee u's LoRA.
    weights : Tensor (users, parts) or None
        The fusion weights, with the tuned ones changed.
    curves : dict of list of (step, loss)
        By trainee: loss at each of its own steps, as ``mean_per_user`` takes it.
    tokens : int
        Tokens processed, padding not counted.
    """

    slab: Slab
    weights: Tensor | None
    curves: dict[str, list[tuple[int, float]]]
    tokens: int


@dataclass
class Member:
    """One user in training.

    Attributes
    ----------
    trainee : Trainee
        The user.
    plan : list of list of Sample
        Mini-batches of all epochs.
    row : Tensor, (parameters,)
        The user's LoRA as a row of a slab, trained in place; empty at rank 0.
    weights : Tensor (parts,) or None
        Fusion weights, changed in place where they are tuned.
    tuned : Tensor (parts,) of bool or None
        Which of them are.
    curve : list of (step, loss)
        Loss at each step that is done.
    checks : list of float
        Loss of the held-out samples, before the first epoch and after each.
    best : (Tensor, Tensor or None)
        Row and weights at the lowest of them.
    tokens : int
        Tokens processed, padding not counted.
    seconds : float
        The user's share of the time of its batches.
    error : Exception or None
        Why training ended before it was done.
    """

    trainee: Trainee
    plan: list[list[Sample]]
    row: Tensor
    weights: Tensor | None
    tuned: Tensor | None
    optimiser: torch.optim.AdamW
    epochs: int
    curve: list[tuple[int, float]] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)
    best: tuple[Tensor, Tensor | None] | None = None
    tokens: int = 0
    seconds: float = 0.0
    error: Exception | None = None

    @property
    def checking(self) -> bool:
        """Whether the held-out samples come next, as they do after each epoch."""
        epoch = len(self.plan) // self.epochs
        return bool(self.trainee.held) and len(self.checks) * epoch == len(self.curve)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, or going on would do harm."""
        worse = len(self.checks) > 1 and self.checks[-1] >= min(self.checks[:-1])
        return worse or (len(self.curve) == len(self.plan) and not self.checking)

    @property
    def next(self) -> Sequence[Sample]:
        """The samples of the next step."""
        return self.trainee.held if self.checking else self.plan[len(self.curve)]

    @property
    def shape(self) -> tuple[bool, int, int]:
        """Whether the next step is a check, and its rows and tokens, padding included."""
        return (self.checking, *shape_of([self.next]))


class Cohort:
    """Users in training together; they may join at any time, and leave when they are done.

    Parameters
    ----------
    base : BaseModel
        The resident base model; ``base.memory`` bounds the peak of a step.
    rank : int
        Of the users' LoRAs; 0 for none.
    config : TrainingConfig
        Epochs, batch size, rates.
    shared : sequence of Lora
        Frozen parts under the users' LoRAs, the same for all.
    weights_learning_rate : float
        For tuned fusion weights.
    dropout : float
        Share of the inputs of a user's LoRA that a step leaves out, drawn from the user's seed.

    Attributes
    ----------
    members : list of Member
        Who is in training.
    """

    def __init__(
        self,
        base: BaseModel,
        rank: int,
        config: TrainingConfig,
        shared: Sequence[Lora] = (),
        weights_learning_rate: float = FusionWeights.learning_rate,
        dropout: float = 0.0,
    ) -> None:
        self.members: list[Member] = []
        self.base, self._rank, self._config = base, rank, config
        self._loras = tuple(shared)
        self._shared = concatenate(shared).to(base.dtype, base.device) if shared else None
        self._weights_share = weights_learning_rate / config.learning_rate
        self._bytes: dict[tuple[bool, int, int], int] = {}  # of one user's activations
        self._buffers: dict[str, Tensor] = {}
        self._dropout = dropout

    def join(
        self,
        trainee: Trainee,
        row: Tensor,
        weights: Tensor | None = None,
        tuned: Tensor | None = None,
    ) -> Member:
        """Take in a user.

        Parameters
        ----------
        row : Tensor, (parameters,)
            Where the user's LoRA starts; left as it is.
        weights : Tensor (parts,), optional
            Fusion weights of the shared parts; left as they are.
        tuned : Tensor (parts,) of bool, optional
            Which of them the user learns.
        """
        device = self.base.device
        row = row.to(device, copy=True)
        weights = weights.to(device, copy=True) if weights is not None else None
        groups = [
            {"params": [row], "weight_decay": self._config.weight_decay, "share": 1.0},
            {"params": [weights], "weight_decay": 0.0, "share": self._weights_share},
        ]
        learned = groups[not self._rank : 1 + (tuned is not None)]
        member = Member(
            trainee,
            batches_of(trainee, self._config),
            row,
            weights,
            tuned.to(device) if tuned is not None else None,
            torch.optim.AdamW(learned, fused=True),
            self._config.epochs,
        )
        self.members.append(member)
        return member

    def step(self) -> list[Member]:
        """Train the largest possible group of users by one step; return those who leave.

        They are done, or have failed, which is in their ``error``. A batch that fails is tried
        again one user at a time, so a user that fails costs nobody else anything.
        """
        started = time.monotonic()
        group = self._group()
        tokens = sum(len(sample) for member in group for sample in member.next)
        before = {id(member): (len(member.curve), len(member.checks)) for member in group}
        try:
            self._advance(group)
        except Exception as error:
            for member in group:
                if (len(member.curve), len(member.checks)) != before[id(member)]:
                    continue
                if len(group) == 1:
                    member.error = error
                else:
                    self._advance_alone(member)
        for member in group:
            member.seconds += (time.monotonic() - started) / len(group)
        tokens_done(tokens)
        left = [member for member in group if member.done or member.error is not None]
        for member in left:  # whoever waits for the result needs the row and the curve alone
            member.optimiser.state.clear()
            member.row.grad, member.best = None, None
        leaving = set(map(id, left))
        self.members = [member for member in self.members if id(member) not in leaving]
        return left

    def _advance_alone(self, member: Member) -> None:
        try:
            self._advance([member])
        except Exception as error:
            member.error = error

    def _advance(self, group: Sequence[Member]) -> None:
        if group[0].checking:
            self._check(group)
        else:
            self._train(group)

    def _group(self) -> list[Member]:
        """Return the users of the next batch: of the shape for which most tokens are ready."""
        ready: defaultdict[tuple[bool, int, int], list[Member]] = defaultdict(list)
        for member in self.members:
            ready[member.shape].append(member)
        shape = max(ready, key=lambda s: (len(ready[s]) * s[1] * s[2], s))
        return ready[shape][: self._room(shape)]

    def _room(self, shape: tuple[bool, int, int]) -> int:
        """Return how many users' batches of a shape fit the memory; at least one."""
        if shape in self._bytes:
            each = float(self._bytes[shape])
        else:  # by the largest seen; at first one user goes alone, to be measured
            per_token = [size / (rows * tokens) for (_, rows, tokens), size in self._bytes.items()]
            each = max(per_token, default=math.inf) * shape[1] * shape[2]
        return max(1, int(self.base.memory / (BACKWARD * each)))

    def _check(self, group: Sequence[Member]) -> None:
        """Score the held-out samples of each user of a group; keep what is best so far."""
        with torch.no_grad():
            losses, _ = self._losses(group)
        for member, loss in zip(group, losses.tolist(), strict=True):
            if loss < min(member.checks, default=math.inf):
                weights = member.weights.clone() if member.weights is not None else None
                member.best = member.row.clone(), weights
            member.checks.append(loss)
            if member.done and member.best is not None:
                member.row, member.weights = member.best

    def _losses(self, group: Sequence[Member]) -> tuple[Tensor, list[Tensor]]:
        """Return each user's mean loss on its next samples, (users,), and what they train.

        That is a_0, b_0, a_1, ... of the LoRAs, then the fusion weights if any are tuned.
        """
        base, count, shape = self.base, len(group), group[0].shape
        batch = collate([member.next for member in group], base.pad_token, base.device)
        private = {}
        if self._rank:
            # Cast at once: the layers would cast each factor, and so would the way back.
            rows = self._buffer("rows", group)
            for row, member in zip(rows, group, strict=True):
                row.copy_(member.row)
            private = Slab(base.maps, self._rank, rows).leaves(count)
        learned = [tensor for f in private.values() for tensor in (f.a, f.b)]
        weights = None
        if self._loras:
            weights = torch.stack([m.weights for m in group if m.weights is not None])
            if any(member.tuned is not None for member in group):
                learned.append(weights.requires_grad_())
        by_rank = expand_weights(self._loras, weights)
        apart = rowwise(base.dtype, base.device)
        parts = Parts(count, self._shared, by_rank, private, apart, self._dropped(group))
        known = shape in self._bytes or group[0].checking
        with base.stack.using(parts), nullcontext() if known else self._measured(shape, count):
            losses = mean_per_user(answer_losses(base, batch), batch)
        return losses, learned

    def _dropped(self, group: Sequence[Member]) -> Dropout | None:
        """Return the dropout of the next step: each user's own, the same when it is tried again."""
        if not self._dropout or group[0].checking:
            return None
        seeds = [derive_seed(m.trainee.seed, "dropout", len(m.curve)) for m in group]
        return Dropout.seeded(self._dropout, seeds)

    def _train(self, group: Sequence[Member]) -> None:
        """Take one step with each user of a group."""
        losses, learned = self._losses(group)
        # Unlike backward(), this raises if a quantised layer lets no gradient through.
        gradients = list(torch.autograd.grad(losses.sum(), learned))
        tuned = any(member.tuned is not None for member in group)
        by_weight = gradients.pop() if tuned else None
        by_row = Slab.to_rows(gradients, self._buffer("gradients", group)) if gradients else None
        for index, (member, loss) in enumerate(zip(group, losses.tolist(), strict=True)):
            if by_row is not None:
                if member.row.grad is None:
                    member.row.grad = torch.empty_like(member.row)
                _clip(member.row.grad.copy_(by_row[index]), self._config.clip_norm)
            if by_weight is not None and member.weights is not None and member.tuned is not None:
                member.weights.grad = by_weight[index] * member.tuned
            rate = learning_rate(self._config, len(member.curve), len(member.plan))
            for parameters in member.optimiser.param_groups:
                parameters["lr"] = rate * parameters["share"]
            member.optimiser.step()
            member.tokens += sum(map(len, member.next))
            member.curve.append((len(member.curve), loss))

    def _buffer(self, name: str, group: Sequence[Member]) -> Tensor:
        """Return room for a row of each user, in the format of the base model.

        It is kept between steps: memory that is new to a process has to be mapped first, which
        takes longer than the copy into it.
        """
        shape = len(group), len(group[0].row)
        kept = self._buffers.get(name)
        if kept is None or len(kept) < len(group):
            kept = torch.empty(shape, dtype=self.base.dtype, device=self.base.device)
            self._buffers[name] = kept
        return kept[: len(group)]

    @contextmanager
    def _measured(self, shape: tuple[bool, int, int], users: int) -> Iterator[None]:
        """Measure what a forward pass keeps for the backward pass."""
        model = self.base.model  # quantised weights are buffers
        weights = itertools.chain(model.parameters(), model.buffers())
        kept = {weight.untyped_storage().data_ptr(): 0 for weight in weights}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self._bytes[shape] = sum(kept.values()) // users


def _clip(gradient: Tensor, bound: float) -> Tensor:
    """Scale one user's gradient, in place, to a norm of at most ``bound``."""
    return gradient.mul_((bound / gradient.norm().clamp(min=1e-12)).clamp(max=1.0))


def train_cohort(
    base: BaseModel,
    trainees: Sequence[Trainee],
    initial: Slab,
    config: TrainingConfig,
    fusion: FusionWeights | None = None,
) -> Trained:
    """Train every trainee's LoRA, and its tuned fusion weights, on its own samples.

    Parameters
    ----------
    base : BaseModel
        The resident base model.
    trainees : sequence of Trainee
        The users; each has at least one sample.
    initial : Slab
        Where each trainee starts; left as it is.
    config : TrainingConfig
        Epochs, batch size, rates.
    fusion : FusionWeights, optional
        Frozen shared parts under the trainees' LoRAs.

    Returns
    -------
    Trained
        Equal to training each trainee alone; on a CPU to the bit, if the decoder's weights are
        linear maps (``shared.rowwise_product``).
    """
    fusion = fusion or FusionWeights()
    cohort = Cohort(base, initial.rank, config, fusion.loras, fusion.learning_rate)
    members = [
        cohort.join(
            trainee,
            initial.rows[user],
            fusion.values[user] if fusion.values is not None else None,
            fusion.tuned,
        )
        for user, trainee in enumerate(trainees)
    ]
    while cohort.members:
        for member in cohort.step():
            if member.error is not None:
                raise member.error
    weights = [member.weights.cpu() for member in members if member.weights is not None]
    return Trained(
        Slab(initial.maps, initial.rank, torch.stack([m.row.detach().cpu() for m in members])),
        torch.stack(weights).detach() if weights else None,
        {member.trainee.name: member.curve for member in members},
        sum(member.tokens for member in members),
    )
