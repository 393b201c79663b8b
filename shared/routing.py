"""From a user's place in the embedding space to weights over experts and anchors.

The user-aware router follows PROPER's stage 2 (arXiv 2503.01303) with content in place of a
trained user id and one softmax in place of a softmax of softmaxes; retrieval follows MTA's stage
2 (arXiv 2511.20072), with the larger weight for the nearer anchor.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Router:
    """The user-aware router: softmax(z weight + bias).

    Attributes
    ----------
    weight : Tensor, (k, experts)
        From the embedding space to the experts' logits.
    bias : Tensor, (experts,)
        Of the logits.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, place: Tensor) -> Tensor:
        """Return expert weights (..., experts) of users at ``place`` (..., k)."""
        return torch.softmax(place @ self.weight + self.bias, dim=-1)


@dataclass(frozen=True)
class Retrieval:
    """The anchors nearest to a user, nearest first.

    Attributes
    ----------
    anchors : tuple of int
        Indices in the bank.
    weights : tuple of float
        Fusion weights; they sum to 1.
    similarities : tuple of float
        Cosines between the user and each anchor.
    """

    anchors: tuple[int, ...]
    weights: tuple[float, ...]
    similarities: tuple[float, ...]


def retrieve(place: Tensor, anchors: Tensor, top_k: int, temperature: float) -> Retrieval:
    """Find the nearest anchors by cosine and weigh them by a softmax of cosine / temperature.

    Parameters
    ----------
    place : Tensor, (k,)
        The user, a unit vector.
    anchors : Tensor, (anchors, k)
        The bank's anchor users, unit vectors.
    top_k : int
        How many to fuse, at most.
    temperature : float
        Of the softmax; smaller is closer to the nearest anchor alone.
    """
    nearest = torch.topk(anchors @ place, min(top_k, len(anchors)))
    weights = torch.softmax(nearest.values / temperature, dim=0)
    similarities = nearest.values.clamp(-1, 1)  # products of unit vectors round up as well
    return Retrieval(
        tuple(nearest.indices.tolist()), tuple(weights.tolist()), tuple(similarities.tolist())
    )


def normalised_entropy(weights: Tensor) -> Tensor:
    """Return the entropy of weights (..., n) as a share of its maximum log n, in [0, 1]."""
    count = weights.shape[-1]
    if count < 2:
        return torch.zeros(weights.shape[:-1])
    entropy: Tensor = torch.special.entr(weights).sum(-1)
    # Sums of equal weights round up as well as down.
    return (entropy / math.log(count)).clamp(0, 1)
