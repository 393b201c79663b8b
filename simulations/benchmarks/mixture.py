"""The row on eight users in one batch, each with its own weights over eight shared experts.

PEFT can serve them in turn, with all their adapters active, or in one batch that names an adapter
for each row, if the weighted experts are first concatenated into an adapter a user. Both are
timed; the second cannot be trained.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from client.personalize import Personalised, parts_of
from shared.base_model import BaseModel
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.seeding import derive_seed
from simulations.benchmarks.equality import FP32_OUTPUTS, relative_difference
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
from simulations.benchmarks.peft_peer import (
    adapter_layer,
    adapter_name,
    fill_adapter,
    lora_config,
    wrap,
)
from simulations.benchmarks.roofline import low_rank_share
from simulations.benchmarks.workload import ALL_LINEAR, started_slab, text_tokens

USERS, EXPERTS, RANK, PRIVATE_RANK, TOKENS = 8, 8, 8, 2, 64


@torch.no_grad()
def mixture(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Read eight users' prompts in one forward pass, logits of the last tokens only."""
    exact, base = (resident(settings, form, ALL_LINEAR) for form in ("fp32", "auto"))
    stacks, device = mixed_stacks(exact), base.device
    ids = torch.tensor([text_tokens(base, USERS * TOKENS)], device=device).view(USERS, TOKENS)
    attention = base.model.config._attn_implementation
    bare = plain_model(settings.model, torch.float32, device, attention)
    peers = {
        "PEFT loop": active_loop(plain_model(settings.model, torch.float32, device), stacks, ids),
        "PEFT mixed batch": mixed_batch(
            plain_model(settings.model, torch.float32, device), exact, stacks, ids
        ),
    }
    parts, parts_exact = parts_of(base, stacks), parts_of(exact, stacks)
    with exact.stack.using(parts_exact):
        ours = last_logits(exact.model, ids)
    equalities = tuple(
        checked(
            f"logits of each user and of the {name} (fp32)",
            relative_difference(ours, peer()),
            FP32_OUTPUTS,
        )
        for name, peer in peers.items()
    )
    seconds = interleave(
        {
            **peers,
            "one batch": lambda: last_logits(base.model, ids),
            "one batch, fp32": lambda: last_logits(exact.model, ids),
            "bare, fp32": lambda: last_logits(bare, ids),
        },
        settings.rounds,
        on_round,
        within={
            "one batch": lambda: base.stack.using(parts),
            "one batch, fp32": lambda: exact.stack.using(parts_exact),
        },
    )
    what = f"{EXPERTS} experts + private, {USERS} users"
    own, exactly = seconds["one batch"], seconds["one batch, fp32"]
    least = 1 + low_rank_share(base.maps, EXPERTS * RANK + PRIVATE_RANK, bare)
    return Finding(
        (
            Figure(what, "PEFT loop over users", ratios(seconds["PEFT loop"], own), Bar(2.0, True)),
            Figure(f"{what}, fp32", "PEFT loop over users", ratios(seconds["PEFT loop"], exactly)),
            Figure(
                f"{what}, fp32",
                "PEFT's mixed batch",
                ratios(seconds["PEFT mixed batch"], exactly),
            ),
            Figure(
                f"{what}, fp32",
                "bare base model",
                ratios(exactly, seconds["bare, fp32"]),
                Bar(1.35, at_least=False),
                least,
                higher_is_better=False,
            ),
        ),
        equalities,
        seconds,
    )


def mixed_stacks(base: BaseModel) -> list[Personalised]:
    """Return each user's stack: the shared experts at the user's weights, and a private LoRA."""
    experts = started_slab(base, RANK, EXPERTS).loras()
    private = started_slab(base, PRIVATE_RANK, USERS).loras()
    generator = torch.Generator().manual_seed(derive_seed(0, "weights"))
    weights = torch.softmax(torch.randn(USERS, EXPERTS, generator=generator), dim=1)
    return [Personalised(experts, weights[user], private[user]) for user in range(USERS)]


def last_logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    """Return the logits after each prompt, (users, vocabulary)."""
    logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1, **more).logits
    return logits[:, 0]


def active_loop(model: Any, stacks: list[Personalised], ids: Tensor) -> Callable[[], Tensor]:
    """Return PEFT's pass of all users in turn, experts and private adapter active together."""
    from peft import get_peft_model

    names = [f"expert{index}" for index in range(EXPERTS)]
    maps = tuple(stacks[0].shared[0].factors)
    experts = stacks[0].shared
    wrapped = get_peft_model(model, _config(experts[0]), names[0])
    for name, lora in zip(names[1:], experts[1:], strict=True):
        wrapped.add_adapter(name, _config(lora))
    for name, lora in zip(names, experts, strict=True):
        fill_adapter(wrapped, name, lora.factors)
    for user, stack in enumerate(stacks):
        assert stack.private is not None
        wrapped.add_adapter(adapter_name(user), _config(stack.private))
        fill_adapter(wrapped, adapter_name(user), stack.private.factors)
    layers = [adapter_layer(wrapped, target) for target in maps]
    wrapped.eval()

    def loop() -> Tensor:
        logits = []
        for user, stack in enumerate(stacks):
            wrapped.base_model.set_adapter([*names, adapter_name(user)])
            for layer in layers:
                layer.scaling.update(zip(names, stack.weights.tolist(), strict=True))
            logits.append(last_logits(wrapped, ids[user : user + 1]))
        return torch.cat(logits)

    return loop


def mixed_batch(
    model: Any, base: BaseModel, stacks: list[Personalised], ids: Tensor
) -> Callable[[], Tensor]:
    """Return PEFT's pass of all users at once, each row by an adapter of its own.

    All parts of a user have been concatenated into that adapter, at their weights.
    """
    folded = [stack.folded() for stack in stacks]
    wrapped = wrap(model, Slab.of(base.maps, [lora for lora in folded if lora is not None]))
    wrapped.eval()
    names = [adapter_name(user) for user in range(USERS)]
    return lambda: last_logits(wrapped, ids, adapter_names=names)


def _config(lora: Lora) -> Any:
    return lora_config(tuple(lora.factors), lora.rank)
