"""The statistics of a device as whole numbers, under noise."""

import random

from shared.noise import discrete_gaussian
from shared.privacy import noise_variance
from shared.protocol import RouterStatistics
from shared.statistic_vector import clip, encode, noise_bound


def noised_vector(
    statistics: RouterStatistics, variance: int, generator: random.Random
) -> list[int]:
    """Return the vector of a device, (E + M + 2,), with fresh noise on every number.

    Parameters
    ----------
    variance : int
        sigma^2 of one number's noise, in squared units.
    generator : random.Random
        Where the noise comes from.
    """
    return [value + discrete_gaussian(variance, generator) for value in encode(statistics)]


def local_vector(
    statistics: RouterStatistics, noise_multiplier: float, generator: random.Random
) -> list[int]:
    """Return all that a device tells in mode ``local``, (E + M + 2,): noised, and within bounds.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the sensitivity.
    """
    variance = noise_variance(noise_multiplier)
    return clip(
        noised_vector(statistics, variance, generator),
        len(statistics.expert_weights),
        len(statistics.anchor_weights),
        noise_bound(variance),
    )
