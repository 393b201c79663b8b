"""Attacks on router statistics: whose they are, and of which group.

The attacker is the server: it knows base model and release, so it computes for any text that it
knows what a device with that history would send, and compares.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from client.personalize import route
from client.vault import Vault
from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem
from shared.embedding import embed_user
from shared.protocol import RouterStatistics, as_sent
from shared.release import Release
from shared.routing import normalised_entropy
from shared.seeding import derive_seed
from simulations.audit.attack import Scored, Scores
from simulations.audit.people import Halved


def sent_statistics(run: Path, devices: int) -> list[Scores]:
    """Return what each device of a federation has sent for release 1, as one vector a device."""
    found = [Vault(run / "vaults" / f"{device:04d}").statistics(1) for device in range(devices)]
    if None in found:
        raise RuntimeError(f"a device in {run} has sent no statistics")
    return [
        np.array(
            [
                *sent["expert_weights"],
                *sent["anchor_weights"],
                sent["best_similarity"],
                sent["entropy"],
            ]
        )
        for sent in found
        if sent is not None
    ]


def expected_statistics(
    base: BaseModel, release: Release, history: Sequence[ProfileItem]
) -> Scores:
    """Return what a device with this history would send, before any noise."""
    with base.lock:
        routing = route(release, embed_user(base, history))
    anchors = torch.zeros(len(release.bank))
    anchors[list(routing.retrieval.anchors)] = torch.tensor(routing.retrieval.weights)
    sent = as_sent(
        RouterStatistics(
            release.version,
            tuple(routing.experts.tolist()),
            tuple(anchors.tolist()),
            max(routing.retrieval.similarities),
            normalised_entropy(routing.experts).item(),
        )
    )
    return np.array(
        [*sent.expert_weights, *sent.anchor_weights, sent.best_similarity, sent.entropy]
    )


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
    return [
        Scored(
            np.array([_closeness(sent, expected[device])]),
            np.array([_closeness(sent, expected[other])]),
        )
        for device, (sent, other) in enumerate(zip(seen, others, strict=True))
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
    centres = {
        group: np.mean([vector for vector, own in known if own == group], axis=0)
        for group in sorted({group for _, group in known})
    }
    return [
        Scored(
            np.array([_closeness(sent, centres[own])]), np.array([_closeness(sent, centres[other])])
        )
        for sent, own, other in zip(
            seen, groups, other_groups(groups, sorted(centres), seed), strict=True
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


def _closeness(one: Scores, other: Scores) -> float:
    return -float(np.linalg.norm(one - other))
