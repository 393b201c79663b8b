"""PROPER's three stages (arXiv 2503.01303): what each trains, from samples to tensors.

    stage 2     experts, input router, user router; the constraint loss with a real gradient
    stage 3.1   one user LoRA each, everything else frozen
    stage 3.2   the LoRA-aware router, shared by all; at inference the user router is gone

A user embedding from content is, for each map, the mean of the map's inputs over the person's
history, centred and scaled by the server's users to the spread of ``nn.Embedding``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.cohort import FusionWeights, train_cohort
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.progress import tokens_done
from shared.samples import Sample, collate
from shared.seeding import derive_seed
from shared.training import Trainee, answer_losses, learning_rate, mean_per_user
from simulations.baselines.gated_layer import Update, adding
from simulations.baselines.proper_layer import (
    MapGates,
    constraint,
    group_updates,
    initial_gates,
    user_updates,
    with_lora_router,
)
from simulations.comparison.config import ProperConfig

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")

Embeddings = dict[str, Tensor]
"""By map: (users, in)."""
Groups = Sequence[Sequence[Sample]]


@dataclass(frozen=True)
class Trained:
    """What stage 2 leaves: experts, routers, and the embeddings if they were trained."""

    experts: Slab
    gates: dict[str, MapGates]
    table: Embeddings


def on_feed_forward(base: BaseModel) -> BaseModel:
    """Return the base model whose LoRAs are on feed-forward maps; on all, where none is adapted."""
    maps = tuple(m for m in base.maps if m.name.rpartition(".")[2] in FEED_FORWARD)
    return replace(base, maps=maps or base.maps)


@torch.no_grad()
def content_embeddings(base: BaseModel, population: Lora, groups: Groups) -> Embeddings:
    """Return each user's mean input of each map over the tokens of the history, (users, in)."""
    found: dict[str, list[Tensor]] = {m.name: [] for m in base.maps}
    below = Parts(1, population.to(base.dtype, base.device))
    for samples in groups:
        batch = collate([samples], base.pad_token, base.device)
        real = real_tokens(batch.lengths, batch.ids)
        means: dict[str, Tensor] = {}

        def watch(name: str, real: Tensor, means: dict[str, Tensor]) -> Update:
            def look(x: Tensor) -> None:
                by_row = (x.float() * real[..., None]).sum(1) / real.sum(1, keepdim=True)
                means[name] = by_row.mean(0).cpu()

            return look

        updates = {m.name: watch(m.name, real, means) for m in base.maps}
        with base.stack.using(below), adding(base, updates):
            base.hidden_states(batch.ids, batch.lengths)
        for name, mean in means.items():
            found[name].append(mean)
    return {name: torch.stack(own) for name, own in found.items()}


def standardised(embeddings: Embeddings, server: Embeddings) -> Embeddings:
    """Centre embeddings and scale them to unit spread, both as the server's users have it."""
    return {
        name: (own - server[name].mean(0)) / (server[name] - server[name].mean(0)).std().clamp(1e-6)
        for name, own in embeddings.items()
    }


def real_tokens(lengths: Sequence[int], ids: Tensor) -> Tensor:
    """Return where a batch has tokens, not padding: bool, (rows, tokens)."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    return columns < torch.tensor(lengths, device=ids.device)[:, None]


def _mixed(samples: Groups, size: int, epochs: int, seed: int) -> list[list[tuple[int, Sample]]]:
    """Return batches of single samples of anybody, shuffled over all users."""
    pairs = [(user, sample) for user, own in enumerate(samples) for sample in own]
    batches = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "mixed", epoch))
        order = torch.randperm(len(pairs), generator=generator).tolist()
        batches += [
            [pairs[i] for i in order[start : start + size]] for start in range(0, len(order), size)
        ]
    return batches


def train_groups(
    base: BaseModel,
    population: Lora,
    samples: Groups,
    embeddings: Embeddings | None,
    config: ProperConfig,
    seed: int,
) -> Trained:
    """Stage 2: train experts and routers jointly; the user embeddings too if none are given."""
    device, maps = base.device, base.maps
    seeds = [derive_seed(seed, "expert", i) for i in range(config.count)]
    rows = Slab.initial(maps, config.rank, seeds).rows.to(device)
    slab = Slab(maps, config.rank, rows)
    gates = initial_gates(maps, config.count, derive_seed(seed, "gates"))
    gates = {
        name: MapGates(*(t.to(device) for t in (own.input, own.user, own.lora)))
        for name, own in gates.items()
    }
    trained_ids = embeddings is None
    table = _initial_table(base, len(samples), seed) if embeddings is None else embeddings
    table = {name: own.to(device) for name, own in table.items()}
    routers = [t.requires_grad_() for own in gates.values() for t in (own.input, own.user)]
    if trained_ids:
        routers += [own.requires_grad_() for own in table.values()]
    optimiser = torch.optim.AdamW(
        [
            {"params": [rows], "rate": config.learning_rate},
            {"params": routers, "rate": config.router_learning_rate},
        ],
        weight_decay=0.0,
    )
    below = Parts(1, population.to(base.dtype, device))
    plan = _mixed(samples, config.batch_size, config.epochs, derive_seed(seed, "groups"))
    for step, batch_samples in enumerate(plan):
        batch = collate([[sample] for _, sample in batch_samples], base.pad_token, device)
        users = torch.tensor([user for user, _ in batch_samples], device=device)
        real, heard = real_tokens(batch.lengths, batch.ids), list[Tensor]()

        def hear(_: str, weights: Tensor, real: Tensor = real, heard: list[Tensor] = heard) -> None:
            heard.append(constraint(weights, real))

        leaves = slab.leaves(config.count)
        own = {name: embedding[users] for name, embedding in table.items()}
        updates = group_updates(leaves, gates, own, hear)
        with base.stack.using(below), adding(base, updates):
            loss = mean_per_user(answer_losses(base, batch), batch).mean()
        loss = loss + config.constraint * torch.stack(heard).mean()
        tensors = [tensor for f in leaves.values() for tensor in (f.a, f.b)]
        gradients = torch.autograd.grad(loss, [*tensors, *routers])
        rows.grad = Slab.to_rows(gradients[: len(tensors)])
        for router, gradient in zip(routers, gradients[len(tensors) :], strict=True):
            router.grad = gradient
        _step(optimiser, config, step, len(plan), [rows, *routers])
        tokens_done(sum(len(sample) for _, sample in batch_samples))
    return Trained(
        Slab(maps, config.rank, rows.detach().cpu()),
        {
            name: MapGates(*(t.detach().cpu() for t in (own.input, own.user, own.lora)))
            for name, own in gates.items()
        },
        {name: own.detach().cpu() for name, own in table.items()} if trained_ids else {},
    )


def _initial_table(base: BaseModel, users: int, seed: int) -> Embeddings:
    """Return user embeddings as ``nn.Embedding`` starts them: standard normal."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "ids"))
    return {m.name: torch.randn(users, m.in_features, generator=generator) for m in base.maps}


