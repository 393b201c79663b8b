"""What an attack achieves: the area under its ROC curve, with an interval over people.

0.5 is a coin; 1 tells every member from every non-member. People are resampled, not single items:
one person's items are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2_000
CONFIDENCE = 0.95
# What is asked.
TRAINED_ON = "was this item trained on?"
WHOSE, WHOSE_UNSEEN = "whose history is it?", "whose history, by other items of theirs?"
GROUP = "which group?"

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """One person's scores; an attack that works gives members the larger ones.

    Attributes
    ----------
    members, others : ndarray, (items,)
        Of what is true of the person, and of as many things of the same kind that are not.
    """

    members: Scores
    others: Scores


@dataclass(frozen=True)
class Attack:
    """One question put to one thing that an attacker may have.

    Attributes
    ----------
    target : str
        What the attacker looks at.
    question : str
        What is inferred.
    knows : str
        What the attacker knows besides, in words.
    auc : float
    low, high : float
        95 % percentile bootstrap interval over people.
    people : int
    members, others : int
        Scored things in all.
    contrast : bool
        Whether it is something that no device of Mesofed sends, looked at for comparison.
    """

    target: str
    question: str
    knows: str
    auc: float
    low: float
    high: float
    people: int
    members: int
    others: int
    contrast: bool = False

    @property
    def above_chance(self) -> bool:
        """Whether the attack is clearly better than a coin."""
        return self.low > 0.5


def area(members: Scores, others: Scores) -> float:
    """Return how often a member's score is above another's, ties counted by half.

    Source: Hanley and McNeil (1982).
    """
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    not_above = np.searchsorted(ordered, members, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def judge(
    target: str,
    question: str,
    knows: str,
    scored: Sequence[Scored],
    seed: int,
    *,
    contrast: bool = False,
) -> Attack:
    """Return what an attack achieves by its scores, at least one person's."""
    rng = np.random.default_rng(seed)

    def of(people: Sequence[Scored]) -> float:
        return area(
            np.concatenate([person.members for person in people]),
            np.concatenate([person.others for person in people]),
        )

    areas = [
        of([scored[i] for i in rng.integers(len(scored), size=len(scored))])
        for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(areas, [tail, 1 - tail])
    return Attack(
        target,
        question,
        knows,
        of(scored),
        float(low),
        float(high),
        len(scored),
        sum(len(person.members) for person in scored),
        sum(len(person.others) for person in scored),
        contrast,
    )
