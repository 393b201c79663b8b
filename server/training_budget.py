"""The privacy budget of DP-SGD: how much noise a training needs, and what a training has spent.

One step takes each of a LoRA's samples with probability ``sampling_rate`` (Poisson sampling), clips
every sample's gradient and adds Gaussian noise to the sum. That is what is accounted for, step by
step, by privacy loss distributions; no shuffled epoch is passed off as Poisson sampling.

Source: Abadi et al., Deep Learning with Differential Privacy (2016); Koskela et al., Computing
Tight Differential Privacy Guarantees Using FFT (2020); Google's dp-accounting computes them.
"""

from dataclasses import dataclass
from functools import lru_cache

from shared.errors import MesofedError

# Epsilon grows by less than 1e-4 against a grid a hundred times as fine, in a thirtieth of the
# time; the coarse grid errs on the safe side.
_GRID = 5e-3
_TOLERANCE = 1e-3
MOST_NOISE = 1e4
"""With more noise than this nothing is learned; a budget that asks for it is refused."""


@dataclass(frozen=True)
class Budget:
    """What one LoRA's private training is made of, and the guarantee that this gives.

    The guarantee is for one sample: whoever sees the LoRAs of all the releases can tell whether
    that sample was among those trained on no better than (epsilon, delta) allows, even knowing
    all others.

    Attributes
    ----------
    samples : int
        Of the LoRA; taken as known.
    sampling_rate : float
        Probability of a sample to be in a step.
    steps : int
        Of one release.
    releases : int
        Trainings on the same samples that the guarantee is for.
    noise_multiplier : float
        Standard deviation of the noise over the clipping norm.
    epsilon, delta : float
        Of all the releases together; neighbours differ in one sample that is there or not.
    """

    samples: int
    sampling_rate: float
    steps: int
    releases: int
    noise_multiplier: float
    epsilon: float
    delta: float


def plan_budget(
    samples: int, batch_size: int, epochs: int, releases: int, epsilon: float, delta: float
) -> Budget:
    """Return the training that stays within epsilon and delta, with as little noise as that takes.

    Parameters
    ----------
    samples : int
        Of one LoRA.
    batch_size : int
        Samples in a step, on average.
    epochs : int
        So many times is each sample taken, on average.
    releases : int
        How often the training is repeated on the same samples.

    Raises
    ------
    MesofedError
        If no amount of noise that leaves anything to learn is enough.
    """
    rate = min(1.0, batch_size / samples)
    steps = epochs * -(-samples // batch_size)
    noise = _noise_multiplier(rate, steps * releases, epsilon, delta)
    spent = epsilon_of(rate, steps * releases, noise, delta)
    return Budget(samples, rate, steps, releases, noise, spent, delta)


@lru_cache(maxsize=256)
def epsilon_of(sampling_rate: float, steps: int, noise_multiplier: float, delta: float) -> float:
    """Return the epsilon that so many steps spend at a delta."""
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=_GRID)
    accountant.compose(_event(sampling_rate, steps, noise_multiplier))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def _noise_multiplier(sampling_rate: float, steps: int, epsilon: float, delta: float) -> float:
    if epsilon_of(sampling_rate, steps, MOST_NOISE, delta) > epsilon:
        raise MesofedError(
            f"Expected a budget that leaves something to learn; epsilon {epsilon:g} at delta "
            f"{delta:g} over {steps} steps needs a noise multiplier above {MOST_NOISE:g}. Raise "
            "bank.dp_epsilon, or lower bank.epochs."
        )
    low, high = 1e-2, MOST_NOISE
    while high / low > 1 + _TOLERANCE:
        middle = (low * high) ** 0.5
        enough = epsilon_of(sampling_rate, steps, middle, delta) <= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high


def _event(sampling_rate: float, steps: int, noise_multiplier: float) -> object:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    step = (
        dp_accounting.PoissonSampledDpEvent(sampling_rate, gaussian)
        if sampling_rate < 1
        else gaussian
    )
    return dp_accounting.SelfComposedDpEvent(step, steps)