def _step(
    optimiser: torch.optim.Optimizer,
    config: ProperConfig,
    step: int,
    steps: int,
    trained: list[Tensor],
) -> None:
    torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
    share = learning_rate(config, step, steps) / config.learning_rate
    for group in optimiser.param_groups:
        group["lr"] = group["rate"] * share
    optimiser.step()


def train_user_loras(
    base: BaseModel,
    population: Lora,
    groups: Trained,
    embeddings: Embeddings,
    trainees: Sequence[Trainee],
    config: ProperConfig,
) -> tuple[Slab, list[list[tuple[int, float]]]]:
    """Stage 3.1: train each user's LoRA over the frozen experts; return them and their curves.

    One user after the other: each has gates of its own.
    """
    private = config.model_copy(
        update={"epochs": config.user_epochs, "learning_rate": config.user_learning_rate}
    )
    experts, gates = _on_device(base, groups)
    rows, curves = [], []
    for user, trainee in enumerate(trainees):
        own = {name: table[user : user + 1].to(base.device) for name, table in embeddings.items()}
        start = Slab.initial(base.maps, config.rank, [derive_seed(trainee.seed, "start")])
        fusion = FusionWeights((population,), torch.ones(1, 1))
        with adding(base, group_updates(experts, gates, own)):
            trained = train_cohort(base, [trainee], start, private, fusion)
        rows.append(trained.slab.rows[0])
        curves.append(trained.curves[trainee.name])
    return Slab(base.maps, config.rank, torch.stack(rows)), curves


def train_lora_router(
    base: BaseModel,
    population: Lora,
    groups: Trained,
    users: Slab,
    samples: Groups,
    config: ProperConfig,
    seed: int,
) -> dict[str, Tensor]:
    """Stage 3.2: train W_l, from each user's own LoRA to weights over the experts; by map."""
    experts, gates = _on_device(base, groups)
    routers = {name: own.lora.clone().requires_grad_() for name, own in gates.items()}
    gates = with_lora_router(gates, routers)
    optimiser = torch.optim.AdamW(
        [{"params": list(routers.values()), "rate": config.router_learning_rate}], weight_decay=0.0
    )
    below, views = Parts(1, population.to(base.dtype, base.device)), users.views()
    plan = _mixed(
        samples, config.batch_size, config.lora_router_epochs, derive_seed(seed, "lora router")
    )
    for step, batch_samples in enumerate(plan):
        batch = collate([[sample] for _, sample in batch_samples], base.pad_token, base.device)
        index = torch.tensor([user for user, _ in batch_samples])
        own = {
            name: Factors(f.a[index].to(base.device), f.b[index].to(base.device))
            for name, f in views.items()
        }
        with base.stack.using(below), adding(base, user_updates(experts, gates, own)):
            loss = mean_per_user(answer_losses(base, batch), batch).mean()
        gradients = torch.autograd.grad(loss, list(routers.values()))
        for router, gradient in zip(routers.values(), gradients, strict=True):
            router.grad = gradient
        _step(optimiser, config, step, len(plan), list(routers.values()))
        tokens_done(sum(len(sample) for _, sample in batch_samples))
    return {name: router.detach().cpu() for name, router in routers.items()}


def _on_device(base: BaseModel, groups: Trained) -> tuple[dict[str, Factors], dict[str, MapGates]]:
    experts = groups.experts.to(base.dtype, base.device).views()
    gates = {
        name: MapGates(*(t.to(base.device) for t in (own.input, own.user, own.lora)))
        for name, own in groups.gates.items()
    }
    return experts, gates


def inference(base: BaseModel, groups: Trained, users: Slab) -> dict[str, Update]:
    """Return the updates by which queries are answered (stage 3.2), from a LoRA a person."""
    experts, gates = _on_device(base, groups)
    return user_updates(experts, gates, users.to(torch.float32, base.device).views())
