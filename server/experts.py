"""Group experts and the user-aware router, trained jointly (PROPER, stage 2).

    y = W x + B_p A_p x + sum_e g_e(u) B_e A_e x,      g(u) = softmax(router(place of u))

PROPER as released starts all experts alike, and its constraint term has no gradient, so nothing
keeps the experts apart. Here the users are clustered first: the router starts at the clusters'
centres and each expert with one pass over its cluster; then all of it is trained jointly, with a
load-balance term that is a differentiable function of the router.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.anchors import cluster_centres
from shared.base_model import BaseModel
from shared.cohort import FusionWeights, train_cohort
from shared.config import ExpertsConfig
from shared.lora.algebra import concatenate
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.progress import tokens_done
from shared.routing import Router, normalised_entropy
from shared.samples import Sample, collate
from shared.seeding import derive_seed
from shared.training import Trainee, answer_losses, batches_of, learning_rate, mean_per_user

# Logit of a user's own cluster against an orthogonal one: with four experts it starts at about
# nine tenths, so the router begins decided but can still move.
START_SHARPNESS = 4.0


@dataclass(frozen=True)
class RouterStep:
    """What the router did at one joint step."""

    step: int
    loss: float
    balance: float
    mean_gates: tuple[float, ...]
    gate_entropy: float


@dataclass(frozen=True)
class TrainedExperts:
    """Experts, router, and how they came to be.

    Attributes
    ----------
    slab : Slab
        Row e is expert e, over the population LoRA.
    router : Router
        Trained with them.
    curves : dict of list of (step, loss)
        Per expert for the start on clusters, and "joint".
    steps : list of RouterStep
        Router numbers of the joint training.
    tokens : int
        Tokens processed.
    """

    slab: Slab
    router: Router
    curves: dict[str, list[tuple[int, float]]]
    steps: list[RouterStep]
    tokens: int


def load_balance(gates: Tensor) -> Tensor:
    """Return experts * sum_e mean_gate_e^2 - 1, zero when users use all experts equally.

    Parameters
    ----------
    gates : Tensor, (users, experts)
        Expert weights of all the server's users, differentiable in the router.
    """
    mean = gates.mean(0)
    return gates.shape[1] * (mean * mean).sum() - 1


def side_by_side(factors: dict[str, Factors]) -> Lora:
    """Lay experts, a (experts, in, rank) and b (experts, rank, out), along the rank axis."""
    return Lora(
        {
            name: Factors(f.a.permute(1, 0, 2).flatten(1), f.b.flatten(0, 1))  # (in, R), (R, out)
            for name, f in factors.items()
        }
    )


def train_experts(
    base: BaseModel,
    population: Lora,
    places: Tensor,
    samples: Sequence[Sequence[Sample]],
    config: ExpertsConfig,
    seed: int,
    start: tuple[Sequence[Lora], Router] | None = None,
) -> TrainedExperts:
    """Train the experts and the router.

    Parameters
    ----------
    population : Lora
        Frozen below the experts.
    places : Tensor, (users, k)
        The server's users in the embedding space.
    samples : sequence of sequence of Sample
        By user.
    start : (experts, router), optional
        Those of the release before, to go on from in place of clusters.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    if start is not None:
        slab, router, tokens = Slab.of(base.maps, start[0]), start[1], 0
    else:
        slab, router, curves, tokens = _start_on_clusters(
            base, population, places, samples, config, seed
        )
    return _train_jointly(
        base, population, places, samples, config, seed, slab, router, curves, tokens
    )


def _start_on_clusters(
    base: BaseModel,
    population: Lora,
    places: Tensor,
    samples: Sequence[Sequence[Sample]],
    config: ExpertsConfig,
    seed: int,
) -> tuple[Slab, Router, dict[str, list[tuple[int, float]]], int]:
    """Cluster the users; give each expert one pass over its cluster, as one cohort."""
    centres, cluster = cluster_centres(places, config.count, derive_seed(seed, "clusters"))
    count = len(centres)
    trainees = [
        Trainee(
            f"expert {expert}",
            tuple(s for user in torch.nonzero(cluster == expert)[:, 0] for s in samples[user]),
            derive_seed(seed, "expert", expert),
        )
        for expert in range(count)
    ]
    initial = Slab.initial(base.maps, config.rank, [t.seed for t in trainees])
    fusion = FusionWeights((population,), torch.ones(count, 1))
    one_pass = config.model_copy(update={"epochs": 1})
    trained = train_cohort(base, trainees, initial, one_pass, fusion)
    router = Router(START_SHARPNESS * centres.mT.contiguous(), torch.zeros(count))
    return trained.slab, router, trained.curves, trained.tokens


