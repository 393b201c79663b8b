"""PROPER's gated experts over one linear map, as published (arXiv 2503.01303; papers' code).

    stages 2 and 3.1   p_x = softmax(W_x x)   p_u = softmax(W_u e_u)   w = softmax(p_x + p_u)
    stage 3.2          w = softmax(W_l o_u)   o_u = B_u A_u x, the user LoRA's output
    y = W x + (1/E) sum_i w_i B_i A_i x  (+ o_u from stage 3.1 on)

The release's factor s = alpha / r = 2 is part of B, as in all of Mesofed. E = 5 there, and the
1/E is the release's too: it shrinks the experts' share five-fold over gates that sum to one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.lora.lora import Factors, LinearMap
from shared.lora.slab import Slab
from simulations.baselines.gated_layer import Update


@dataclass(frozen=True)
class MapGates:
    """Routers of one map.

    Attributes
    ----------
    input, user : Tensor, (in, experts)
        From a token's activation and from the user embedding to logits.
    lora : Tensor, (out, experts)
        From the user LoRA's output to logits.
    """

    input: Tensor
    user: Tensor
    lora: Tensor


def initial_gates(maps: Sequence[LinearMap], experts: int, seed: int) -> dict[str, MapGates]:
    """Return routers as ``nn.Linear`` starts them: uniform within 1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(inputs: int) -> Tensor:
        bound = inputs**-0.5
        return torch.empty(inputs, experts).uniform_(-bound, bound, generator=generator)

    return {
        m.name: MapGates(draw(m.in_features), draw(m.in_features), draw(m.out_features))
        for m in maps
    }


def token_and_user_gates(x: Tensor, embedding: Tensor, gates: MapGates) -> Tensor:
    """Return w = softmax(softmax(W_x x) + softmax(W_u e_u)), (rows, tokens, experts).

    Parameters
    ----------
    x : Tensor, (rows, tokens, in)
    embedding : Tensor, (rows, in)
        Of each row's user.
    """
    by_token = torch.softmax(x.float() @ gates.input, dim=-1)
    by_user = torch.softmax(embedding.float() @ gates.user, dim=-1)[:, None]
    return torch.softmax(by_token + by_user, dim=-1)


def lora_aware_gates(output: Tensor, gates: MapGates) -> Tensor:
    """Return w = softmax(W_l o_u), (rows, tokens, experts), of o_u (rows, tokens, out)."""
    return torch.softmax(output.float() @ gates.lora, dim=-1)


def gated_sum(x: Tensor, weights: Tensor, experts: Factors) -> Tensor:
    """Return (1/E) sum_i w_i B_i A_i x, (rows, tokens, out).

    Parameters
    ----------
    weights : Tensor, (rows, tokens, E)
    experts : Factors
        a (E, in, rank), b (E, rank, out).
    """
    count, _, rank = experts.a.shape
    a = experts.a.permute(1, 0, 2).flatten(1).to(x.dtype)  # (in, E * rank)
    low = (x @ a).unflatten(-1, (count, rank)) * (weights / count)[..., None].to(x.dtype)
    out: Tensor = low.flatten(-2) @ experts.b.flatten(0, 1).to(x.dtype)
    return out


def constraint(weights: Tensor, real: Tensor) -> Tensor:
    """Return sum_{i != j} |w_i w_j| of the gates averaged over a sample's tokens, mean of samples.

    As coded in the release, for batches of one sample; there the averages are rebuilt from
    ``.item()``, so that the term has no gradient. Here it has one.

    Parameters
    ----------
    weights : Tensor, (rows, tokens, E)
    real : Tensor of bool, (rows, tokens)
        Where there is a token, not padding.
    """
    mean = (weights * real[..., None]).sum(1) / real.sum(1, keepdim=True)  # (rows, E)
    pairs = mean[:, :, None] * mean[:, None]  # (rows, E, E)
    own = torch.diagonal(pairs, dim1=1, dim2=2).abs().sum(1)
    return (pairs.abs().sum((1, 2)) - own).mean()


def group_updates(
    experts: Mapping[str, Factors],
    gates: Mapping[str, MapGates],
    embeddings: Mapping[str, Tensor],
    told: Callable[[str, Tensor], None] | None = None,
) -> dict[str, Update]:
    """Return the updates of stages 2 and 3.1, by map.

    Parameters
    ----------
    embeddings : mapping of Tensor
        By map: that of each row's user, (rows, in); one row stands for all.
    told : callable, optional
        Hears each map's gates.
    """

    def update_of(name: str) -> Update:
        def update(x: Tensor) -> Tensor:
            rows = embeddings[name].expand(len(x), -1)
            weights = token_and_user_gates(x, rows, gates[name])
            if told is not None:
                told(name, weights)
            return gated_sum(x, weights, experts[name])

        return update

    return {name: update_of(name) for name in experts}


def user_updates(
    experts: Mapping[str, Factors],
    gates: Mapping[str, MapGates],
    users: Mapping[str, Factors],
) -> dict[str, Update]:
    """Return the updates of stage 3.2: the user LoRA's output, and the experts that it gates.

    Parameters
    ----------
    users : mapping of Factors
        By map: each user's LoRA, a (users, in, rank), b (users, rank, out). The rows of a batch are
        grouped by user, the same number for each.
    """

    def update_of(name: str) -> Update:
        def update(x: Tensor) -> Tensor:
            a, b = users[name].a.to(x.dtype), users[name].b.to(x.dtype)
            output: Tensor = (x.unflatten(0, (len(a), -1)) @ a[:, None] @ b[:, None]).flatten(0, 1)
            weights = lora_aware_gates(output, gates[name])
            return output + gated_sum(x, weights, experts[name])

        return update

    return {name: update_of(name) for name in experts}


def to_tensors(experts: Slab, gates: Mapping[str, MapGates]) -> dict[str, Tensor]:
    """Return experts and routers as named tensors."""
    return {"experts": experts.rows} | {
        f"{name}.{part}": getattr(own, part)
        for name, own in gates.items()
        for part in ("input", "user", "lora")
    }


def from_tensors(
    maps: tuple[LinearMap, ...], tensors: Mapping[str, Tensor]
) -> tuple[Slab, dict[str, MapGates]]:
    """Rebuild what :func:`to_tensors` returned."""
    gates = {
        m.name: MapGates(*(tensors[f"{m.name}.{part}"] for part in ("input", "user", "lora")))
        for m in maps
    }
    return Slab.from_rows(maps, tensors["experts"]), gates


def with_lora_router(
    gates: Mapping[str, MapGates], routers: Mapping[str, Tensor]
) -> dict[str, MapGates]:
    """Return the routers with other LoRA-aware ones."""
    return {name: replace(own, lora=routers[name]) for name, own in gates.items()}
