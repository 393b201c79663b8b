"""The physical limit: what the base model's matrix products cost alone, at this machine's best.

A step cannot be faster than its matrix products. They are timed one shape at a time on matrices
that are in the cache already, so the sum is a lower bound; attention, norms, LoRAs and the
optimiser come on top.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from shared.base_model import BaseModel
from shared.lora.lora import LinearMap
from simulations.benchmarks.interleave import clock

_REPEATS = 5

Shape = tuple[int, int]


def step_seconds(base: BaseModel, tokens: int, answers: int, *, prefix: bool = True) -> float:
    """Return the seconds of a training step's matrix products with the frozen base.

    Parameters
    ----------
    tokens : int
        In the batch.
    answers : int
        Tokens that go through the vocabulary head.
    prefix : bool
        Whether the layers below the lowest LoRA are remembered; else they run forward.
    """
    layers = _layers(base)
    cut = base.prefix.cut if base.prefix is not None else 0
    upper = _shapes(layers[cut:])
    products = {shape: 2 * count for shape, count in upper.items()}  # forward and input gradient
    if not prefix:
        for shape, count in _shapes(layers[:cut]).items():
            products[shape] = products.get(shape, 0) + count
    seconds = sum(n * _product_seconds(base, shape, tokens) for shape, n in products.items())
    head = base.model.get_output_embeddings().weight
    return seconds + 2 * _product_seconds(base, (head.shape[1], head.shape[0]), answers)


def low_rank_share(maps: Iterable[LinearMap], rank: int, model: nn.Module) -> float:
    """Return the multiplications of LoRAs of a total rank as a share of the base model's own."""
    low = sum(rank * (m.in_features + m.out_features) for m in maps)
    return low / sum(p.numel() for p in model.parameters())


def _layers(base: BaseModel) -> list[nn.Module]:
    layers = base.model.get_decoder().layers
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def _shapes(layers: Iterable[nn.Module]) -> Counter[Shape]:
    """Count linear maps by (in, out)."""
    return Counter(
        (module.in_features, module.out_features)
        for layer in layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )


def _product_seconds(base: BaseModel, shape: Shape, rows: int) -> float:
    """Return the seconds of x W^T for x (rows, in) and W (out, in)."""
    x = torch.randn(rows, shape[0], device=base.device).to(base.dtype)
    weight = torch.randn(shape[1], shape[0], device=base.device).to(base.dtype)
    product = torch.nn.functional.linear
    with torch.no_grad():
        product(x, weight)
        return min(clock(lambda: product(x, weight)) for _ in range(_REPEATS))
