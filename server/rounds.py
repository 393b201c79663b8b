"""The exchanges of a round: a release goes down, router statistics come up."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import RecordDict
from flwr.serverapp import Grid

from server.exchange import Exchange, exchange
from shared.config import RoundsConfig
from shared.errors import MesofedError
from shared.privacy import noise_variance
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    REASONS,
    ROUTER_STATISTICS,
    NoisedStatistics,
    Refusal,
    ReplyError,
    RouterStatistics,
    acknowledgement_from_content,
    noised_from_content,
    noised_request,
    release_to_content,
    statistics_from_content,
    statistics_request,
)
from shared.statistic_vector import plausible


def wait_for_devices(
    grid: Grid, expected: int, deadline_seconds: float, settle_seconds: float = 2.0
) -> tuple[int, ...]:
    """Wait until devices have registered; engines start a ServerApp before its nodes.

    Returns as soon as ``expected`` devices are there, or when there is at least one and no other
    came for ``settle_seconds``.

    Returns
    -------
    tuple of int
        Node ids, ascending.

    Raises
    ------
    MesofedError
        If there is none by the deadline.
    """
    start = time.monotonic()
    nodes: tuple[int, ...] = ()
    last_change = start
    while True:
        found = tuple(sorted(grid.get_node_ids()))
        now = time.monotonic()
        if found != nodes:
            nodes, last_change = found, now
        if nodes and (len(nodes) >= expected or now - last_change >= settle_seconds):
            return nodes
        if now - start >= deadline_seconds:
            if nodes:
                return nodes
            raise MesofedError(
                f"Expected {expected} devices; none registered within {deadline_seconds:g} s. "
                "Start the devices, or raise rounds.deadline_seconds."
            )
        time.sleep(0.05)


def quorum_of(rounds: RoundsConfig, devices: int) -> int:
    """Return how many of so many devices a round needs: at least one."""
    # The small term keeps 0.6 * 5 = 3.0000000000000004 from asking for a fourth device.
    return max(1, math.ceil(rounds.quorum * devices - 1e-9))


def broadcast_release(
    grid: Grid,
    files: Mapping[str, bytes],
    release: int,
    *,
    nodes: Sequence[int],
    needed: int,
    deadline_seconds: float,
    on_reply: Callable[[int], None] | None = None,
) -> Exchange[None]:
    """Bring a release to devices and wait until they have installed it.

    Parameters
    ----------
    files : mapping of file name to bytes
        The release folder.
    nodes : sequence of int
        The devices to ask.
    needed : int
        The quorum, as a number of devices.
    on_reply : callable, optional
        Called with the number of devices done, each time one more is done.

    Raises
    ------
    MesofedError
        If fewer than ``needed`` devices installed it.
    """
    content = release_to_content(files, release)
    return exchange(
        grid,
        f"install release {release}",
        INSTALL_RELEASE,
        lambda node: content,
        lambda node, reply: acknowledgement_from_content(reply),
        nodes=nodes,
        needed=needed,
        deadline_seconds=deadline_seconds,
        on_reply=on_reply,
    )


def gather_statistics(
    grid: Grid,
    release: int,
    *,
    experts: int,
    anchors: int,
    nodes: Sequence[int],
    needed: int,
    deadline_seconds: float,
    on_reply: Callable[[int], None] | None = None,
) -> Exchange[RouterStatistics]:
    """Ask devices for their router statistics of a release; see ``broadcast_release``.

    Parameters
    ----------
    experts, anchors : int
        E and M of the release: an answer with any other number of weights is refused.

    Raises
    ------
    MesofedError
        If fewer than ``needed`` devices gave valid statistics.
    """
    question = statistics_request(release)

    def read(node: int, content: RecordDict) -> RouterStatistics:
        statistics = statistics_from_content(content, experts, anchors)
        if statistics.release != release:
            raise ReplyError(REASONS[Refusal.OTHER_RELEASE])
        return statistics

    return exchange(
        grid,
        f"send router statistics of release {release}",
        ROUTER_STATISTICS,
        lambda node: question,
        read,
        nodes=nodes,
        needed=needed,
        deadline_seconds=deadline_seconds,
        on_reply=on_reply,
    )


def gather_noised(
    grid: Grid,
    release: int,
    noise_multiplier: float,
    *,
    experts: int,
    anchors: int,
    nodes: Sequence[int],
    needed: int,
    deadline_seconds: float,
    on_reply: Callable[[int], None] | None = None,
) -> Exchange[NoisedStatistics]:
    """Ask devices for noised statistics; see ``gather_statistics``.

    No number of an answer, and no sum of a group of weights, is farther out than the noise of an
    honest device ever brings it.
    """
    question = noised_request(release, noise_multiplier)
    variance, length = noise_variance(noise_multiplier), experts + anchors + 2

    def read(node: int, content: RecordDict) -> NoisedStatistics:
        statistics = noised_from_content(content)
        if statistics.release != release:
            raise ReplyError(REASONS[Refusal.OTHER_RELEASE])
        vector = statistics.vector
        if len(vector) != length or not plausible(vector, 1, experts, variance):
            raise ReplyError("noised statistics are not within the noise that was asked for")
        return statistics

    return exchange(
        grid,
        f"send noised statistics of release {release}",
        NOISED_STATISTICS,
        lambda node: question,
        read,
        nodes=nodes,
        needed=needed,
        deadline_seconds=deadline_seconds,
        on_reply=on_reply,
    )
