"""The people of an audit: half of each one's items are given away, half are kept for comparison.

Members and non-members of a training set are then of the same distribution, for they are the same
person's, drawn by lot; an attack that tells them apart has learned it from the training alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shared.corpus.user import ProfileItem, User
from shared.errors import MesofedError
from shared.seeding import derive_seed

LEAST_ITEMS = 4


@dataclass(frozen=True)
class Halved:
    """One person.

    Attributes
    ----------
    given : User
        With the half of the history that is trained on, and no queries.
    kept : tuple of ProfileItem
        The other half, of the same size; nobody is trained on it.
    """

    given: User
    kept: tuple[ProfileItem, ...]


def halve(user: User, seed: int) -> Halved:
    """Divide a person's history by lot; with an odd number of items, the oldest is left out."""
    items = user.history[len(user.history) % 2 :]
    rng = np.random.default_rng(derive_seed(seed, "half", user.user_id))
    drawn = set(rng.permutation(len(items))[: len(items) // 2].tolist())
    given = tuple(item for place, item in enumerate(items) if place in drawn)
    kept = tuple(item for place, item in enumerate(items) if place not in drawn)
    return Halved(replace(user, history=given, queries=()), kept)


def halved(users: Sequence[User], seed: int, least: int, side: str) -> tuple[Halved, ...]:
    """Divide the histories of those who have at least ``LEAST_ITEMS`` items.

    Raises
    ------
    MesofedError
        If they are fewer than ``least``.
    """
    people = tuple(halve(user, seed) for user in users if len(user.history) >= LEAST_ITEMS)
    if len(people) < least:
        raise MesofedError(
            f"Expected at least {least} people on the {side}'s side with {LEAST_ITEMS} history "
            f"items or more, to divide between training and comparison; got {len(people)} of "
            f"{len(users)}. Choose a larger corpus, or raise corpus.max_history."
        )
    return people
