"""Who shares secrets with whom: everybody in a small round, 100 others in a large one.

SecAgg+ (Bell et al., CCS 2020): devices stand in a circle, in an order that nobody
can choose beforehand, and each knows its nearest 50 on both sides. A device's secrets are cut into
as many shares as it has neighbours; more than three fifths of them open one.

The three fifths are a compromise: two fifths of the neighbours may drop out, and a server that
tells a device's neighbours different stories needs a fifth of them as accomplices to open both of
its secrets. ``tests/shared/secure_aggregation/test_graph.py`` computes how likely any of 1,000
devices is to lose too many neighbours when a fifth of all drop out: once in a thousand rounds.
"""

from functools import lru_cache

MOST_DEVICES = 10_000
FEWEST_DEVICES = 3
MOST_NEIGHBOURS = 100


@lru_cache(maxsize=2 * MOST_DEVICES)
def neighbours_of(index: int, devices: int) -> tuple[int, ...]:
    """Return the neighbours of the device at a place of the circle, ascending.

    Parameters
    ----------
    index : int
        From 0.
    devices : int
        Places of the circle.
    """
    if devices <= MOST_NEIGHBOURS + 1:
        return tuple(other for other in range(devices) if other != index)
    half = MOST_NEIGHBOURS // 2
    steps = (*range(-half, 0), *range(1, half + 1))
    return tuple(sorted((index + step) % devices for step in steps))


def threshold_of(devices: int) -> int:
    """Return how many shares open a secret in a round of so many devices."""
    return 3 * min(devices - 1, MOST_NEIGHBOURS) // 5 + 1
