"""Exact algebra of LoRAs: the sum of LoRAs is the sum of their products B A.

Averaging A and B apart, as several released codes do, adds cross terms; laying ranks side by side
is exact (FLoRA, arXiv 2409.05976, section 3). Compression goes through the QR factors and the
SVD of a small core, never through an SVD of the dense update.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shared.errors import MesofedError
from shared.lora.lora import Factors, Lora


def concatenate(loras: Sequence[Lora]) -> Lora:
    """Return the exact sum, with ranks side by side: rank R = sum of the ranks.

    Raises
    ------
    MesofedError
        If there is no LoRA, or if they are not over the same linear maps.
    """
    if not loras:
        raise MesofedError("Expected at least one LoRA to concatenate; got none.")
    names = list(loras[0].factors)
    for lora in loras[1:]:
        if set(lora.factors) != set(names):
            differing = sorted(set(names) ^ set(lora.factors))
            raise MesofedError(
                f"Expected LoRAs over the same linear maps; they differ in {differing[:4]}."
            )
    if len(loras) == 1:
        return loras[0]
    return Lora(
        {
            name: Factors(
                torch.cat([lora.factors[name].a for lora in loras], dim=1),  # (in, R)
                torch.cat([lora.factors[name].b for lora in loras], dim=0),  # (R, out)
            )
            for name in names
        }
    )


def scale(lora: Lora, factor: float | Tensor) -> Lora:
    """Return the LoRA whose update is ``factor`` times this one's."""
    return Lora({name: Factors(f.a, f.b * factor) for name, f in lora})


def widened(lora: Lora, like: Lora) -> Lora:
    """Return the same update over the maps of another LoRA: zero where it has none."""

    def of(name: str, other: Factors) -> Factors:
        if name in lora.factors:
            return lora.factors[name]
        a, b = other.a[:, :1], other.b[:1]
        rank = lora.rank
        return Factors(torch.zeros_like(a).repeat(1, rank), torch.zeros_like(b).repeat(rank, 1))

    return Lora({name: of(name, other) for name, other in like})


def fuse(loras: Sequence[Lora], weights: Sequence[float] | Tensor) -> Lora:
    """Return the weighted sum of LoRAs, exactly: sum_i w_i B_i A_i.

    Raises
    ------
    MesofedError
        If there are not as many weights as LoRAs.
    """
    if len(loras) != len(weights):
        raise MesofedError(f"Expected {len(loras)} fusion weights; got {len(weights)}.")
    return concatenate([scale(lora, w) for lora, w in zip(loras, weights, strict=True)])


def compress(lora: Lora, rank: int) -> Lora:
    """Return the best LoRA of at most this rank, in the Frobenius norm of the update.

    With a = Q_a R_a and b^T = Q_b R_b, the update is Q_a (R_a R_b^T) Q_b^T: its singular values
    are those of the (R, R) core, so the cost does not grow with the square of the width.
    """
    if rank < 1:
        raise MesofedError(f"Expected a rank of at least 1; got {rank}.")

    def one(factors: Factors) -> Factors:
        q_a, r_a = torch.linalg.qr(factors.a.double())  # (in, m), (m, R)
        q_b, r_b = torch.linalg.qr(factors.b.double().mT)  # (out, n), (n, R)
        u, s, vt = torch.linalg.svd(r_a @ r_b.mT, full_matrices=False)
        root = s[:rank].sqrt()
        a, b = q_a @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ q_b.mT
        return Factors(a.to(factors.a.dtype), b.to(factors.b.dtype))

    return Lora({name: one(factors) for name, factors in lora})


@contextmanager
def merged(weights: Mapping[str, Tensor], lora: Lora) -> Iterator[None]:
    """Add a LoRA into fp32 weights for the length of a block; restore them by copy.

    Parameters
    ----------
    weights : mapping of Tensor
        By map: W (out, in), changed in place.
    lora : Lora
        What is added to them.

    Raises
    ------
    MesofedError
        If a weight is missing or is not fp32: adding a small update into bf16 loses up to half
        of it, so other formats keep their LoRAs unmerged.
    """
    for name in lora.factors:
        found = weights[name].dtype if name in weights else "no weight"
        if found != torch.float32:
            raise MesofedError(
                f"Expected an fp32 weight for {name} to merge a LoRA into; got {found}. "
                "Load the base model with base.format=fp32, or keep the LoRA unmerged."
            )
    kept = {name: weights[name].detach().clone() for name in lora.factors}
    try:
        with torch.no_grad():
            for name, factors in lora:
                weights[name].addmm_(factors.b.mT.float(), factors.a.mT.float())
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                weights[name].copy_(weight)


def base_weights(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights under the adapter layers of a model, by map."""
    return {name: model.get_submodule(name).base.weight for name in names}  # type: ignore[union-attr, misc]
