"""The router statistics as a mechanism: what one device knows, and what the server sees of it.

    [expert weights (E) | anchor weights (M) | best similarity | entropy]

The attack on it is told the two worst cases that the protocol's bounds allow, and the mechanism
that the run uses. Where nothing is added to the statistics there is no guarantee to compare with.
"""

from dataclasses import dataclass

import numpy as np

from shared.protocol import RouterStatistics, as_sent
from simulations.audit.epsilon import (
    EmpiricalEpsilon,
    Mechanism,
    Neighbours,
    Vector,
    audit_mechanism,
)

TRIALS = 2_000
DELTA = 1e-5


@dataclass(frozen=True)
class Guarantee:
    """What is accounted for: (epsilon, delta) for one person over ``rounds`` rounds."""

    epsilon: float
    delta: float
    rounds: int


@dataclass(frozen=True)
class StatisticsEpsilon:
    """The attack on the statistics, beside what is accounted for.

    Attributes
    ----------
    mechanism : str
        In words.
    empirical : EmpiricalEpsilon
    accounted : Guarantee or None
        None where nothing is guaranteed.
    """

    mechanism: str
    empirical: EmpiricalEpsilon
    accounted: Guarantee | None

    @property
    def passed(self) -> bool:
        """Whether the attack proves no more than is accounted for, if anything is."""
        return self.accounted is None or self.empirical.any_mechanism <= self.accounted.epsilon


def worst_case(experts: int, anchors: int) -> Neighbours:
    """Return two devices' statistics that are as far apart as the protocol allows."""

    def vector(place: int, similarity: float, entropy: float) -> Vector:
        weights = [np.eye(size)[min(place, size - 1)] for size in (experts, anchors)]
        return np.concatenate([*weights, [similarity, entropy]])

    return Neighbours(vector(0, -1.0, 0.0), vector(1, 1.0, 1.0))


def as_they_are(experts: int) -> Mechanism:
    """Return the mechanism that adds nothing: the protocol rounds, and that is all."""

    def mechanism(vector: Vector, _: np.random.Generator) -> Vector:
        sent = as_sent(
            RouterStatistics(
                1,
                tuple(vector[:experts].tolist()),
                tuple(vector[experts:-2].tolist()),
                float(vector[-2]),
                float(vector[-1]),
            )
        )
        numbers = (*sent.expert_weights, *sent.anchor_weights, sent.best_similarity, sent.entropy)
        return np.array(numbers)

    return mechanism


def measure_statistics_epsilon(
    experts: int,
    anchors: int,
    seed: int,
    mechanism: tuple[str, Mechanism] | None = None,
    accounted: Guarantee | None = None,
) -> StatisticsEpsilon:
    """Attack the mechanism that the statistics go through.

    Parameters
    ----------
    experts, anchors : int
        E and M of the release.
    mechanism : (str, Mechanism), optional
        In words, and itself; by default the statistics leave as they are.
    accounted : Guarantee, optional
        What the accountant says of it.
    """
    words, function = mechanism or ("none: rounded to four decimals", as_they_are(experts))
    empirical = audit_mechanism(
        function,
        worst_case(experts, anchors),
        trials=TRIALS,
        delta=accounted.delta if accounted is not None else DELTA,
        seed=seed,
        rounds=accounted.rounds if accounted is not None else 1,
    )
    return StatisticsEpsilon(words, empirical, accounted)
