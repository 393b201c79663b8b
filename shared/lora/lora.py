"""A LoRA as a value: for each linear map of the base model, a pair of low-rank factors.

    y = W x + B A x            in rows:   y = x W^T + (x a) b

Mesofed's LoRAs carry no alpha: whatever scales an update is part of ``b``, so that sums and
products of LoRAs are plain matrix algebra.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearMap:
    """One linear map of the base model that carries LoRAs."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Factors:
    """The low-rank update of one linear map.

    Attributes
    ----------
    a : Tensor, (in, rank)
        Down-projection, the transpose of the papers' A.
    b : Tensor, (rank, out)
        Up-projection, the transpose of the papers' B.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of ``a`` and rows of ``b``."""
        return self.a.shape[-1]

    def delta(self) -> Tensor:
        """Return the dense update B A of W, (out, in)."""
        return (self.a @ self.b).mT


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of some linear maps, by the maps' names."""

    factors: Mapping[str, Factors]

    def __iter__(self) -> Iterator[tuple[str, Factors]]:
        return iter(self.factors.items())

    @property
    def rank(self) -> int:
        """The rank, which all maps share; 0 for a LoRA of no map."""
        return next((factors.rank for factors in self.factors.values()), 0)

    @property
    def parameters(self) -> int:
        """Number of stored numbers."""
        return sum(f.a.numel() + f.b.numel() for f in self.factors.values())

    @cached_property
    def by_rank(self) -> "tuple[Lora, ...]":
        """The LoRA as the sum of LoRAs of rank 1, as views; the same ones every time."""
        return tuple(
            Lora({name: Factors(f.a[:, i : i + 1], f.b[i : i + 1]) for name, f in self})
            for i in range(self.rank)
        )

    def to(self, dtype: torch.dtype, device: torch.device) -> "Lora":
        """Return the LoRA in another format or on another device."""
        return Lora(
            {name: Factors(f.a.to(device, dtype), f.b.to(device, dtype)) for name, f in self}
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return contiguous tensors by ``<map>.a`` and ``<map>.b``, as stored on disk."""
        return {
            f"{name}.{side}": tensor.detach().contiguous()
            for name, factors in self
            for side, tensor in (("a", factors.a), ("b", factors.b))
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Lora":
        """Rebuild a LoRA from what :meth:`tensors` returned."""
        names = [key.removesuffix(".a") for key in tensors if key.endswith(".a")]
        return cls({name: Factors(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names})
