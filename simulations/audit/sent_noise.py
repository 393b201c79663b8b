"""How much noise there is in what devices sent, against what their privacy mode declares.

local     vector as it crossed the wire  -  statistics before noise  =  noise of the device
central   vector that went under masks   -  statistics before noise  =  share of the noise

No server can do this: both subtractions need a vault. In mode central the vector under the masks is
from the vault, too, so it is held against the mean that the server has read off the sum.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from server.rounds import quorum_of
from shared.config import RunConfig
from shared.privacy import calibrate, noise_variance, share_variance
from shared.statistic_vector import UNITS, decode_mean
from simulations.audit.statistics_mechanism import SmallestSum

CHANCE = 1e-6
"""With which noise of the right size is taken for too small."""


@dataclass(frozen=True)
class SentNoise:
    """The noise on all numbers of all devices.

    Attributes
    ----------
    numbers : int
    measured, declared : float
        Root mean square of what is there; standard deviation of what should be.
    """

    numbers: int
    measured: float
    declared: float

    @property
    def too_small(self) -> bool:
        """Whether so little noise comes once in a million times, were it drawn as declared."""
        squares = self.numbers * (self.measured / self.declared) ** 2
        return bool(chi2.cdf(squares, self.numbers) < CHANCE)


def noise_between(
    noised: Sequence[Sequence[int]], before: Sequence[Sequence[int]], variance: int
) -> SentNoise | None:
    """Return the noise of vectors of ``statistic_vector``'s numbers; None if there are none."""
    if not noised:
        return None
    draws = np.concatenate([np.subtract(n, b) for n, b in zip(noised, before, strict=True)]) / UNITS
    return SentNoise(draws.size, float(np.sqrt(np.mean(draws**2))), variance**0.5 / UNITS)


def declared_variance(run: Path, mode: str, record: dict[str, Any]) -> int:
    """Return sigma^2 of a number's noise, in squared units, by a run's settings and round record.

    Which devices a sum may count on is worked out apart from what the devices do.
    """
    config = RunConfig.model_validate(tomllib.loads((run / "config.toml").read_text("utf-8")))
    privacy = config.privacy
    multiplier = calibrate(privacy.epsilon, privacy.delta, config.budget_rounds)
    if mode == "local":
        return noise_variance(multiplier)
    needed = max(quorum_of(config.rounds, record["asked"]), privacy.minimum_devices)
    smallest = SmallestSum(needed, record["joined"], privacy.honest_share)
    return share_variance(multiplier, smallest.honest)


def make_up(vectors: Sequence[Sequence[int]], experts: int, mean: dict[str, Any]) -> bool:
    """Return whether the mean that a server has read off a sum is that of these vectors."""
    if not vectors:
        return False
    total = [sum(column) for column in zip(*vectors, strict=True)]
    read = decode_mean(total, len(vectors), experts)
    return read.expert_weights == tuple(mean["expert_weights"])
