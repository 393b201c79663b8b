"""Dropout before a user's own LoRA, drawn for each user from the user's own seed.

    b_u a_u (m_u * x) / (1 - p)        m_u: zero for a share p of the inputs, anew for every map

As in LoRA (arXiv 2106.09685) and PEFT's ``lora_dropout``, the inputs of the low-rank path are
dropped, not those of the base map. One mask for a whole batch would make a user's result depend
on who else is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dropout:
    """Which inputs are dropped in one step.

    Attributes
    ----------
    share : float
        Of the inputs, from 0 to less than 1.
    generators : tuple of torch.Generator
        By user, on the CPU, so that a seed means the same on every device. Each map draws the
        next mask from them, in the order in which the model comes to its maps.
    """

    share: float
    generators: tuple[torch.Generator, ...]

    @classmethod
    def seeded(cls, share: float, seeds: Sequence[int]) -> "Dropout":
        """Return the dropout of a step whose users have these seeds."""
        return cls(share, tuple(torch.Generator().manual_seed(seed) for seed in seeds))

    def of(self, x: Tensor) -> Tensor:
        """Return the inputs x (users, n, in) with dropped ones zero, the others scaled up."""
        kept = torch.empty(x.shape, dtype=x.dtype)
        for own, generator in zip(kept, self.generators, strict=True):
            own.bernoulli_(1 - self.share, generator=generator)
        return x * kept.div_(1 - self.share).to(x.device)