def _train_jointly(
    base: BaseModel,
    population: Lora,
    places: Tensor,
    samples: Sequence[Sequence[Sample]],
    config: ExpertsConfig,
    seed: int,
    slab: Slab,
    router: Router,
    curves: dict[str, list[tuple[int, float]]],
    tokens: int,
) -> TrainedExperts:
    """Train experts and router together on mixed batches of users."""
    plan = _mixed_batches(samples, config, derive_seed(seed, "joint"))
    rows = slab.rows.to(base.device, copy=True)
    slab = Slab(slab.maps, slab.rank, rows)
    weight = router.weight.to(base.device, copy=True).requires_grad_()
    bias = router.bias.to(base.device, copy=True).requires_grad_()
    router, places = Router(weight, bias), places.to(base.device)
    optimiser = torch.optim.AdamW(
        [
            {"params": [rows], "rate": config.learning_rate},
            {"params": [weight, bias], "rate": config.router_learning_rate},
        ],
        weight_decay=config.weight_decay,
    )
    frozen = population.to(base.dtype, base.device)
    ones = torch.ones(len(places), population.rank, device=base.device)
    steps: list[RouterStep] = []
    joint: list[tuple[int, float]] = []
    for step, users in enumerate(plan):
        share = learning_rate(config, step, len(plan)) / config.learning_rate
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * share
        gates = router(places)  # (all users, experts)
        weights = torch.cat([ones, gates.repeat_interleave(slab.rank, dim=1)], dim=1)
        leaves = slab.leaves(len(rows))
        shared = concatenate([frozen, side_by_side(leaves)])
        batch = collate([group for _, group in users], base.pad_token, base.device)
        index = torch.tensor([user for user, _ in users], device=base.device)
        with base.stack.using(Parts(len(users), shared, weights[index])):
            loss = mean_per_user(answer_losses(base, batch), batch).mean()
            balance = load_balance(gates)
            tensors = [tensor for f in leaves.values() for tensor in (f.a, f.b)]
            *gradients, weight.grad, bias.grad = torch.autograd.grad(
                loss + config.balance * balance, [*tensors, weight, bias]
            )
        rows.grad = Slab.to_rows(gradients)
        torch.nn.utils.clip_grad_norm_([rows, weight, bias], config.clip_norm)
        optimiser.step()
        steps.append(
            RouterStep(
                step,
                loss.item(),
                balance.item(),
                tuple(gates.detach().mean(0).tolist()),
                normalised_entropy(gates.detach().cpu()).mean().item(),
            )
        )
        joint.append((step, loss.item()))
        seen = sum(len(sample) for _, group in users for sample in group)
        tokens += seen
        tokens_done(seen)
    return TrainedExperts(
        Slab(slab.maps, slab.rank, rows.cpu()),
        Router(weight.detach().cpu(), bias.detach().cpu()),
        {**curves, "joint": joint},
        steps,
        tokens,
    )


def _mixed_batches(
    samples: Sequence[Sequence[Sample]], config: ExpertsConfig, seed: int
) -> list[list[tuple[int, list[Sample]]]]:
    """Return batches of (user, samples), each of about ``batch_size`` samples of several users.

    Rows of a batch are grouped by user, with two samples a user where there are as many: enough
    users in a batch for the router to tell them apart, few enough empty rows.
    """
    pairs = config.model_copy(update={"batch_size": 2})
    pieces = [
        (user, piece)
        for user, own in enumerate(samples)
        for piece in batches_of(Trainee(str(user), tuple(own), derive_seed(seed, user)), pairs)
    ]
    generator = torch.Generator().manual_seed(derive_seed(seed, "pieces"))
    order = torch.randperm(len(pieces), generator=generator).tolist()
    size = max(1, config.batch_size // 2)
    return [
        [pieces[i] for i in order[start : start + size]] for start in range(0, len(order), size)
    ]
