"""Rows that train eight users: a cohort in one batch against PEFT, one user at a time."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from shared.base_model import BaseModel
from shared.config import BaseConfig
from shared.samples import collate
from simulations.benchmarks.cohort import CohortStep, cohort_gradients
from simulations.benchmarks.equality import check_gradients
from simulations.benchmarks.interleave import clock, interleave
from simulations.benchmarks.measurement import (
    Bar,
    Equality,
    Figure,
    Finding,
    Settings,
    ratios,
)
from simulations.benchmarks.models import plain_model, resident, top_layers
from simulations.benchmarks.peft_peer import peft_gradients, peft_step, wrap
from simulations.benchmarks.roofline import step_seconds
from simulations.benchmarks.workload import (
    ALL_LINEAR,
    QUERY_VALUE,
    Workload,
    make_workload,
    started_slab,
)

USERS, RANK, ANSWER_SHARE = 8, 8, 0.25
MANY_USERS = 32  # on a GPU
# Memory of a batch, for those who have little: half the default.
SMALL_MEMORY = BaseConfig().batch_memory_mb << 19
# Of SmolLM2's 30 layers; other models get the same share.
TOP_SHARE = 8 / 30

Sides = Mapping[str, Callable[[], None]]


@dataclass(frozen=True)
class Pair:
    """A cohort and its PEFT peer over the same linear maps, found equal.

    Attributes
    ----------
    base : BaseModel
        In bf16 where the machine multiplies it fast, else in fp32.
    peer : PeftModel
        In fp32, one adapter a user.
    workload : Workload
        What both train on.
    equalities : tuple of Equality
        What was checked.
    """

    base: BaseModel
    peer: Any
    workload: Workload
    equalities: tuple[Equality, ...]

    def sides(self, workload: Workload, name: str = "") -> dict[str, Callable[[], None]]:
        """Return the peer's step and ours, from fresh LoRAs, by names that end in ``name``."""
        slab = started_slab(self.base, RANK, workload.users)
        return {
            f"PEFT loop{name}": peft_step(self.peer, workload, self.base.device),
            f"cohort{name}": CohortStep(self.base, slab, workload),
        }

    def products(self, workload: Workload) -> float:
        """Return the seconds of our step's matrix products alone."""
        return step_seconds(self.base, workload.tokens, workload.answers)


def pair(
    settings: Settings,
    adapt: tuple[str, ...],
    lengths: Sequence[int],
    answer_share: float = ANSWER_SHARE,
    top_share: float = 1.0,
) -> Pair:
    """Load both sides and check that a step gives the same gradients.

    Parameters
    ----------
    adapt : tuple of str
        Kinds of linear maps that carry LoRAs.
    lengths : sequence of int
        Tokens of each user's sample.
    top_share : float
        Share of the layers, from the top, that carry LoRAs.

    Raises
    ------
    MesofedError
        If the gradients differ.
    """
    exact = resident(settings, "fp32", adapt, top_share)
    slab = started_slab(exact, RANK, len(lengths))
    workload = make_workload(exact, lengths, answer_share)
    ours = cohort_gradients(exact, slab, workload)
    peer = wrap(plain_model(settings.model, torch.float32, exact.device), slab)
    theirs = peft_gradients(peer, slab, workload)
    del exact
    base = resident(settings, "auto", adapt, top_share)
    timed = cohort_gradients(base, slab, workload)
    return Pair(base, peer, workload, check_gradients(ours, timed, theirs))


