"""Honest numbers over users: means, bootstrap intervals, paired gains and their tests.

The unit of resampling is the user, never the query: queries of one person are not independent.
Intervals show how far a mean may be off; whether a difference is called clear is up to a sign-flip
test, since with few users a percentile interval excludes zero too easily.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 10_000
SIGNIFICANCE = 0.05
MOST_ENUMERATED = 12
"""Up to so many users that differ, all sign flips are gone through; beyond, they are counted."""
GRID = 1 << 16
"""Differences whose flips are counted are whole multiples of at most one part in so many of their
absolute sum, or of one part in ``GRID_PER_USER`` of their mean size, whichever is finer."""
GRID_PER_USER = 64
MIN_USERS = 6
"""With fewer users no two-sided sign-flip test reaches 5 % (2 / 2**5 > 0.05)."""

_CHUNK = 500  # resamples drawn at once, so that memory stays small with a thousand users
_ROUNDING = 1e-9  # differences of scores that are smaller come from the order of a sum


@dataclass(frozen=True)
class Estimate:
    """A mean over users with its 95 % percentile bootstrap interval.

    ``low`` and ``high`` are None for a single user, where no interval exists.
    """

    mean: float
    low: float | None
    high: float | None
    users: int


@dataclass(frozen=True)
class Gain:
    """A method against a reference on the users that both have; positive is always better.

    Attributes
    ----------
    estimate : Estimate
        Of the per-user difference, its sign turned so that better is positive.
    method, reference : float
        Means of the two over the same users.
    p : float
        Of the two-sided sign-flip test over users.
    adjusted_p : float
        The same, corrected for all comparisons that it stands among.
    """

    estimate: Estimate
    method: float
    reference: float
    p: float
    adjusted_p: float

    @property
    def clear(self) -> bool:
        """Whether the two may be called different."""
        return self.adjusted_p < SIGNIFICANCE


def best_of(means: Sequence[float], higher_is_better: bool) -> float | None:
    """Return the best of several methods' means; None where there is none or all are the same."""
    if not means or (len(means) > 1 and len(set(means)) == 1):
        return None
    return max(means) if higher_is_better else min(means)


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


def sign_flip_test(differences: npt.ArrayLike) -> float:
    """Return the two-sided p-value of one paired difference per user.

    If a method changes nothing, a user's difference might as well have had the other sign. The
    p-value is the share of all sign flips whose sum is at least as far from zero as the true one;
    none is drawn by chance, so there is no least p-value but that of the flips' number. A user
    without a difference is no evidence and changes nothing.

    Beyond ``MOST_ENUMERATED`` users the differences are rounded to a grid first. The grid depends
    on their sizes and not on their signs, so the p-value is that of an exact test all the same: of
    the rounded differences.

    Parameters
    ----------
    differences : array_like, shape (users,)
        Finite.

    Source: Fisher, The Design of Experiments (1935), section 21; counting by Streitberg and
    Roehmel, Exact distributions for permutation and rank tests (1986).
    """
    array = np.asarray(differences, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per user, shape (users,); got shape {array.shape}")
    moved = array[np.abs(array) > _ROUNDING]  # (moved,)
    if moved.size == 0:
        return 1.0
    if moved.size <= MOST_ENUMERATED:
        least = abs(moved.sum()) - _ROUNDING * np.abs(moved).sum()
        places = np.arange(2**moved.size)[:, None]  # (flips, 1)
        signs = 1 - 2 * (places >> np.arange(moved.size) & 1)  # (flips, moved)
        return float(np.mean(np.abs(signs @ moved) >= least))
    return _counted(_on_a_grid(moved))


def _on_a_grid(moved: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return differences, (moved,), as whole multiples of a step that no sign changes."""
    sizes = np.abs(moved)
    finest = sizes.sum() / max(GRID, GRID_PER_USER * moved.size)
    # Scores of few queries are multiples of one step; as multiples of it they keep their ties.
    smallest = sizes.min()
    step = smallest / math.ceil(smallest / finest) if smallest > finest else finest
    units: npt.NDArray[np.int64] = np.rint(moved / step).astype(np.int64)
    return units


def _counted(units: npt.NDArray[np.int64]) -> float:
    """Return the two-sided p-value of whole differences, (moved,), over all their sign flips.

    A sum of flipped differences is A - 2 F: their absolute sum less twice what is flipped. So the
    sums from T = |sum| on are those with F at most K = (A - T) / 2, and each of the differences is
    in F or is not. Hand-worked: 3, 2, -1 has A = 6, T = 4, K = 1; of the eight subsets of
    {3, 2, 1} two have a sum up to 1, {} and {1}; both sides together make p = 4 / 8.
    """
    total = abs(int(units.sum()))
    if total == 0:
        return 1.0
    sizes = np.abs(units)
    most = (int(sizes.sum()) - total) // 2  # A and T are both odd or both even
    share = np.zeros(most + 1)  # share[f] of the flips so far have F = f
    share[0] = 1.0
    for size in sizes.tolist():
        flipped = share[: max(0, most + 1 - size)] / 2
        share /= 2
        share[size:] += flipped
    # More users than a float has binary digits for may leave nothing; the true flips are there.
    return float(max(min(1.0, 2 * share.sum()), np.finfo(np.float64).tiny))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that the chance of any false claim stays in bounds.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979), in the form of
    adjusted p-values.
    """
    adjusted = [1.0] * len(p_values)
    reached = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = reached
    return adjusted


def paired_gain(
    method: Mapping[str, float],
    reference: Mapping[str, float],
    higher_is_better: bool,
    seed: int = 0,
) -> Gain | None:
    """Compare two methods user by user; None when they have no user in common.

    The adjusted p-value is that of a single comparison: ``holm`` corrects for more.
    """
    users = [user for user in method if user in reference]
    if not users:
        return None
    ours = np.array([method[user] for user in users])  # (users,)
    theirs = np.array([reference[user] for user in users])  # (users,)
    difference = ours - theirs if higher_is_better else theirs - ours
    p = sign_flip_test(difference)
    estimate = bootstrap_mean(difference, seed)
    return Gain(estimate, float(ours.mean()), float(theirs.mean()), p, p)
