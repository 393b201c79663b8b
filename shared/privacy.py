"""Differential privacy of the router statistics: how much noise, and what has been spent.

The unit of privacy is one person over all rounds; neighbours differ in one person's history, and
who takes part is public (see ``statistic_vector.encode``, which proves the sensitivity). Every
round asks every device, so nothing is claimed for sampling.

    local     each device adds all the noise: the server may do with the numbers what it likes
    central   each device adds a share; the sum of the honest devices' shares is the noise. It holds
              for what secure aggregation lets the server see, the sum, as long as the server keeps
              to the protocol and no more devices than declared tell it their numbers

A discrete Gaussian of L2 sensitivity D and parameter sigma satisfies (D / sigma)^2 / 2-concentrated
differential privacy (Canonne, Kamath and Steinke 2020, theorem 4), which is the Renyi curve of the
continuous Gaussian; so the accountant's Gaussian events bound it. Privacy loss distributions would
be tighter for the continuous mechanism, and are proved for that one alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from shared.errors import MesofedError
from shared.program import command
from shared.statistic_vector import SQUARED_SENSITIVITY

MECHANISMS = ("local", "central")
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class LedgerEntry:
    """One answer that told the server something of a person.

    Attributes
    ----------
    release : int
        The release that the statistics were of; there is one round a release.
    mechanism : str
        "local" or "central".
    noise_multiplier : float
        Standard deviation of the noise over the sensitivity; of the honest sum, if central.
    timestamp : str
        ISO 8601.
    """

    release: int
    mechanism: str
    noise_multiplier: float
    timestamp: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON keeps it."""
        return asdict(self)

    @staticmethod
    def from_json(data: object) -> "LedgerEntry":
        """Return the entry that JSON kept.

        Raises
        ------
        MesofedError
            If it is none. A ledger that cannot be read must not count as empty.
        """
        names = {"release", "mechanism", "noise_multiplier", "timestamp"}
        if (
            not isinstance(data, dict)
            or set(data) != names
            or type(data["release"]) is not int
            or data["mechanism"] not in MECHANISMS
            or not isinstance(data["noise_multiplier"], float)
            or not 0 < data["noise_multiplier"] < math.inf
            or not isinstance(data["timestamp"], str)
        ):
            raise MesofedError(
                "Expected an entry of a privacy ledger; got something else. The device sends "
                "nothing while it cannot tell what it has spent, and no older copy can. Begin anew "
                f"with `{command('device', 'forget')}`; that vault's budget then comes on top of "
                "this one's."
            )
        return LedgerEntry(**data)


def spent(entries: Sequence[LedgerEntry], delta: float) -> float:
    """Return the epsilon that these answers cost together, for a delta."""
    return _epsilon(tuple(entry.noise_multiplier for entry in entries), delta)


def would_exceed(
    entries: Sequence[LedgerEntry], noise_multiplier: float, epsilon: float, delta: float
) -> bool:
    """Return whether one more answer with this noise would cost more than the budget in all."""
    multipliers = (*(entry.noise_multiplier for entry in entries), noise_multiplier)
    # Written so that what cannot be computed counts as too much.
    return not _epsilon(multipliers, delta) <= epsilon + _TOLERANCE


@lru_cache(maxsize=64)
def calibrate(epsilon: float, delta: float, rounds: int) -> float:
    """Return the least noise multiplier with which so many rounds fit the budget."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    def event(multiplier: float) -> Any:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), rounds)

    # The search ends within a tolerance of the budget, on its safe side.
    return float(
        dp_accounting.calibrate_dp_mechanism(
            lambda: RdpAccountant(neighboring_relation=_replace_one()), event, epsilon, delta
        )
    )


def _epsilon(multipliers: tuple[float, ...], delta: float) -> float:
    # The accountant brings SciPy: a second or two that a ServerApp without privacy need not wait.
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    if not multipliers:
        return 0.0
    accountant = RdpAccountant(neighboring_relation=_replace_one())
    for multiplier in multipliers:
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    return float(accountant.get_epsilon(delta))


def _replace_one() -> Any:
    import dp_accounting

    return dp_accounting.NeighboringRelation.REPLACE_ONE


# Noise on the integers of a statistic vector.


def noise_variance(noise_multiplier: float) -> int:
    """Return sigma^2 of one number's noise, in squared units, rounded up."""
    exact: Fraction = Fraction(noise_multiplier) ** 2 * SQUARED_SENSITIVITY
    return max(1, math.ceil(exact))


def share_variance(noise_multiplier: float, honest: int) -> int:
    """Return sigma^2 of a device's share, of which ``honest`` together make the noise."""
    return max(1, math.ceil(Fraction(noise_variance(noise_multiplier), honest)))


def honest_devices(needed: int, devices: int, honest_share: float) -> int:
    """Return how many honest devices the noise may count on in the smallest sum.

    The dishonest ones of all may be in the sum while honest ones stay away, so every one of them
    is missing among the ``needed``. A device is honest to itself: one there always is.

    Parameters
    ----------
    needed : int
        Devices without which the sum is not opened.
    devices : int
        All that joined the sum, and so may be in it.
    honest_share : float
        Of all.
    """
    dishonest = math.floor((1 - honest_share) * devices + 1e-9)
    return max(1, needed - dishonest)


def summed_multiplier(variance: int, honest: int, length: int) -> float:
    """Return the noise multiplier of a sum of ``honest`` discrete Gaussians.

    The sum is no discrete Gaussian, but close to one: it satisfies e^2 / 2-concentrated
    differential privacy with ``e = D / (sqrt(n) sigma) + tau sqrt(d)``, where
    ``tau = 10 sum_{k<n} exp(-2 pi^2 sigma^2 k / (k + 1))`` (Kairouz, Liu and Steinke 2021,
    arXiv 2102.06387, theorem 1). Tau is at most ``10 n exp(-pi^2 sigma^2)``: nothing at all for
    shares of more than a few units.

    Parameters
    ----------
    variance : int
        sigma^2 of one share, in squared units.
    honest : int
        Number of shares n.
    length : int
        Numbers in the vector, d.
    """
    tau = 10 * honest * math.exp(-(math.pi**2) * variance)
    concentrated = math.sqrt(SQUARED_SENSITIVITY / (honest * variance)) + tau * math.sqrt(length)
    return 1 / concentrated
