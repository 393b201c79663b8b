"""Router statistics as a vector of integers: what is noised, masked and summed.

expert weights, anchor weights    in units of 1e-4; each group sums to exactly UNITS
best similarity, entropy          in units of 2e-4: they steer nothing yet, so noise that is
sized for the whole vector may fall on them twice as hard
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from shared.protocol import DECIMALS, RouterStatistics, as_sent

UNITS = 10**DECIMALS
HALF = UNITS // 2
SQUARED_SENSITIVITY = 21 * UNITS * UNITS // 4
"""How far the vectors of two people can be apart, squared; see :func:`encode` for the proof."""
TAIL = 8
"""Noise is cut at so many standard deviations: once in 10^15 draws."""
INFLUENCE = 3
"""In a mean, a noised number counts as if its noise had been at most so many standard deviations.

Cutting noise there is post-processing. Where it shifts a mean most, at a weight of 0 or 1 beside
which the noise is large, the shift is 0.0004 standard deviations of one device's noise: less than a
tenth of what noise is left in the mean of 60,000 devices.
"""


def encode(statistics: RouterStatistics) -> list[int]:
    """Return the vector of one device, (E + M + 2,), for a release of E experts and M anchors.

    **Sensitivity.** Neighbours are two worlds in which one person has any two histories
    (replace-one); who takes part is public. Let x and y be the two vectors of that person.

    - Expert weights are integers, not negative, and sum to U = ``UNITS``. So
      ``|x - y|_2^2 = |x|^2 + |y|^2 - 2 <x, y> <= U^2 + U^2``, since ``|x|_2 <= |x|_1 = U`` and
      ``<x, y> >= 0``. The same holds for the anchor weights.
    - The similarity is in [-U/2, U/2]: ``(x - y)^2 <= U^2``.
    - The entropy is in [0, U/2]: ``(x - y)^2 <= U^2 / 4``.

    In all ``|x - y|_2^2 <= (2 + 2 + 1 + 1/4) U^2 = 21/4 U^2``, with no slack for rounding: the
    integers themselves fulfil the conditions, and a vector that does not is never made.

    Raises
    ------
    ReplyError
        If the statistics are out of bounds. Clipping them is the router's work.
    """
    sent = as_sent(statistics)
    vector = [round(UNITS * weight) for weight in (*sent.expert_weights, *sent.anchor_weights)]
    vector += [round(HALF * sent.best_similarity), round(HALF * sent.entropy)]
    experts = len(sent.expert_weights)
    bounded = (
        min(vector[:-2]) >= 0
        and sum(vector[:experts]) == sum(vector[experts:-2]) == UNITS
        and abs(vector[-2]) <= HALF
        and 0 <= vector[-1] <= HALF
    )
    if not bounded:
        raise AssertionError("a statistic vector breaks the bounds that its sensitivity rests on")
    return vector


def noise_bound(variance: int) -> int:
    """Return where noise of this variance is cut, on both sides: part of the wire's bounds."""
    return TAIL * (isqrt(variance) + 1)


def within_bounds(
    vector: Sequence[int], experts: int, anchors: int, noise: int = 0, devices: int = 1
) -> bool:
    """Return whether so many devices' numbers could sum to these, give or take so much noise."""
    if len(vector) != experts + anchors + 2:
        return False
    low = [0] * (experts + anchors) + [-HALF, 0]
    high = [UNITS] * (experts + anchors) + [HALF, HALF]
    return all(
        a * devices - noise <= x <= b * devices + noise
        for a, x, b in zip(low, vector, high, strict=True)
    )


def plausible(total: Sequence[int], devices: int, experts: int, variance: int) -> bool:
    """Return whether a sum could come of so many honest devices, each noised with this variance.

    Every number must be within its bounds, and each group of weights must sum to what weights sum
    to, both up to the noise: what honest devices send is refused about once in 10^15 numbers and
    sums (``TAIL``).

    A device that lies in a secure sum is not seen by itself; one that adds more than everyone
    together could have is seen by this.
    """
    noise = noise_bound(devices * variance)
    return within_bounds(total, experts, len(total) - experts - 2, noise, devices) and all(
        abs(sum(group) - UNITS * devices) <= noise_bound(len(group) * devices * variance)
        for group in (total[:experts], total[experts:-2])
    )


def clip(vector: Sequence[int], experts: int, anchors: int, noise: int) -> list[int]:
    """Return the nearest vector within the bounds of :func:`within_bounds`; costs no privacy."""
    low = [0] * (experts + anchors) + [-HALF, 0]
    high = [UNITS] * (experts + anchors) + [HALF, HALF]
    return [min(max(x, a - noise), b + noise) for a, x, b in zip(low, vector, high, strict=True)]


def influence_bound(variance: int) -> int:
    """Return how far out of its bounds a noised number may stand and count in full."""
    return INFLUENCE * (isqrt(variance) + 1)


def bound_influence(vector: Sequence[int], experts: int, variance: int) -> list[int]:
    """Return one device's noised vector as it counts in a mean.

    With c = ``influence_bound`` a device moves a number of the mean of n by no more than
    (1 + 2 c / UNITS) / n, whatever it answers. The nearest point of the simplex would bind it to
    1 / n, and the mean to equal weights: under noise of a standard deviation of 1.5, from weights
    (1, 0, 0, 0), the nearest points' mean is (0.44, 0.19, 0.19, 0.19), for any number of devices.
    """
    anchors = len(vector) - experts - 2
    return clip(vector, experts, anchors, influence_bound(variance))


@dataclass(frozen=True)
class MeanStatistics:
    """Means over devices, back in the statistics' own units and bounds.

    Attributes
    ----------
    expert_weights, anchor_weights : tuple of float
        Nearest point of the simplex, so not negative and summing to 1.
    best_similarity, entropy : float
        In [-1, 1] and in [0, 1].
    """

    expert_weights: tuple[float, ...]
    anchor_weights: tuple[float, ...]
    best_similarity: float
    entropy: float


def decode_mean(total: Sequence[int], devices: int, experts: int) -> MeanStatistics:
    """Return the means that a sum of vectors of ``devices`` devices tells of.

    The noise has mean zero, so the mean of the sum is unbiased; it leaves the simplex, and the
    nearest point of the simplex is never farther from the truth than the noised point is.
    """
    mean = [value / devices for value in total]
    return MeanStatistics(
        project_to_simplex([value / UNITS for value in mean[:experts]]),
        project_to_simplex([value / UNITS for value in mean[experts:-2]]),
        min(1.0, max(-1.0, mean[-2] / HALF)),
        min(1.0, max(0.0, mean[-1] / HALF)),
    )


def project_to_simplex(point: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest weights that are not negative and sum to 1 (Duchi et al. 2008, fig. 1)."""
    descending = sorted(point, reverse=True)
    total, shift = 0.0, 0.0
    for count, value in enumerate(descending, start=1):
        total += value
        if value - (total - 1) / count > 0:
            shift = (total - 1) / count
    return tuple(max(value - shift, 0.0) for value in point)
