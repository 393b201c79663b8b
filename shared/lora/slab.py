"""The slab: the LoRAs of many users as rows of one flat tensor.

    rows (users, parameters)     row u:  | a_0 | b_0 | a_1 | b_1 | ...  one pair a linear map

Everything that is done to one user (store, load, clip, step an optimiser) is done to one row;
everything that is done in a batch reads the rows through views, without a copy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.lora.lora import Factors, LinearMap, Lora


@dataclass(frozen=True)
class Slab:
    """LoRAs of one rank over the same linear maps, one user a row.

    Attributes
    ----------
    maps : tuple of LinearMap
        The linear maps, in the order of a row.
    rank : int
        Rank of each LoRA.
    rows : Tensor, (users, parameters)
        One user's LoRA a row, fp32.
    """

    maps: tuple[LinearMap, ...]
    rank: int
    rows: Tensor

    @staticmethod
    def parameters(maps: Sequence[LinearMap], rank: int) -> int:
        """Return the length of a row."""
        return sum(rank * (m.in_features + m.out_features) for m in maps)

    @classmethod
    def zeros(cls, maps: tuple[LinearMap, ...], rank: int, users: int) -> "Slab":
        """Return a slab of LoRAs that change nothing and have no gradient to start from."""
        return cls(maps, rank, torch.zeros(users, cls.parameters(maps, rank)))

    @classmethod
    def initial(cls, maps: tuple[LinearMap, ...], rank: int, seeds: Sequence[int]) -> "Slab":
        """Return freshly initialised LoRAs: ``a`` Kaiming-uniform as in PEFT, ``b`` zero.

        Row u is drawn from ``seeds[u]`` alone, so it does not depend on the other users.
        """
        slab = cls.zeros(maps, rank, len(seeds))
        views = slab.views()
        for user, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for linear in maps:
                bound = linear.in_features**-0.5
                views[linear.name].a[user].uniform_(-bound, bound, generator=generator)
        return slab

    @classmethod
    def of(cls, maps: tuple[LinearMap, ...], loras: Sequence[Lora]) -> "Slab":
        """Return the slab whose row u is ``loras[u]``; all have one rank and all maps."""
        slab = cls.zeros(maps, loras[0].rank, len(loras))
        for user, lora in enumerate(loras):
            for name, view in slab.lora(user):
                view.a.copy_(lora.factors[name].a)
                view.b.copy_(lora.factors[name].b)
        return slab

    @classmethod
    def from_rows(cls, maps: tuple[LinearMap, ...], rows: Tensor) -> "Slab":
        """Return the slab of stored rows; their length tells the rank."""
        return cls(maps, rows.shape[1] // cls.parameters(maps, 1), rows)

    def to(self, dtype: torch.dtype, device: torch.device) -> "Slab":
        """Return the slab in another format or on another device."""
        return Slab(self.maps, self.rank, self.rows.to(device, dtype))

    def views(self, rows: Tensor | None = None) -> dict[str, Factors]:
        """Return, for each map, a (users, in, rank) and b (users, rank, out) as views.

        Parameters
        ----------
        rows : Tensor, optional
            Another tensor of this layout to view, such as the rows' gradients.
        """
        rows = self.rows if rows is None else rows
        views, start = {}, 0
        for linear in self.maps:
            middle = start + linear.in_features * self.rank
            end = middle + self.rank * linear.out_features
            views[linear.name] = Factors(
                rows[:, start:middle].unflatten(1, (linear.in_features, self.rank)),
                rows[:, middle:end].unflatten(1, (self.rank, linear.out_features)),
            )
            start = end
        return views

    def leaves(self, users: int) -> dict[str, Factors]:
        """Return copies of the first users' views as autograd leaves.

        Each is contiguous: batched products of transposed rows would copy them again and again.
        """
        whole = torch.contiguous_format
        return {
            name: Factors(
                f.a.detach().clone(memory_format=whole).requires_grad_(),
                f.b.detach().clone(memory_format=whole).requires_grad_(),
            )
            for name, f in self.views(self.rows[:users]).items()
        }

    @staticmethod
    def to_rows(tensors: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
        """Lay tensors a_0, b_0, a_1, ... (users, ., .), such as gradients by leaves, in rows.

        Parameters
        ----------
        out : Tensor (users, parameters), optional
            Where to lay them.
        """
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1, out=out)

    def loras(self) -> tuple[Lora, ...]:
        """Return every user's LoRA as views of its row."""
        return tuple(self.lora(user) for user in range(len(self.rows)))

    def lora(self, user: int) -> Lora:
        """Return one user's LoRA as views of its row."""
        return Lora({name: Factors(f.a[user], f.b[user]) for name, f in self.views().items()})
