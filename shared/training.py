"""What training one LoRA consists of: who is trained, mini-batches, losses, learning rate.

``shared.cohort`` puts it together for many users at once; the experts' joint training does so too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.config import TrainingConfig
from shared.head_loss import target_losses
from shared.samples import Batch, Sample
from shared.seeding import derive_seed


@dataclass(frozen=True)
class Trainee:
    """One user of a cohort.

    Attributes
    ----------
    name : str
    samples : tuple of Sample
        What it learns from; at least one.
    seed : int
        Orders them.
    held : tuple of Sample
        Kept out of training, which stops when their loss rises; empty for none.
    """

    name: str
    samples: tuple[Sample, ...]
    seed: int
    held: tuple[Sample, ...] = ()


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Return the rate at a step (from 0) of ``steps``: linear warm-up, then cosine to zero."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def answer_losses(base: BaseModel, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each answer token, (answers,), in nats.

    Only answer positions go through the vocabulary head, which is a fifth of a small model's work.
    """
    hidden = base.hidden_states(batch.ids, batch.lengths)  # (rows, tokens, width)
    return target_losses(base, hidden[batch.row, batch.position], batch.target)


def mean_per_user(losses: Tensor, batch: Batch) -> Tensor:
    """Average answer losses within each sample, then samples within each user, (users,).

    So no user outweighs another, nor a task with long answers one with short ones.
    """
    rows = len(batch.ids)
    total = losses.new_zeros(rows).index_add(0, batch.row, losses)
    tokens = torch.bincount(batch.row, minlength=rows)  # 0 in the rows that only fill up
    by_user = (total / tokens.clamp(min=1)).view(batch.users, -1)
    samples = (tokens > 0).view(batch.users, -1).sum(1)
    return by_user.sum(1) / samples.clamp(min=1)


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
