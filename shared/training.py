"""The cohort trainer: many users' LoRAs in one batch over one resident base model.

Each user keeps its own samples, order, schedule, clipping and AdamW moments; the batch is only a
way to run them at once. Users are sorted by their number of steps, so those that have run out of
data leave from the end and the rest remain a prefix of the slab: a view, never a copy.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.config import TrainingConfig
from shared.lora.algebra import concatenate
from shared.lora.layer import Parts, expand_weights
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.progress import tokens_done
from shared.samples import Batch, Sample, collate
from shared.seeding import derive_seed

# Padded tokens in one training batch. It bounds the memory of activations and of the vocabulary
# head; beyond it two cores gain nothing from larger batches.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Trainee:
    """One user of a cohort: its samples, and the seed that orders them."""

    name: str
    samples: tuple[Sample, ...]
    seed: int


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
        By trainee: mean negative log-likelihood per answer token at each of its own steps.
    tokens : int
        Tokens processed, padding not counted.
    """

    slab: Slab
    weights: Tensor | None
    curves: dict[str, list[tuple[int, float]]]
    tokens: int


@dataclass
class RowAdamW:
    """AdamW (arXiv 1711.05101) on a matrix whose rows have their own step count and rate.

    PyTorch's optimisers hold one step count and learning rate for a tensor; here each row is a
    user with a schedule of its own.
    """

    parameters: Tensor  # (users, n), changed in place
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros_like(self.parameters)
        self.square = torch.zeros_like(self.parameters)

    def step(self, gradient: Tensor, rates: Tensor, count: int) -> None:
        """Update the first rows.

        Parameters
        ----------
        gradient : Tensor, (active, n)
            Of the first ``active`` rows.
        rates : Tensor, (active, 1)
            Learning rate of each row.
        count : int
            Number of this step, from 1; all active rows have started together.
        """
        active = gradient.shape[0]
        w, mean, square = (t[:active] for t in (self.parameters, self.mean, self.square))
        beta_1, beta_2 = self.betas
        mean.lerp_(gradient, 1 - beta_1)
        square.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        w.mul_(1 - rates * self.weight_decay)
        scale = math.sqrt(1 - beta_2**count)
        denominator = (square.sqrt() / scale).add_(self.epsilon)
        w.sub_(mean.div(denominator).mul_(rates / (1 - beta_1**count)))


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Return the rate at a step (from 0) of ``steps``: linear warm-up, then cosine to zero."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def answer_losses(base: BaseModel, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each answer token, (answers,), in nats.

    Only answer positions go through the vocabulary head, from a contiguous matrix: it is a fifth
    of a small model's work and most of its memory.
    """
    hidden = base.hidden_states(batch.ids, batch.lengths)  # (rows, tokens, width)
    logits = base.logits(hidden[batch.row, batch.position])  # (answers, vocabulary)
    return torch.nn.functional.cross_entropy(logits, batch.target, reduction="none")


def mean_per_user(losses: Tensor, batch: Batch) -> Tensor:
    """Average answer losses within each user, (users,), so that no user outweighs another."""
    total = losses.new_zeros(batch.users).index_add(0, batch.owner, losses)
    return total / torch.bincount(batch.owner, minlength=batch.users).clamp(min=1)


def batches_of(trainee: Trainee, config: TrainingConfig) -> list[list[Sample]]:
    """Return the trainee's mini-batches for all epochs, in the order its seed decides."""
    batches = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(derive_seed(trainee.seed, "epoch", epoch))
        order = torch.randperm(len(trainee.samples), generator=generator).tolist()
        batches += [
            [trainee.samples[i] for i in order[start : start + config.batch_size]]
            for start in range(0, len(order), config.batch_size)
        ]
    return batches


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
        Equal, up to rounding, to training each trainee alone.
    """
    fusion = fusion or FusionWeights()
    plans = [batches_of(trainee, config) for trainee in trainees]
    rows = initial.rows.to(base.device, copy=True)
    weights = fusion.values.to(base.device, copy=True) if fusion.values is not None else None
    curves: dict[str, list[tuple[int, float]]] = {trainee.name: [] for trainee in trainees}
    tokens = 0
    for cohort in _cohorts(plans):
        slab = Slab(initial.maps, initial.rank, rows[cohort])
        values = weights[cohort] if weights is not None else None
        for step, losses, seen in _train(
            base, [plans[i] for i in cohort], slab, values, fusion, config
        ):
            for index, loss in zip(cohort, losses, strict=False):
                curves[trainees[index].name].append((step, loss))
            tokens += seen
            tokens_done(seen)
        rows[cohort] = slab.rows
        if weights is not None and values is not None:
            weights[cohort] = values
    trained = Slab(initial.maps, initial.rank, rows.cpu())
    return Trained(trained, weights.cpu() if weights is not None else None, curves, tokens)


def _cohorts(plans: Sequence[Sequence[Sequence[Sample]]]) -> list[list[int]]:
    """Divide users into cohorts whose largest batch fits ``BATCH_TOKENS``, longest plans first."""
    order = sorted(range(len(plans)), key=lambda i: (-len(plans[i]), i))
    cohorts: list[list[int]] = []
    rows = length = 0  # every user of a cohort is padded to its longest batch and longest sample
    for index in order:
        own_rows = max(len(batch) for batch in plans[index])
        own_length = max(len(sample) for batch in plans[index] for sample in batch)
        grown = max(rows, own_rows), max(length, own_length)
        if cohorts and (len(cohorts[-1]) + 1) * grown[0] * grown[1] <= BATCH_TOKENS:
            cohorts[-1].append(index)
            rows, length = grown
        else:
            cohorts.append([index])
            rows, length = own_rows, own_length
    return cohorts


def _train(
    base: BaseModel,
    plans: Sequence[Sequence[Sequence[Sample]]],
    slab: Slab,
    values: Tensor | None,
    fusion: FusionWeights,
    config: TrainingConfig,
) -> Iterator[tuple[int, list[float], int]]:
    """Train one cohort in place; yield (step, the active users' losses, tokens) a step."""
    shared = concatenate(fusion.loras).to(base.dtype, base.device) if fusion.loras else None
    optimiser = RowAdamW(slab.rows, config.weight_decay)
    weights_optimiser = RowAdamW(values, 0.0) if values is not None else None
    active = 0
    private: dict[str, Factors] = {}
    for step in range(len(plans[0])):
        remaining = sum(len(plan) > step for plan in plans)
        if remaining != active:
            active = remaining
            private = slab.leaves(active) if slab.rank else {}
        groups = [plan[step] for plan in plans[:active]]
        batch = collate(groups, base.pad_token, base.device)
        weights = values[:active].clone() if values is not None else None
        learned = [tensor for f in private.values() for tensor in (f.a, f.b)]
        if weights is not None and fusion.tuned is not None:
            learned.append(weights.requires_grad_())
        parts = Parts(active, shared, expand_weights(fusion.loras, weights), private)
        with base.stack.using(parts):
            losses = mean_per_user(answer_losses(base, batch), batch)
            # Unlike backward(), this raises if a quantised layer lets no gradient through.
            gradients = list(torch.autograd.grad(losses.sum(), learned))
        rates = torch.tensor(
            [[learning_rate(config, step, len(plan))] for plan in plans[:active]],
            device=base.device,
        )
        if weights_optimiser is not None and fusion.tuned is not None:
            gradient = gradients.pop() * fusion.tuned.to(base.device)
            share = fusion.learning_rate / config.learning_rate
            weights_optimiser.step(gradient, rates * share, step + 1)
        if gradients:
            gradient = _clip(Slab.to_rows(gradients), config.clip_norm)
            optimiser.step(gradient, rates, step + 1)
        yield step, losses.tolist(), sum(len(s) for group in groups for s in group)


def _clip(gradient: Tensor, bound: float) -> Tensor:
    """Scale each user's gradient, in place, to a norm of at most ``bound``."""
    norms = gradient.norm(dim=1, keepdim=True)
    return gradient.mul_((bound / norms.clamp(min=1e-12)).clamp(max=1.0))
