"""The statistics of a device as whole numbers, under noise."""

from client.device import Device
from shared.noise import discrete_gaussian
from shared.protocol import RouterStatistics
from shared.statistic_vector import encode


def noised_vector(
    device: Device, release: int, variance: int
) -> tuple[RouterStatistics, list[int]]:
    """Return the statistics, and their vector with fresh noise on every number.

    Parameters
    ----------
    variance : int
        sigma^2 of one number's noise, in squared units.
    """
    statistics, generator = device.statistics(), device.randomness(release)
    noised = [value + discrete_gaussian(variance, generator) for value in encode(statistics)]
    return statistics, noised
