"""Attribute inference: which group somebody is of, from what is seen of each person.

    score of person i, group g  =  fit[i, g] - mean of row i - mean of column g + mean of all

What fits a person to any group, or a group to anybody, says nothing of this person's group and is
taken off. Else an attacker who always names one group would be right more often than a coin where
most people are of it; so 0.5 is chance whatever the groups' sizes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.base_model import BaseModel
from shared.lora.lora import Lora
from shared.retrieval import Examples
from shared.samples import Sample
from shared.seeding import derive_seed
from simulations.audit.attack import Scored, Scores
from simulations.audit.likelihood import gains, samples_of
from simulations.audit.people import Halved

SAMPLES_OF_A_GROUP = 8
"""Items by which an attacker on LoRAs knows a group."""

ROUNDING = 1e-12
"""What of the largest fit may be left where nothing should be."""

Fits = npt.NDArray[np.float64]
"""How well each person fits each group, (people, groups)."""


def group_of(person: Halved) -> int:
    """Return a person's group, in a corpus that tells it."""
    if person.given.group is None:
        raise RuntimeError("the corpus tells no groups")
    return person.given.group


def can_ask(people: Sequence[Halved], known: Sequence[Halved]) -> bool:
    """Return whether the groups are told, and two that are asked for are known to the attacker."""
    asked, shown = ({p.given.group for p in side} for side in (people, known))
    return None not in asked | shown and len(asked & shown) > 1


def groups_by_centres(
    seen: Sequence[Scores], own: Sequence[int], known: Sequence[tuple[Scores, int]], seed: int
) -> list[Scored]:
    """Score each person's own group and one other by the distance to a group's centre.

    Parameters
    ----------
    seen : sequence of ndarray
        What is seen of each person: statistics, or a place.
    own : sequence of int
        Their groups.
    known : sequence of (ndarray, int)
        What would be seen of people whom the attacker knows, and their groups.
    """
    names = sorted({group for _, group in known})
    centres = np.stack([np.mean([v for v, group in known if group == g], axis=0) for g in names])
    fits = -((np.stack(seen)[:, None] - centres) ** 2).sum(axis=2)  # (people, groups)
    return own_and_other(fits, names, own, seed)


def groups_by_likelihood(
    base: BaseModel,
    below: Sequence[Lora],
    loras: Sequence[Lora],
    own: Sequence[int],
    known: Sequence[Halved],
    examples: Examples,
    seed: int,
) -> list[Scored]:
    """Score each person's own group and one other by how much likelier a LoRA makes their items.

    Parameters
    ----------
    below : sequence of Lora
        Parts under the LoRAs.
    loras, own : sequence of Lora and of int
        One LoRA and one group a person.
    known : sequence of Halved
        People whose given items and groups the attacker knows.
    """
    names = sorted({group_of(person) for person in known})
    samples = [
        _samples(base, [p for p in known if group_of(p) == group], examples) for group in names
    ]
    fits = np.array([[gains(base, below, lora, s).mean() for s in samples] for lora in loras])
    return own_and_other(fits, names, own, seed)


def _samples(base: BaseModel, people: Sequence[Halved], examples: Examples) -> list[Sample]:
    """Return the latest items of people of one group, as many of each person as of any other."""
    each = -(-SAMPLES_OF_A_GROUP // len(people))
    return [
        sample
        for person in people
        for sample in samples_of(base, person.given.history, examples)[-each:]
    ][:SAMPLES_OF_A_GROUP]


def own_and_other(fits: Fits, names: Sequence[int], own: Sequence[int], seed: int) -> list[Scored]:
    """Score the own group of each person, and one other that is drawn by lot.

    People of a group that the attacker does not know are left out.

    Parameters
    ----------
    fits : ndarray, (people, groups)
    names : sequence of int
        The groups, in the order of the columns.
    own : sequence of int
        The people's, in the order of the rows.
    """
    asked = [place for place, group in enumerate(own) if group in names]
    fits = fits[asked]
    scores = fits - fits.mean(axis=1, keepdims=True) - fits.mean(axis=0) + fits.mean()
    scores[np.abs(scores) < ROUNDING * np.abs(fits).max()] = 0.0  # a tie, and no finding
    groups = [own[place] for place in asked]
    column = {name: place for place, name in enumerate(names)}
    return [
        Scored(np.array([row[column[group]]]), np.array([row[column[other]]]))
        for row, group, other in zip(scores, groups, other_groups(groups, names, seed), strict=True)
    ]


def other_groups(groups: Sequence[int], all_groups: Sequence[int], seed: int) -> list[int]:
    """Return for each a group that is not its own, drawn by lot."""
    rng = np.random.default_rng(derive_seed(seed, "other group"))
    return [int(rng.choice([group for group in all_groups if group != own])) for own in groups]
