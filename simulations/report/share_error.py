"""Utility of the statistics: how far the estimated group shares are off, against epsilon.

The group shares are the mean expert weights over the devices, by which the server curates its
corpus. Their error under noise is measured by drawing the noise again: with the run's own
statistics where a simulation or mode ``off`` knows them, through the functions that devices and
server call; else, since a device told nobody its numbers, around the mean that the round ended
with, from the known standard deviation of the sum's noise.
"""

import math
import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from client.noised_statistics import local_vector, noised_vector
from server.rounds import quorum_of
from shared.config import PrivacyConfig, RunConfig
from shared.privacy import calibrate, honest_devices, noise_variance, share_variance
from shared.protocol import RouterStatistics
from shared.seeding import derive_seed
from shared.statistic_vector import (
    UNITS,
    bound_influence,
    decode_mean,
    encode,
    project_to_simplex,
)
from simulations.report.run import RouterUse, Run

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DRAWN_DEVICES, LEAST_ROUNDS = 400, 25
"""A point is the mean of so many devices' worth of repeated rounds, and of at least so many."""


@dataclass(frozen=True)
class Federation:
    """What noise is drawn for.

    Attributes
    ----------
    statistics : tuple of RouterUse
        What each device's router says; empty where nobody may know. If they are more than
        ``devices``, those in the mean are drawn by lot: a round does not tell who was in its sum.
    mean : tuple of float, (E,)
        Mean expert weights: the truth, or where ``statistics`` is empty what the round ended with.
    devices : int
        Number of devices in the mean.
    needed, joined : int
        Devices that a secure sum needs, and that joined it; they decide each one's noise. Some of
        those that joined may have gone before the sum was taken, and are not in the mean.
    rounds : int
        That share the budget.
    privacy : PrivacyConfig
    """

    statistics: tuple[RouterUse, ...]
    mean: tuple[float, ...]
    devices: int
    needed: int
    joined: int
    rounds: int
    privacy: PrivacyConfig

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that so many devices allow."""
        return ("local", "central") if self.devices >= self.needed else ("local",)


@dataclass(frozen=True)
class ShareErrors:
    """The error of the estimated group shares.

    Attributes
    ----------
    devices, rounds : int
        In the mean; that share the budget.
    known : bool
        Whether the noise was drawn on the devices' own statistics.
    guess : float
        Error of who takes all shares for equal.
    lines : dict of str to tuple of (float, float)
        By mode: epsilon, and the mean absolute error of a share.
    own : (str, float, float) or None
        The run's own mode and epsilon, and its error; None without noise.
    """

    devices: int
    rounds: int
    known: bool
    guess: float
    lines: dict[str, tuple[tuple[float, float], ...]]
    own: tuple[str, float, float] | None


def share_errors(run: Run) -> ShareErrors | None:
    """Return the errors for a run; None as :func:`federation_of` does."""
    federation = federation_of(run)
    return None if federation is None else measured(federation)


def federation_of(run: Run) -> Federation | None:
    """Return what noise is drawn for, in the last round; None if there is nothing to draw for."""
    if not run.config_text:
        return None
    try:
        config = RunConfig.model_validate(tomllib.loads(run.config_text))
    except ValueError:  # of another version: what its noise was, nobody can say here
        return None
    last = run.rounds[-1] if run.rounds else None
    if last is None or not last.answered:
        return None
    # A simulation has looked into the vaults of all that made statistics, gone or not.
    looked_up = tuple(device.router for device in run.devices if device.router is not None)
    known = tuple(last.router.values()) or looked_up
    if len(known) < last.answered:
        known = ()
    mean = _columns([use.expert_weights for use in known]) if known else last.mean_experts
    if not mean or not all(use.anchor_weights for use in known):
        return None
    return Federation(
        statistics=known,
        mean=mean,
        devices=last.answered,
        needed=max(quorum_of(config.rounds, last.asked), config.privacy.minimum_devices),
        # Without a secure sum nobody knows who else would have joined one.
        joined=last.answered if last.joined is None else last.joined,
        rounds=config.budget_rounds,
        privacy=config.privacy,
    )


# A run is reported on more than once, and nothing here changes between.
@lru_cache(maxsize=8)
def measured(federation: Federation) -> ShareErrors:
    """Return the errors that a federation would have, by mode and budget."""
    privacy = federation.privacy
    own = privacy.mode if privacy.mode in federation.modes else None
    return ShareErrors(
        devices=federation.devices,
        rounds=federation.rounds,
        known=bool(federation.statistics),
        guess=_error([1 / len(federation.mean)] * len(federation.mean), federation.mean),
        lines={
            mode: tuple((epsilon, share_error(federation, mode, epsilon)) for epsilon in EPSILONS)
            for mode in federation.modes
        },
        own=own and (own, privacy.epsilon, share_error(federation, own, privacy.epsilon)),
    )


def share_error(federation: Federation, mode: str, epsilon: float) -> float:
    """Return the mean absolute error of a share, over repeated rounds of one mode and budget."""
    multiplier = calibrate(epsilon, federation.privacy.delta, federation.rounds)
    generator = random.Random(derive_seed(0, "share error", mode, str(epsilon)))
    honest = honest_devices(federation.needed, federation.joined, federation.privacy.honest_share)
    variance = noise_variance(multiplier) if mode == "local" else share_variance(multiplier, honest)

    experts = len(federation.mean)

    def vector(statistics: RouterStatistics) -> list[int]:
        if mode == "local":
            return bound_influence(
                local_vector(statistics, multiplier, generator), experts, variance
            )
        return noised_vector(statistics, variance, generator)

    statistics = [_as_statistics(use) for use in federation.statistics]
    if statistics:
        devices = federation.devices

        def estimate() -> tuple[Sequence[float], Sequence[float]]:
            summed = generator.sample(statistics, devices)
            truth = decode_mean(_sum([encode(own) for own in summed]), devices, experts)
            noised = decode_mean(_sum([vector(own) for own in summed]), devices, experts)
            return noised.expert_weights, truth.expert_weights
    else:
        deviation = math.sqrt(variance / federation.devices) / UNITS

        def estimate() -> tuple[Sequence[float], Sequence[float]]:
            noised = [share + generator.gauss(0, deviation) for share in federation.mean]
            return project_to_simplex(noised), federation.mean

    repeats = max(LEAST_ROUNDS, DRAWN_DEVICES // federation.devices)
    return math.fsum(_error(*estimate()) for _ in range(repeats)) / repeats


def _as_statistics(use: RouterUse) -> RouterStatistics:
    return RouterStatistics(
        1, use.expert_weights, use.anchor_weights, use.best_similarity, use.entropy
    )


def _sum(vectors: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*vectors, strict=True)]


def _columns(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))


def _error(estimate: Sequence[float], truth: Sequence[float]) -> float:
    return math.fsum(abs(a - b) for a, b in zip(estimate, truth, strict=True)) / len(truth)
