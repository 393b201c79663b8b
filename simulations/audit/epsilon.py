"""Empirical epsilon: what an attack proves about a mechanism, as a lower bound with confidence.

    mechanism(x)  many times  ->  scores -+
                                          +-> a threshold  ->  how often it errs  ->  epsilon >= ...
    mechanism(x') many times  ->  scores -+

A mechanism that is (epsilon, delta)-differentially private lets nobody tell two neighbouring inputs
apart with few errors of both kinds. So few errors prove a large epsilon, whatever is claimed. The
threshold is chosen on one half of the trials and its errors are counted on the other.

Source: Kairouz, Oh and Viswanath, The Composition Theorem for Differential Privacy (2015), for the
region of errors; Jagielski, Ullman and Oprea, Auditing Differentially Private Machine Learning
(2020), for Clopper-Pearson bounds on them; Nasr et al., Tight Auditing of Differentially Private
Machine Learning (2023), for the bound by Gaussian differential privacy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import beta, norm

from shared.seeding import derive_seed

CONFIDENCE = 0.95
THRESHOLDS = 200
"""Tried at most, on the first half of the trials."""
LARGEST_EPSILON = 1e3

Vector = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Mechanism = Callable[[Vector, np.random.Generator], Vector]
"""From what a device knows, (numbers,), to what an observer sees, (numbers,); drawn anew each time.

Whoever has a mechanism to audit writes it in this form; the attack knows nothing else of it.
"""


@dataclass(frozen=True)
class Neighbours:
    """Two inputs that the mechanism must not let anyone tell apart.

    Attributes
    ----------
    first, second : ndarray, (numbers,)
        As far apart as the declared bounds allow.
    """

    first: Vector
    second: Vector


@dataclass(frozen=True)
class EmpiricalEpsilon:
    """What an attack has proved, each bound with ``confidence``.

    Attributes
    ----------
    trials : int
        Of each of the two inputs.
    delta : float
    confidence : float
    false_positives, false_negatives : int
        Errors of the best threshold, of ``counted`` trials each.
    counted : int
    any_mechanism : float
        Epsilon is at least this, whatever the mechanism; 0 proves nothing.
    gaussian : float
        Epsilon is at least this if the mechanism is a Gaussian one. Tighter: for a small delta an
        arbitrary mechanism differs in tails that few trials reach.
    """

    trials: int
    delta: float
    confidence: float
    false_positives: int
    false_negatives: int
    counted: int
    any_mechanism: float
    gaussian: float


def audit_mechanism(
    mechanism: Mechanism,
    neighbours: Neighbours,
    *,
    trials: int,
    delta: float,
    seed: int,
    rounds: int = 1,
) -> EmpiricalEpsilon:
    """Attack a mechanism.

    The score of an observation is its component along the difference of the two inputs, the best
    there is against noise that is alike in all directions.

    Parameters
    ----------
    trials : int
        Of each input.
    rounds : int
        Observations of one trial; their scores are added up. The bound is for all of them.
    """
    direction = neighbours.second - neighbours.first
    scores = []
    for which, vector in (("first", neighbours.first), ("second", neighbours.second)):
        rng = np.random.default_rng(derive_seed(seed, "epsilon", which))
        seen = [
            sum(float(mechanism(vector, rng) @ direction) for _ in range(rounds))
            for _ in range(trials)
        ]
        scores.append(np.array(seen))
    return bound_epsilon(scores[0], scores[1], delta)


def bound_epsilon(
    first: Vector, second: Vector, delta: float, confidence: float = CONFIDENCE
) -> EmpiricalEpsilon:
    """Return what scores of two inputs prove; those of ``second`` are larger, if any are.

    Parameters
    ----------
    first, second : ndarray, (trials,)
        Independent draws; the first half of each chooses the thresholds.
    """
    half = len(first) // 2
    # Two error rates are bounded at once, so each may fail half as often.
    tail = (1 - confidence) / 2
    tried = _thresholds(first[:half], second[:half])
    # Many thresholds are looked at, and one that was lucky must not be taken for good: here each
    # bound is as strict as if all of them had to hold.
    rates = [
        most(errors, half, tail / len(tried)) for errors in _errors(first, second, half, tried)
    ]
    by_any = [epsilon_of_errors(one, other, delta) for one, other in zip(*rates, strict=True)]
    by_mu = [mu_of_errors(one, other) for one, other in zip(*rates, strict=True)]
    best = np.array([tried[np.argmax(by_any)], tried[np.argmax(by_mu)]])

    count = len(first) - half
    positives, negatives = _errors(first[half:], second[half:], count, best)
    ones, others = most(positives, count, tail), most(negatives, count, tail)
    return EmpiricalEpsilon(
        trials=len(first),
        delta=delta,
        confidence=confidence,
        false_positives=int(positives[0]),
        false_negatives=int(negatives[0]),
        counted=count,
        any_mechanism=epsilon_of_errors(ones[0], others[0], delta),
        gaussian=gaussian_epsilon(mu_of_errors(ones[1], others[1]), delta),
    )


def _thresholds(first: Vector, second: Vector) -> Vector:
    """Return thresholds between neighbouring scores, at most ``THRESHOLDS`` of them."""
    pooled = np.unique(np.concatenate([first, second]))
    middles: Vector = (pooled[1:] + pooled[:-1]) / 2 if len(pooled) > 1 else pooled
    places = np.unique(np.linspace(0, len(middles) - 1, THRESHOLDS).astype(int))
    return np.array(middles[places])


def _errors(first: Vector, second: Vector, count: int, thresholds: Vector) -> tuple[Counts, Counts]:
    """Return the false positives and negatives of the first ``count`` trials at each threshold."""
    below = np.searchsorted(np.sort(first[:count]), thresholds, side="right")
    return count - below, np.searchsorted(np.sort(second[:count]), thresholds, side="right")


def most(errors: Counts, trials: int, tail: float) -> Vector:
    """Return the largest error rates that so few errors allow, but for a chance of ``tail`` each.

    Source: Clopper and Pearson (1934).
    """
    bounds = beta.ppf(1 - tail, errors + 1, np.maximum(trials - errors, 1))
    return np.where(errors == trials, 1.0, bounds)


def epsilon_of_errors(false_positive: float, false_negative: float, delta: float) -> float:
    """Return the least epsilon of a mechanism whose inputs can be told apart with such errors."""
    return max(
        (
            math.log((1 - delta - one) / other)
            for one, other in (
                (false_positive, false_negative),
                (false_negative, false_positive),
            )
            if 1 - delta - one > other
        ),
        default=0.0,
    )


def mu_of_errors(false_positive: float, false_negative: float) -> float:
    """Return the least mu of a mu-GDP mechanism with such errors (Dong, Roth and Su, 2022)."""
    return max(0.0, float(norm.ppf(1 - false_positive) - norm.ppf(false_negative)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon at ``delta`` of a Gaussian mechanism with mu = sensitivity / deviation.

    Source: Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy (2018),
    theorem 8.
    """

    def excess(epsilon: float) -> float:
        tail = math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)))
        return float(norm.cdf(mu / 2 - epsilon / mu)) - tail - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, LARGEST_EPSILON))
