"""The router statistics as a mechanism: what one device knows, and what the server sees of it.

    [expert weights (E) | anchor weights (M) | half the best similarity | half the entropy]

These are the integers of ``statistic_vector.encode`` over ``UNITS``: noise falls on all of them
alike, so the attack's direction, the difference of two inputs, is the best there is.

The attack is told the two worst cases that the protocol's bounds allow, and three mechanisms: the
statistics as they are, which guarantee nothing; what a device says in mode ``local``; and in mode
``central`` the sum, of which the attacker knows all but one device's statistics and the noise of
those that are honest.
"""

import math
import random
from dataclasses import dataclass

import numpy as np

from client.noised_statistics import local_vector, noised_vector
from server.rounds import quorum_of
from shared.config import RunConfig
from shared.privacy import (
    LedgerEntry,
    calibrate,
    honest_devices,
    share_variance,
    spent,
    summed_multiplier,
)
from shared.progress import stage
from shared.protocol import RouterStatistics, as_sent
from shared.statistic_vector import UNITS, encode
from simulations.audit.epsilon import (
    EmpiricalEpsilon,
    Mechanism,
    Neighbours,
    Vector,
    audit_mechanism,
)
from simulations.report.wording import count_of

TRIALS = 2_000
DELTA = 1e-5
MOST_DEVICES = 32
"""Of the sum that is attacked: each honest one's noise is drawn anew in every trial."""


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
        """Whether the attack proves no more than is accounted for, if anything is.

        What is accounted for is Gaussian noise, so the bound for such noise counts too. The one
        for any mechanism could not exceed a budget of 6 in so few trials, whatever the noise.
        """
        proved = max(self.empirical.any_mechanism, self.empirical.gaussian)
        return self.accounted is None or proved <= self.accounted.epsilon


def worst_case(experts: int, anchors: int) -> Neighbours:
    """Return two devices' statistics that are as far apart as the protocol allows.

    Their distance is the sensitivity that the noise is made for. There have to be two experts and
    two anchors at least: a single one has all the weight whatever the history.
    """

    def vector(place: int, half_similarity: float, half_entropy: float) -> Vector:
        weights = [np.eye(size)[min(place, size - 1)] for size in (experts, anchors)]
        return np.concatenate([*weights, [half_similarity, half_entropy]])

    return Neighbours(vector(0, -0.5, 0.0), vector(1, 0.5, 0.5))


def statistics_of(vector: Vector, experts: int) -> RouterStatistics:
    """Return the statistics that a vector, (E + M + 2,), stands for."""
    return RouterStatistics(
        1,
        tuple(vector[:experts].tolist()),
        tuple(vector[experts:-2].tolist()),
        2 * float(vector[-2]),
        2 * float(vector[-1]),
    )


def as_they_are(experts: int) -> Mechanism:
    """Return the mechanism that adds nothing: the protocol rounds, and that is all."""

    def mechanism(vector: Vector, _: np.random.Generator) -> Vector:
        sent = as_sent(statistics_of(vector, experts))
        halves = (sent.best_similarity / 2, sent.entropy / 2)
        return np.array((*sent.expert_weights, *sent.anchor_weights, *halves))

    return mechanism


def noised_locally(experts: int, noise_multiplier: float) -> Mechanism:
    """Return what a device does in mode ``local``: the product's own function, and no other."""

    def mechanism(vector: Vector, rng: np.random.Generator) -> Vector:
        generator = random.Random(int(rng.integers(2**63)))
        seen = local_vector(statistics_of(vector, experts), noise_multiplier, generator)
        return np.array([value / UNITS for value in seen])

    return mechanism


@dataclass(frozen=True)
class SmallestSum:
    """The smallest secure sum that is opened, with all the dishonest devices in it.

    Attributes
    ----------
    needed, joined : int
        Devices that it needs and is made of, and that joined.
    honest_share : float
        Of those that joined; the others tell the server their numbers, noise and all.
    """

    needed: int
    joined: int
    honest_share: float

    @property
    def honest(self) -> int:
        """Devices in it whose noise the server does not know; the attacked one is among them."""
        dishonest = math.floor((1 - self.honest_share) * self.joined + 1e-9)
        return max(1, self.needed - dishonest)

    @property
    def counted_on(self) -> int:
        """What a device takes ``honest`` for; its share of the noise follows from it."""
        return honest_devices(self.needed, self.joined, self.honest_share)