def train_all_linear(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Train eight users with LoRAs on all linear maps, 32 tokens each."""
    both = pair(settings, ALL_LINEAR, [32] * USERS, 1.0)
    answers = make_workload(both.base, [32] * USERS, ANSWER_SHARE)
    workloads = {"": both.workload, ", loss on last quarter": answers}
    sides: dict[str, Callable[[], None]] = {}
    for part, workload in workloads.items():
        sides |= both.sides(workload, part)
    seconds = timed(sides, settings.rounds, on_round)
    products = {part: both.products(workload) for part, workload in workloads.items()}
    return Finding(
        figures=tuple(
            Figure(
                f"train {USERS} users, all-linear, 32 tokens" if not part else f"  the same{part}",
                "PEFT loop",
                ratios(seconds[f"PEFT loop{part}"], seconds[f"cohort{part}"]),
                Bar(4.0, at_least=True),
                statistics.median(seconds[f"PEFT loop{part}"]) / alone,
            )
            for part, alone in products.items()
        ),
        equalities=both.equalities,
        seconds=seconds,
        facts={
            "tokens": both.workload.tokens,
            "matrix_products_seconds": list(products.values()),
            "users_in_a_batch": users_in_a_batch(sides),
        },
    )


def train_query_value(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Train eight users with LoRAs on queries and values, 128 tokens; then on the top layers."""
    lengths = [128] * USERS
    full = pair(settings, QUERY_VALUE, lengths)
    top = pair(settings, QUERY_VALUE, lengths, top_share=TOP_SHARE)
    workload = full.workload
    sides = full.sides(workload) | top.sides(workload, ", top layers")
    slab, small = started_slab(full.base, RANK, USERS), replace(full.base, memory=SMALL_MEMORY)
    sides["cohort, small batches"] = CohortStep(small, slab, workload)
    seconds = timed(sides, settings.rounds, on_round)
    layers = int(full.base.model.config.num_hidden_layers)
    products, products_top = full.products(workload), top.products(workload)
    loop, cohort = seconds["PEFT loop"], seconds["cohort"]
    loop_top, cohort_top = seconds["PEFT loop, top layers"], seconds["cohort, top layers"]
    what = f"  top {top_layers(layers, TOP_SHARE)} of {layers} layers, prefix cached"
    return Finding(
        figures=(
            Figure(
                f"train {USERS} users, q and v, 128 tokens",
                "PEFT loop",
                ratios(loop, cohort),
                Bar(2.1, at_least=True),
                statistics.median(loop) / products,
            ),
            Figure(
                "  in smaller batches",
                "PEFT loop",
                ratios(loop, seconds["cohort, small batches"]),
                None,
                statistics.median(loop) / products,
            ),
            Figure(
                what,
                "PEFT loop, same layers",
                ratios(loop_top, cohort_top),
                None,
                statistics.median(loop_top) / products_top,
            ),
            Figure(
                what,
                "PEFT loop, all layers",
                ratios(loop, cohort_top),
                Bar(4.5, at_least=True),
                statistics.median(loop) / products_top,
            ),
        ),
        equalities=(
            *full.equalities,
            *(replace(found, what=f"top layers: {found.what}") for found in top.equalities),
        ),
        seconds=seconds,
        facts={
            "tokens": workload.tokens,
            "matrix_products_seconds": [products, products_top],
            "users_in_a_batch": users_in_a_batch(sides),
            "prefix_of_new_texts_seconds": prefix_seconds(top.base, lengths),
        },
    )


def train_many(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Train 32 users with LoRAs on queries and values, 128 tokens: what a GPU is for."""
    if not torch.cuda.is_available():
        return Finding(skipped="32 users at once are for a GPU; torch finds none here")
    both = pair(settings, QUERY_VALUE, [128] * MANY_USERS)
    sides = both.sides(both.workload)
    seconds = timed(sides, settings.rounds, on_round)
    loop, products = seconds["PEFT loop"], both.products(both.workload)
    return Finding(
        figures=(
            Figure(
                f"train {MANY_USERS} users, q and v, 128 tokens",
                "PEFT loop",
                ratios(loop, seconds["cohort"]),
                Bar(8.0, at_least=True),
                statistics.median(loop) / products,
            ),
        ),
        equalities=both.equalities,
        seconds=seconds,
        facts={
            "tokens": both.workload.tokens,
            "matrix_products_seconds": products,
            "users_in_a_batch": users_in_a_batch(sides),
        },
    )


def timed(sides: Sides, rounds: int, on_round: Callable[[], None]) -> dict[str, tuple[float, ...]]:
    """Time steps in turn; return seconds of a step of all users, by side, one a round."""
    # Both sides have taken their first step when they were checked.
    seconds = interleave(sides, rounds, on_round, warm=0)
    return {
        name: tuple(value / share_of(sides[name]) for value in values)
        for name, values in seconds.items()
    }


def share_of(side: Callable[[], None]) -> float:
    """Return the share of the users that a side's step trains; below 1 where memory is short."""
    return side.share if isinstance(side, CohortStep) else 1.0


def users_in_a_batch(sides: Sides) -> dict[str, int]:
    """Return how many users our sides train in one batch."""
    return {
        name: round(side.share * side.users)
        for name, side in sides.items()
        if isinstance(side, CohortStep)
    }


def prefix_seconds(base: BaseModel, lengths: Sequence[int]) -> float:
    """Return the seconds that the frozen prefix takes when the texts are new."""
    new = make_workload(base, lengths, ANSWER_SHARE, start=sum(lengths))
    batch = collate(new.groups, base.pad_token, base.device)
    prefix = base.prefix
    assert prefix is not None
    return clock(lambda: prefix.states(batch.ids, batch.lengths))
