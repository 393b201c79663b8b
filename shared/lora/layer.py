"""The one adapter layer: everything low-rank over one linear map of the frozen base model.

    y = W x  +  B_s (g_u * (A_s x))  +  b_u a_u x
        base    shared parts             private pair of user u

``A_s, B_s`` hold all shared parts (population LoRA, group experts, anchors) side by side along
the rank axis; ``g_u`` is user u's weight per rank: 1 for the population LoRA, router weights for
the experts, fusion weights for the anchors. So all that is shared costs one pair of matrix
products whatever the number of parts, and all that is private one pair of batched products. The
same layer serves training, fusion and inference.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from shared.lora.dropout import Dropout
from shared.lora.lora import Factors, LinearMap, Lora
from shared.rowwise_product import ROWS, multiply_frozen

# A matrix of one column goes to another kernel for one user than for several.
LEAST_RANK = 2
# Up to so many multiplications torch takes a batch of bf16 matrices by itself, without oneDNN.
SMALL_BATCH = 16**3


@dataclass(frozen=True)
class Parts:
    """What is on for one batch, whose rows are grouped by user.

    Attributes
    ----------
    users : int
        Users in the batch; each has the same number of consecutive rows.
    shared : Lora or None
        All shared parts, concatenated: a (in, R) and b (R, out) a map.
    weights : Tensor (users, R) or None
        Weight of every shared rank for every user; None means 1 throughout.
    private : mapping of Factors or None
        By map: a (users, in, rank), b (users, rank, out), as ``Slab.views`` gives them.
    rowwise : bool
        Whether a user's bits must not depend on how many others there are, whatever that costs
        (``shared.rowwise_product``).
    dropout : Dropout or None
        What is dropped before the private pair, in training.
    """

    users: int = 1
    shared: Lora | None = None
    weights: Tensor | None = None
    private: Mapping[str, Factors] | None = None
    rowwise: bool = False
    dropout: Dropout | None = None


def expand_weights(loras: Sequence[Lora], weights: Tensor | None) -> Tensor | None:
    """Repeat each user's weight per part, (users, parts), along the ranks of the part, (users, R).

    ``loras`` are the parts in the order in which they were concatenated.
    """
    if weights is None or not loras:
        return None
    ranks = torch.tensor([lora.rank for lora in loras], device=weights.device)
    return weights.repeat_interleave(ranks, dim=1)


class StackedLinear(nn.Module):
    """A linear map of the base model with the parts of the adapter stack that are on."""

    def __init__(self, name: str, base: nn.Module, stack: "AdapterStack") -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.stack = stack
        # A token passes some hundreds of these layers: looking up and calling a module inside
        # each would cost it two per cent.
        self._map = base.forward

    @property
    def weight(self) -> Tensor:
        """The base map's, which some decoders read beside calling it."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base map's."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (rows, tokens, in) to y (rows, tokens, out)."""
        parts = self.stack.parts
        y: Tensor = _rowwise_map(self.base, x) if parts.rowwise else self._map(x)
        if parts.shared is not None and (shared := parts.shared.factors.get(self.name)):
            y = _add_shared(y, x, shared, parts)
        if parts.private is not None and (private := parts.private.get(self.name)):
            y = _add_private(y, x, private, parts)
        return y


def _rowwise_map(base: nn.Module, x: Tensor) -> Tensor:
    """Return what a linear map makes of x, (..., in), each row the same whatever others there are.

    Returns
    -------
    Tensor, (..., out)
    """
    flat = x.reshape(-1, x.shape[-1])
    if type(base) is nn.Linear:
        y = multiply_frozen(flat, base.weight.t())
        y = y if base.bias is None else y + base.bias
    else:  # quantised: its own kernels are asked for the same number of rows each time
        filled = pad(flat, (0, 0, 0, -len(flat) % ROWS))
        y = torch.cat([base(rows) for rows in filled.split(ROWS)])
        if len(y) > len(flat):  # a copy, lest what fills up is kept for the way back
            y = y[: len(flat)].clone()
    return y.view(*x.shape[:-1], -1)


def _add_shared(y: Tensor, x: Tensor, factors: Factors, parts: Parts) -> Tensor:
    """Return y + B (g_u * (A x)), (rows, tokens, out)."""
    a, b, flat = factors.a, factors.b, y.view(-1, y.shape[-1])
    if a.dtype != x.dtype:
        a, b = a.to(x.dtype), b.to(y.dtype)
    product = multiply_frozen if parts.rowwise else torch.mm
    low = product(x.reshape(-1, x.shape[-1]), a)  # (rows * tokens, R)
    if parts.weights is not None:
        by_user = low.view(parts.users, -1, factors.rank)
        low = (by_user * parts.weights[:, None].to(low.dtype)).view_as(low)  # (users, 1, R)
    if parts.rowwise:
        return (flat + product(low, b)).view_as(y)
    if torch.is_grad_enabled():
        return torch.addmm(flat, low, b).view_as(y)
    flat.addmm_(low, b)  # the same sum, without a second y
    return y


def _add_private(y: Tensor, x: Tensor, factors: Factors, parts: Parts) -> Tensor:
    """Return y + b_u a_u x, (rows, tokens, out)."""
    a, b, users = factors.a.to(x.dtype), factors.b.to(y.dtype), parts.users
    flat, wide = x.reshape(users, -1, x.shape[-1]), y.reshape(users, -1, y.shape[-1])
    if parts.dropout is not None:
        flat = parts.dropout.of(flat)
    # Small batches of matrices go to another kernel than large ones, which would sum in another
    # order for one user than for several: empty ranks make one user's batch large enough.
    least = LEAST_RANK
    if parts.rowwise:
        least = max(least, SMALL_BATCH // (flat.shape[1] * min(a.shape[1], b.shape[2])) + 1)
    if factors.rank < least:
        missing = least - factors.rank
        a, b = pad(a, (0, missing)), pad(b, (0, 0, 0, missing))
    low = torch.bmm(flat, a)  # (users, rows * tokens, rank)
    return torch.baddbmm(wide, low.to(y.dtype), b).view(y.shape)


class AdapterStack:
    """All adapter layers of one base model, and which parts are on in them."""

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        self.maps = tuple(maps)
        self.parts = Parts()

    @classmethod
    def attach(
        cls, model: nn.Module, maps: Sequence[LinearMap], others: Sequence[str] = ()
    ) -> "AdapterStack":
        """Put an adapter layer in the place of each named linear map of the model.

        ``others`` are the linear maps without LoRAs beside them, for ``Parts.rowwise``.
        """
        stack = cls(maps)
        for name in (*(linear.name for linear in stack.maps), *others):
            parent, _, leaf = name.rpartition(".")
            base = model.get_submodule(name)
            setattr(model.get_submodule(parent), leaf, StackedLinear(name, base, stack))
        return stack

    @contextmanager
    def using(self, parts: Parts) -> Iterator[None]:
        """Run a block with these parts on; afterwards the former ones are on again."""
        former, self.parts = self.parts, parts
        try:
            yield
        finally:
            self.parts = former
