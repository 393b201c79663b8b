"""The row on exactness: what a cohort learns against what each user would have learned alone."""

from collections.abc import Callable, Sequence

import torch

from shared.base_model import BaseModel
from shared.cohort import train_cohort
from shared.config import TrainingConfig
from shared.lora.slab import Slab
from shared.precision import multiplies_bf16
from shared.training import Trainee
from simulations.benchmarks.cohort import cohort_gradients
from simulations.benchmarks.equality import relative_difference
from simulations.benchmarks.measurement import Bar, Figure, Finding, Settings
from simulations.benchmarks.models import resident
from simulations.benchmarks.training import ANSWER_SHARE, RANK
from simulations.benchmarks.workload import (
    ALL_LINEAR,
    Workload,
    make_workload,
    started_slab,
)

EQUAL = (16,) * 8
UNEQUAL = (16, 31, 24, 17, 21, 29, 20, 26)
# Two or three answer tokens: fewer rows of the vocabulary head than any kernel likes.
SHORT = (7, 9, 11, 8, 10, 12, 9, 7)
# Two users each train this often: enough for AdamW's moments to matter.
STEPS = 2


def batched_against_alone(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Compare gradients and trained LoRAs of eight users, in one batch and one by one."""
    base = resident(settings, "fp32", ALL_LINEAR)
    equal, unequal, short = (
        make_workload(base, lengths, ANSWER_SHARE) for lengths in (EQUAL, UNEQUAL, SHORT)
    )
    found: tuple[tuple[str, float, Bar | None], ...] = (
        ("trained LoRAs, equal lengths", training_difference(base, equal), Bar(0.0, False)),
        ("trained LoRAs, unequal lengths", training_difference(base, unequal), Bar(1e-5, False)),
        ("gradients, padded to one length", gradient_difference(base, unequal), Bar(1e-5, False)),
        ("gradients, answers of 2-3 tokens", gradient_difference(base, short), None),
    )
    if multiplies_bf16(base.device):  # elsewhere it takes minutes, and only who asks trains in it
        found += _in_bf16(settings)
    on_round()
    return Finding(
        tuple(
            Figure(
                what,
                "each user alone",
                (difference,),
                bar,
                unit="difference",
                higher_is_better=False,
            )
            for what, difference, bar in found
        )
    )


def _in_bf16(settings: Settings) -> tuple[tuple[str, float, Bar], ...]:
    base = resident(settings, "bf16", ALL_LINEAR)
    equal, unequal = (make_workload(base, lengths, ANSWER_SHARE) for lengths in (EQUAL, UNEQUAL))
    return (
        ("trained LoRAs, equal, bf16", training_difference(base, equal), Bar(0.0, False)),
        ("trained LoRAs, unequal, bf16", training_difference(base, unequal), Bar(0.0, False)),
    )


def gradient_difference(base: BaseModel, workload: Workload) -> float:
    """Return the largest relative difference of a user's gradient, in a batch and alone."""
    slab = started_slab(base, RANK, workload.users)
    together = cohort_gradients(base, slab, workload).rows
    alone = [
        cohort_gradients(base, _row(slab, user), Workload((sample,))).rows
        for user, sample in enumerate(workload.samples)
    ]
    return relative_difference(together, torch.cat(alone))


def training_difference(base: BaseModel, workload: Workload) -> float:
    """Return the largest relative difference of a user's LoRA after the product's training."""
    slab = started_slab(base, RANK, workload.users)
    config = TrainingConfig(epochs=STEPS, batch_size=1, learning_rate=1e-4)
    trainees = [Trainee(f"user {u}", (s,), seed=u) for u, s in enumerate(workload.samples)]

    def trained(chosen: Sequence[Trainee], start: Slab) -> torch.Tensor:
        return train_cohort(base, chosen, start, config).slab.rows

    together = trained(trainees, slab)
    alone = [trained([trainee], _row(slab, user)) for user, trainee in enumerate(trainees)]
    return relative_difference(together, torch.cat(alone))


def _row(slab: Slab, user: int) -> Slab:
    return Slab(slab.maps, slab.rank, slab.rows[user : user + 1])
