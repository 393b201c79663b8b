"""Discrete Gaussian noise: exact, on integers, so that no floating point can betray a value.

The low bits of a floating-point sum of value and noise tell the value apart (Mironov 2012). Here
value and noise are integers, and every random decision compares integers, so the distribution is
the one that the proof is about.
"""

import random
from collections.abc import Callable
from math import isqrt

from shared.seeding import derive_seed

Randomness = Callable[[int], random.Random]
"""Where the noise of a release comes from, by the release's number."""


def system_randomness(release: int) -> random.Random:
    """Return the operating system's generator: nobody can repeat what it gives."""
    return random.SystemRandom()


def simulated_randomness(seed: int, device: str) -> Randomness:
    """Return noise that a simulation can repeat, whatever the engine; it protects nobody.

    A seed gives the same result on every engine. Nothing but a simulation's device takes it.
    """
    return lambda release: random.Random(derive_seed(seed, "noise", device, release))


def discrete_gaussian(variance: int, generator: random.Random) -> int:
    """Draw from the discrete Gaussian: P(x) proportional to exp(-x^2 / (2 variance)).

    Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), algorithms 1 to 3: propose from a discrete
    Laplace distribution, accept with the quotient of the two.

    Parameters
    ----------
    variance : int
        The parameter sigma^2, at least 1.
    generator : random.Random
        Whose ``randrange`` is uniform.
    """
    if variance < 1:
        raise ValueError("the variance of discrete noise is a whole number from 1")
    scale = isqrt(variance) + 1
    while True:
        proposed = _discrete_laplace(scale, generator)
        # (|y| - variance / scale)^2 / (2 variance), as one fraction
        off = abs(proposed) * scale - variance
        if _bernoulli_exp(off * off, 2 * variance * scale * scale, generator):
            return proposed


def _discrete_laplace(scale: int, generator: random.Random) -> int:
    """Draw with P(x) proportional to exp(-|x| / scale)."""
    while True:
        rest = generator.randrange(scale)
        if not _bernoulli_exp(rest, scale, generator):
            continue
        whole = 0
        while _bernoulli_exp(1, 1, generator):
            whole += 1
        size = rest + scale * whole
        if generator.randrange(2) == 0:
            return size
        if size:  # zero has no sign, and must not come up twice
            return -size


def _bernoulli_exp(numerator: int, denominator: int, generator: random.Random) -> bool:
    """Return True with probability exp(-numerator / denominator)."""
    while numerator > denominator:
        if not _bernoulli_exp_below_one(1, 1, generator):
            return False
        numerator -= denominator
    return _bernoulli_exp_below_one(numerator, denominator, generator)


def _bernoulli_exp_below_one(numerator: int, denominator: int, generator: random.Random) -> bool:
    draws = 1
    while generator.randrange(denominator * draws) < numerator:
        draws += 1
    return draws % 2 == 1
