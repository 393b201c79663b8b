"""The row on moving between users: put the next user's LoRA in, take it out again."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.pretrained import load_folder
from simulations.benchmarks.interleave import interleave
from simulations.benchmarks.measurement import (
    Bar,
    Figure,
    Finding,
    Settings,
    checked,
    ratios,
)
from simulations.benchmarks.models import plain_model, resident
from simulations.benchmarks.peft_peer import adapter_name, lora_config, wrap
from simulations.benchmarks.workload import ALL_LINEAR, started_slab

RANK, STORED, SWAPS = 8, 8, 50
# Copying memory as large as a row, in and out, is all that has to be done.
COPIES = 2

State = dict[str, Tensor]


def next_user(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Move a slab row in and out, against PEFT's state dicts and against a model loaded anew."""
    base = resident(settings, "fp32", ALL_LINEAR)
    stored = started_slab(base, RANK, STORED)
    targets = [linear.name for linear in base.maps]
    plain = plain_model(settings.model, torch.float32, base.device)
    with tempfile.TemporaryDirectory(prefix="mesofed-") as name:
        # In the format in which it runs, so that loading it is as quick as can be.
        plain.save_pretrained(name)
        base.tokenizer.save_pretrained(name)
        wrapped = wrap(plain, Slab(stored.maps, RANK, stored.rows[:1]))
        state = {key: value.clone() for key, value in _taken_out(wrapped).items()}
        out = {key: torch.empty_like(value) for key, value in state.items()}
        swap = slab_swap(stored)

        def kept() -> State:
            return in_and_out(wrapped, state, out)

        def reloaded() -> State:
            from peft import get_peft_model

            model: Any = load_folder(Path(name), torch.float32)[0]
            fresh = get_peft_model(
                model.to(base.device), lora_config(targets, RANK), adapter_name(0)
            )
            return in_and_out(fresh, state, out)

        ours = Slab(stored.maps, RANK, swap(0)[None]).lora(0)
        equalities = (
            checked("numbers from the slab and from PEFT", difference(ours, kept()), 0.0),
            checked("numbers from the slab and a new model", difference(ours, reloaded()), 0.0),
        )
        turn = iter(range(1 << 62))
        many = interleave(
            {
                "slab": lambda: [swap(next(turn) % STORED) for _ in range(SWAPS)],
                "PEFT set and get": kept,
                "reload and wrap": reloaded,
                "copy alone": copies(stored.rows[0], SWAPS * COPIES),
            },
            settings.rounds,
            on_round,
        )
    seconds = many | {
        name: tuple(value / SWAPS for value in many[name]) for name in ("slab", "copy alone")
    }
    copy = min(seconds["copy alone"])
    return Finding(
        tuple(
            Figure(
                "next user in and out",
                against,
                ratios(seconds[side], seconds["slab"]),
                Bar(bar, at_least=True),
                min(seconds[side]) / copy,
            )
            for side, against, bar in (
                ("reload and wrap", "reload, wrap, set, get", 150.0),
                ("PEFT set and get", "PEFT set and get", 40.0),
            )
        ),
        equalities,
        seconds,
        {"bytes": stored.rows[0].nbytes},
    )


def slab_swap(stored: Slab) -> Callable[[int], Tensor]:
    """Return how a user's row moves into the working slab and out again."""
    working = Slab(stored.maps, stored.rank, torch.zeros_like(stored.rows[:1]))
    out = torch.empty_like(stored.rows[0])

    def swap(user: int) -> Tensor:
        working.rows[0].copy_(stored.rows[user])
        return out.copy_(working.rows[0])

    return swap


def in_and_out(wrapped: Any, state: State, out: State) -> State:
    """Put an adapter's state into a PEFT model and take it out again, into ``out``.

    PEFT returns references, which the next user's numbers overwrite; whoever wants to keep what a
    user has learned copies it, as the slab does.
    """
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(wrapped, state, adapter_name=adapter_name(0))
    found = _taken_out(wrapped)
    torch._foreach_copy_([out[key] for key in found], list(found.values()))  # as fast as can be
    return out


def difference(lora: Lora, state: Mapping[str, Tensor]) -> float:
    """Return the largest difference between a LoRA and PEFT's state of an adapter."""
    largest = 0.0
    for name, factors in lora:
        for side, tensor in (("A", factors.a), ("B", factors.b)):
            theirs = state[f"base_model.model.{name}.lora_{side}.weight"].mT
            largest = max(largest, float((tensor - theirs).abs().max()))
    return largest


def copies(row: Tensor, count: int) -> Callable[[], None]:
    """Return the least that moving rows takes: plain copies of as many bytes."""
    source, target = torch.zeros_like(row), torch.zeros_like(row)

    def copy() -> None:
        for _ in range(count):
            target.copy_(source)

    return copy


def _taken_out(wrapped: Any) -> State:
    from peft import get_peft_model_state_dict

    state: State = get_peft_model_state_dict(wrapped, adapter_name=adapter_name(0))
    return state
