"""The row on inference with three parts of the adapter stack, unmerged and folded, for one user."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from client.personalize import Personalised, parts_of
from shared.base_model import BaseModel
from shared.lora.algebra import base_weights, merged
from simulations.benchmarks.equality import FP32_OUTPUTS, relative_difference
from simulations.benchmarks.interleave import clock, interleave
from simulations.benchmarks.measurement import (
    Bar,
    Equality,
    Figure,
    Finding,
    Settings,
    checked,
    ratios,
)
from simulations.benchmarks.models import plain_model, resident
from simulations.benchmarks.roofline import low_rank_share
from simulations.benchmarks.workload import ALL_LINEAR, started_slab, text_tokens

RANK, PARTS = 8, 3
PROMPT, CONTEXT, NEW_TOKENS = 256, 64, 8
# These bars are about the hundredth part of a second, so there are more rounds than elsewhere.
ROUNDS_EACH = 3


def stacked_inference(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Read and write with a population LoRA, fused anchors and a private LoRA on."""
    base = resident(settings, "fp32", ALL_LINEAR)
    # The same attention on both sides, so that only the stack makes a difference.
    bare = plain_model(
        settings.model, torch.float32, base.device, base.model.config._attn_implementation
    )
    stack = three_parts(base)
    equalities = check_outputs(base, bare, stack)
    figures: list[Figure] = []
    seconds: dict[str, tuple[float, ...]] = {}
    least = 1 + low_rank_share(base.maps, RANK * PARTS, bare)
    for name, work in (("prefill", prefill), ("decode", decode)):
        found = _timed(base, bare, stack, work, ROUNDS_EACH * settings.rounds, on_round)
        seconds |= {f"{name}, {side}": values for side, values in found.items()}
        for side, bar, limit in (("unmerged", 1.12, least), ("folded", 1.02, 1.0)):
            figures.append(
                Figure(
                    f"{name}, {PARTS} parts, {side}",
                    "bare base model",
                    ratios(found[side], found["bare"]),
                    Bar(bar, at_least=False),
                    limit,
                    higher_is_better=False,
                )
            )
    return Finding(
        tuple(figures),
        equalities,
        seconds,
        {"fold_and_restore_seconds": _fold_and_restore(base, stack)},
    )


def three_parts(base: BaseModel) -> Personalised:
    """Return one person's stack: population and fused LoRA shared, and a private one."""
    population, anchors, private = started_slab(base, RANK, PARTS).loras()
    return Personalised((population, anchors), torch.tensor([1.0, 0.7]), private)


def folded(base: BaseModel, stack: Personalised) -> AbstractContextManager[None]:
    """Return a block with the stack in the weights of the base model."""
    lora = stack.folded()
    assert lora is not None
    return merged(base_weights(base.model, list(lora.factors)), lora)


def check_outputs(base: BaseModel, bare: Any, stack: Personalised) -> tuple[Equality, ...]:
    """Check both forms against a plain model with each part's dense update added to it.

    Raises
    ------
    MesofedError
        If they compute something else.
    """
    ids = torch.tensor([text_tokens(base, CONTEXT)], device=base.device)
    with torch.no_grad():
        weights = {m.name: bare.get_submodule(m.name).weight for m in base.maps}
        kept = {name: weight.clone() for name, weight in weights.items()}
        assert stack.private is not None
        for lora, weight in zip(
            (*stack.shared, stack.private), (*stack.weights.tolist(), 1.0), strict=True
        ):
            for name, factors in lora:
                weights[name].add_(factors.delta(), alpha=weight)
        expected = bare(input_ids=ids, use_cache=False).logits
        for name, value in kept.items():
            weights[name].copy_(value)
        plain = bare(input_ids=ids, use_cache=False).logits
        empty = base.model(input_ids=ids, use_cache=False).logits
        with base.stack.using(parts_of(base, [stack])):
            unmerged = base.model(input_ids=ids, use_cache=False).logits
        with folded(base, stack):
            in_weights = base.model(input_ids=ids, use_cache=False).logits
        after = base.model(input_ids=ids, use_cache=False).logits

    def check(what: str, ours: Tensor, theirs: Tensor, bound: float) -> Equality:
        return checked(what, relative_difference(ours, theirs), bound)

    return (
        check("logits without a stack and of the bare model", empty, plain, 0.0),
        check("logits unmerged and of dense updates", unmerged, expected, FP32_OUTPUTS),
        check("logits folded and of dense updates", in_weights, expected, FP32_OUTPUTS),
        check("logits after unfolding and before", after, empty, 0.0),
    )


def prefill(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return a step that reads a prompt, (1, tokens)."""

    def step() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    return step


def decode(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return a step that writes some tokens after the start of a prompt, (1, tokens)."""
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :CONTEXT], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def step() -> None:
        for _ in range(NEW_TOKENS):
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-NEW_TOKENS)

    return step


@torch.no_grad()
def _timed(
    base: BaseModel,
    bare: Any,
    stack: Personalised,
    work: Callable[[Any, Tensor], Callable[[], None]],
    rounds: int,
    on_round: Callable[[], None],
) -> dict[str, tuple[float, ...]]:
    """Time one kind of work on the bare model, on ours unmerged, and on ours folded."""
    ids = torch.tensor([text_tokens(base, PROMPT)], device=base.device)
    parts = parts_of(base, [stack])
    return interleave(
        {
            "bare": work(bare, ids),
            "unmerged": work(base.model, ids),
            "folded": work(base.model, ids),
        },
        rounds,
        on_round,
        within={
            "unmerged": lambda: base.stack.using(parts),
            # Folding is paid once, by however many tokens, and reported apart.
            "folded": lambda: folded(base, stack),
        },
    )


def _fold_and_restore(base: BaseModel, stack: Personalised) -> float:
    """Return the seconds of putting a stack into the weights and taking it out again."""

    def there_and_back() -> None:
        with folded(base, stack):
            pass

    return min(clock(there_and_back) for _ in range(3))
