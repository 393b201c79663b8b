"""Honest numbers over users: means, bootstrap intervals, paired gains.

The unit of resampling is the user, never the query: queries of one person are not independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 10_000
MIN_USERS = 6
"""With fewer users no two-sided sign-flip test reaches 5 % (2 / 2**5 > 0.05): claim nothing."""

_CHUNK = 500  # resamples drawn at once, so that memory stays small with a thousand users


@dataclass(frozen=True)
class Estimate:
    """A mean over users with its 95 % percentile bootstrap interval.

    ``low`` and ``high`` are None for a single user, where no interval exists.
    """

    mean: float
    low: float | None
    high: float | None
    users: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the mean may be called different from zero."""
        if self.low is None or self.high is None or self.users < MIN_USERS:
            return False
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Gain:
    """A method against a reference on the users that both have; positive is always better.

    Attributes
    ----------
    estimate : Estimate
        Of the per-user difference, its sign turned so that better is positive.
    method, reference : float
        Means of the two over the same users.
    """

    estimate: Estimate
    method: float
    reference: float


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0) -> Estimate:
    """Estimate the mean of one value per user.

    Parameters
    ----------
    values : array_like, shape (users,)
        Finite, at least one.
    seed : int
        Of the resampling; equal seeds give equal intervals.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    array = np.asarray(values, dtype=np.float64)  # (users,)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected one value per user, shape (users,); got shape {array.shape}")
    mean = float(array.mean())
    if array.size == 1:
        return Estimate(mean, None, None, 1)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            array[rng.integers(array.size, size=(_CHUNK, array.size))].mean(axis=1)
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )  # (resamples,)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), array.size)


def paired_gain(
    method: Mapping[str, float],
    reference: Mapping[str, float],
    higher_is_better: bool,
    seed: int = 0,
) -> Gain | None:
    """Compare two methods user by user; None when they have no user in common."""
    users = [user for user in method if user in reference]
    if not users:
        return None
    ours = np.array([method[user] for user in users])  # (users,)
    theirs = np.array([reference[user] for user in users])  # (users,)
    difference = ours - theirs if higher_is_better else theirs - ours
    return Gain(bootstrap_mean(difference, seed), float(ours.mean()), float(theirs.mean()))
