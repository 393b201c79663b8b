"""The peer: PEFT as a researcher uses it, one adapter a user in one resident model, users in turn.

Everything is at its default: the attention that transformers chooses, its loss from ``labels``,
and the fused AdamW of its Trainer. On two cores none of the alternatives is faster.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from shared.lora.lora import Factors
from shared.lora.slab import Slab
from simulations.benchmarks.cohort import LEARNING_RATE, Gradients
from simulations.benchmarks.workload import Workload


def adapter_name(user: int) -> str:
    """Return the name of a user's adapter."""
    return f"user{user}"


def wrap(model: Any, slab: Slab) -> Any:
    """Return a PEFT model with one adapter a row of the slab, all resident."""
    from peft import get_peft_model

    targets = [linear.name for linear in slab.maps]
    wrapped = get_peft_model(model, lora_config(targets, slab.rank), adapter_name(0))
    for user in range(1, len(slab.rows)):
        wrapped.add_adapter(adapter_name(user), lora_config(targets, slab.rank))
    for user, lora in enumerate(slab.loras()):
        fill_adapter(wrapped, adapter_name(user), lora.factors)
    return wrapped


def lora_config(targets: Sequence[str], rank: int) -> Any:
    """Return PEFT's configuration of a LoRA with scaling 1 over the named linear maps."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))


def fill_adapter(wrapped: Any, name: str, factors: Mapping[str, Factors]) -> None:
    """Copy a LoRA into an adapter."""
    with torch.no_grad():
        for target, pair in factors.items():
            layer = adapter_layer(wrapped, target)
            layer.lora_A[name].weight.copy_(pair.a.mT)  # (r, in)
            layer.lora_B[name].weight.copy_(pair.b.mT)  # (out, r)


def adapter_layer(wrapped: Any, target: str) -> Any:
    """Return PEFT's layer over a linear map of the base model."""
    return wrapped.get_submodule(f"base_model.model.{target}")


def parameters_of(wrapped: Any, name: str) -> list[nn.Parameter]:
    """Return the parameters of one adapter."""
    return [p for key, p in wrapped.named_parameters() if f".{name}." in key]


def peft_gradients(wrapped: Any, slab: Slab, workload: Workload) -> Gradients:
    """Run every user forward and backward in turn; return gradients in the slab's layout."""
    rows = torch.zeros_like(slab.rows)
    views = slab.views(rows)
    losses = []
    device = slab.rows.device
    for user, (ids, labels) in enumerate(workload.labelled(device)):
        name = adapter_name(user)
        wrapped.set_adapter(name)
        loss = wrapped(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
        for target, view in views.items():
            layer = adapter_layer(wrapped, target)
            view.a[user].copy_(layer.lora_A[name].weight.grad.mT)
            view.b[user].copy_(layer.lora_B[name].weight.grad.mT)
        for parameter in parameters_of(wrapped, name):
            parameter.grad = None
    return Gradients(torch.stack(losses), rows)


def peft_step(wrapped: Any, workload: Workload, device: torch.device) -> Callable[[], None]:
    """Return a training step of all users in turn: set_adapter, forward, backward, AdamW each."""
    optimisers = [
        torch.optim.AdamW(parameters_of(wrapped, adapter_name(user)), lr=LEARNING_RATE, fused=True)
        for user in range(workload.users)
    ]
    wrapped.train()

    def step() -> None:
        for user, (ids, labels) in enumerate(workload.labelled(device)):
            wrapped.set_adapter(adapter_name(user))
            wrapped(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            optimisers[user].step()
            optimisers[user].zero_grad()

    return step
