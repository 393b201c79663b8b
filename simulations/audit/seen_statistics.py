"""Attacks on router statistics: whose they are, and of which group.

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
from simulations.audit.people import Halved


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


def group_by_statistics(
    seen: Sequence[Scores],
    groups: Sequence[int],
    known: Sequence[tuple[Scores, int]],
    seed: int,
) -> list[Scored]:
    """Score, for each device, its own group and one other by the distance to a group's centre.

    Parameters
    ----------
    groups : sequence of int
        The devices' own.
    known : sequence of (ndarray, int)
        Expected statistics and group of people whom the attacker knows.
    """
    names = sorted({group for _, group in known})
    centres = [np.mean([vector for vector, own in known if own == g], axis=0) for g in names]
    scores = [dict(zip(names, _scores(sent, centres), strict=True)) for sent in seen]
    return [
        Scored(np.array([by_group[own]]), np.array([by_group[other]]))
        for by_group, own, other in zip(
            scores, groups, other_groups(groups, names, seed), strict=True
        )
    ]


def derangement(count: int, seed: int) -> list[int]:
    """Return an order of ``count`` places, at least two, in which none is in its own place."""
    order = np.random.default_rng(derive_seed(seed, "derangement")).permutation(count)
    after = {int(one): int(other) for one, other in zip(order, np.roll(order, 1), strict=True)}
    return [after[place] for place in range(count)]


def other_groups(groups: Sequence[int], all_groups: Sequence[int], seed: int) -> list[int]:
    """Return for each a group that is not its own, drawn by lot."""
    rng = np.random.default_rng(derive_seed(seed, "other group"))
    return [int(rng.choice([group for group in all_groups if group != own])) for own in groups]


def with_groups(people: Sequence[Halved]) -> bool:
    """Return whether the corpus tells everybody's group, and there are at least two."""
    groups = {person.given.group for person in people}
    return None not in groups and len(groups) > 1


def _scores(sent: Scores, candidates: Sequence[Scores]) -> Scores:
    """Return how much less likely each candidate is than the likeliest, (candidates,).

    Under Gaussian noise this is the log-likelihood ratio, but for a factor that all share.
    """
    distances = ((np.stack(candidates) - sent) ** 2).sum(axis=1)
    scores: Scores = distances.min() - distances
    return scores
