"""Steering the next release by router statistics: weigh the corpus like the live population.

The devices' mean expert weights say how large each group is out there; the server's users have
groups of their own sizes. Each server user counts in proportion to how much its groups are
wanted, so the next release is trained for those who use it. Nothing but the statistics is needed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.samples import Sample

# No user counts more than this many times, or less than its inverse: a few devices must not be
# able to silence a group.
BOUND = 3.0


def user_weights(gates: Tensor, live: Tensor) -> Tensor:
    """Return how much each server user counts, (users,): within the bound, with mean 1.

    Parameters
    ----------
    gates : Tensor, (users, experts)
        Expert weights of the server's users.
    live : Tensor, (experts,)
        Mean expert weights of the devices.
    """
    ratio = live / gates.mean(0).clamp(min=1e-6)  # (experts,)
    wanted = (gates @ ratio).clamp(min=1e-6)  # (users,)
    # What the bound takes from some goes to the others: find the scale at which the mean is 1.
    low, high = 1 / (BOUND * float(wanted.max())), BOUND / float(wanted.min())
    for _ in range(60):
        scale = (low * high) ** 0.5
        too_much = float((scale * wanted).clamp(1 / BOUND, BOUND).mean()) > 1
        low, high = (low, scale) if too_much else (scale, high)
    return (low * wanted).clamp(1 / BOUND, BOUND)


def resample(
    samples: Sequence[Sequence[Sample]], weights: Tensor, seed: int
) -> list[tuple[Sample, ...]]:
    """Return each user's samples, repeated or thinned in proportion to the user's weight.

    A user of weight 1 keeps every sample once; one of weight 1.5 has each once and half of them
    twice. Every user keeps at least one sample.
    """
    resampled = []
    for user, own in enumerate(samples):
        wanted = max(1, round(len(own) * float(weights[user])))
        whole, rest = divmod(wanted, len(own))
        generator = torch.Generator().manual_seed((seed + user) % 2**63)
        extra = torch.randperm(len(own), generator=generator)[:rest].tolist()
        resampled.append(tuple(own) * whole + tuple(own[i] for i in sorted(extra)))
    return resampled
