"""Attacks on router statistics: what a history would send, and whose history was sent.

The attacker is the server: it knows base model and release, so it computes for any text that it
knows what a device with that history would send, and compares. A candidate scores by how much
farther off it is than the nearest one: the distance that noise puts between what a device has sent
and all candidates alike says nothing of any of them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from client.personalize import route
from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem
from shared.embedding import embed_user
from shared.protocol import RouterStatistics
from shared.release import Release
from shared.routing import normalised_entropy
from shared.seeding import derive_seed
from shared.statistic_vector import UNITS, encode
from simulations.audit.attack import Scored, Scores


def expected_statistics(
    base: BaseModel, release: Release, history: Sequence[ProfileItem]
) -> Scores:
    """Return what a device with this history would send, before any noise.

    Returns
    -------
    ndarray, (E + M + 2,)
        As ``statistic_vector.encode`` has it, over ``UNITS``: noise falls on all numbers alike.
    """
    with base.lock:
        routing = route(release, embed_user(base, history))
    anchors = torch.zeros(len(release.bank))
    anchors[list(routing.retrieval.anchors)] = torch.tensor(routing.retrieval.weights)
    statistics = RouterStatistics(
        release.version,
        tuple(routing.experts.tolist()),
        tuple(anchors.tolist()),
        max(routing.retrieval.similarities),
        normalised_entropy(routing.experts).item(),
    )
    vector: Scores = np.array(encode(statistics)) / UNITS
    return vector


def linkage(seen: Sequence[Scores], expected: Sequence[Scores], seed: int) -> list[Scored]:
    """Score, for each device, its own person as a candidate, and one other person.

    Parameters
    ----------
    seen : sequence of ndarray
        What each device has sent.
    expected : sequence of ndarray
        What the attacker expects of each candidate; candidate d is the person of device d.
    """
    others = derangement(len(seen), seed)
    scores = [_scores(sent, expected) for sent in seen]
    return [
        Scored(np.array([own[device]]), np.array([own[other]]))
        for device, (own, other) in enumerate(zip(scores, others, strict=True))
    ]


def derangement(count: int, seed: int) -> list[int]:
    """Return an order of ``count`` places, at least two, in which none is in its own place."""
    order = np.random.default_rng(derive_seed(seed, "derangement")).permutation(count)
    after = {int(one): int(other) for one, other in zip(order, np.roll(order, 1), strict=True)}
    return [after[place] for place in range(count)]


def _scores(sent: Scores, candidates: Sequence[Scores]) -> Scores:
    """Return how much less likely each candidate is than the likeliest, (candidates,).

    Under Gaussian noise this is the log-likelihood ratio, but for a factor that all share.
    """
    distances = ((np.stack(candidates) - sent) ** 2).sum(axis=1)
    scores: Scores = distances.min() - distances
    return scores