def summed_with_others(experts: int, noise_multiplier: float, smallest: SmallestSum) -> Mechanism:
    """Return what a server sees of one device in a secure sum of which it knows all the rest.

    It knows the statistics of all others and the noise of those that are dishonest, and takes both
    off the sum. What is left is the device's statistics under its own noise and that of the honest
    others. Noise is what a device draws in a secure sum, by the functions that it calls.
    """
    variance = share_variance(noise_multiplier, smallest.counted_on)

    def mechanism(vector: Vector, rng: np.random.Generator) -> Vector:
        generator = random.Random(int(rng.integers(2**63)))
        known = statistics_of(vector, experts)  # the others' may be any: the server knows them
        total = np.array(noised_vector(known, variance, generator))
        for _ in range(smallest.honest - 1):
            total += np.array(noised_vector(known, variance, generator)) - encode(known)
        seen: Vector = total / UNITS
        return seen

    return mechanism


def measure_statistics(
    experts: int, anchors: int, config: RunConfig, devices: int
) -> tuple[StatisticsEpsilon, StatisticsEpsilon, StatisticsEpsilon]:
    """Attack the statistics as they are, under local noise, and in a sum, at the configured budget.

    Parameters
    ----------
    experts, anchors : int
        E and M of the release.
    config : RunConfig
        Whose ``privacy`` is attacked, whichever its mode is.
    devices : int
        That join a sum; ``MOST_DEVICES`` are taken for more.
    """
    budget, rounds = config.privacy, config.budget_rounds
    multiplier = calibrate(budget.epsilon, budget.delta, rounds)
    joined = min(devices, MOST_DEVICES)
    needed = max(quorum_of(config.rounds, joined), budget.minimum_devices)
    smallest = SmallestSum(needed, max(joined, needed), budget.honest_share)
    share, length = share_variance(multiplier, smallest.counted_on), experts + anchors + 2

    def guarantee(mechanism: str, noise_multiplier: float) -> Guarantee:
        cost = [LedgerEntry(k, mechanism, noise_multiplier, "") for k in range(1, rounds + 1)]
        return Guarantee(spent(cost, budget.delta), budget.delta, rounds)

    with stage("attack statistics", 3, "mechanisms") as progress:
        plain = attack_statistics(
            "none: rounded to four decimals", as_they_are(experts), experts, anchors, config.seed
        )
        progress.advance(1)
        noised = attack_statistics(
            f"local: discrete Gaussian, multiplier {multiplier:.3g}",
            noised_locally(experts, multiplier),
            experts,
            anchors,
            config.seed,
            guarantee("local", multiplier),
        )
        progress.advance(1)
        summed = attack_statistics(
            f"central: {count_of(smallest.honest, 'honest share')} in a sum of "
            f"{smallest.needed} of {count_of(smallest.joined, 'device')}",
            summed_with_others(experts, multiplier, smallest),
            experts,
            anchors,
            config.seed,
            guarantee("central", summed_multiplier(share, smallest.counted_on, length)),
        )
        progress.advance(1)
    return plain, noised, summed


def attack_statistics(
    words: str,
    mechanism: Mechanism,
    experts: int,
    anchors: int,
    seed: int,
    accounted: Guarantee | None = None,
) -> StatisticsEpsilon:
    """Attack one mechanism that statistics go through.

    Parameters
    ----------
    words : str
        The mechanism in words.
    accounted : Guarantee, optional
        What the accountant says of it.
    """
    empirical = audit_mechanism(
        mechanism,
        worst_case(experts, anchors),
        trials=TRIALS,
        delta=accounted.delta if accounted is not None else DELTA,
        seed=seed,
        rounds=accounted.rounds if accounted is not None else 1,
    )
    return StatisticsEpsilon(words, empirical, accounted)
