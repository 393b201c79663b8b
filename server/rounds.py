"""One exchange with all devices: ask, wait until a deadline, keep what is valid, count the rest.

A device that raises, answers garbage, answers twice or never answers costs the round nothing but
that device. Flower's own strategies wait for ever when devices go; here every wait has an end.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from shared.config import RoundsConfig
from shared.errors import MesofedError
from shared.flower_internals import content_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    REASONS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    ReplyError,
    RouterStatistics,
    acknowledgement_from_content,
    release_to_content,
    statistics_from_content,
    statistics_request,
)

Answer = TypeVar("Answer")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.5
"""Seconds between two looks for replies; the pause doubles while nothing comes."""
NO_ANSWER = "no answer before the deadline"
NOT_DELIVERED = "the request could not be delivered"
TWICE = "the device answered twice; its first answer counts"
FOREIGN = "the answer came from another device"


@dataclass(frozen=True)
class Refused:
    """An answer that does not count, or that never came."""

    node: int
    reason: str


@dataclass(frozen=True)
class Exchange(Generic[Answer]):
    """What came of asking devices once.

    Attributes
    ----------
    asked : tuple of int
        Node ids, ascending.
    answers : dict of int to Answer
        Valid answers by node id, ascending.
    refused : tuple of Refused
        By node id, ascending; a device may have both an answer and a refused second one.
    bytes_down, bytes_up : dict of int to int
        Serialised size of what each device was sent and answered; 0 where nothing went.
    """

    asked: tuple[int, ...]
    answers: dict[int, Answer]
    refused: tuple[Refused, ...]
    bytes_down: dict[int, int]
    bytes_up: dict[int, int]


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
    return _exchange(
        grid,
        f"install release {release}",
        INSTALL_RELEASE,
        content,
        acknowledgement_from_content,
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

    def read(content: RecordDict) -> RouterStatistics:
        statistics = statistics_from_content(content, experts, anchors)
        if statistics.release != release:
            raise ReplyError(REASONS[Refusal.OTHER_RELEASE])
        return statistics

    return _exchange(
        grid,
        f"send router statistics of release {release}",
        ROUTER_STATISTICS,
        statistics_request(release),
        read,
        nodes=nodes,
        needed=needed,
        deadline_seconds=deadline_seconds,
        on_reply=on_reply,
    )


def _exchange(
    grid: Grid,
    purpose: str,
    message_type: str,
    content: RecordDict,
    read: Callable[[RecordDict], Answer],
    *,
    nodes: Sequence[int],
    needed: int,
    deadline_seconds: float,
    on_reply: Callable[[int], None] | None,
) -> Exchange[Answer]:
    deadline = time.monotonic() + deadline_seconds
    asked = tuple(sorted(set(nodes)))
    bytes_down, bytes_up = dict.fromkeys(asked, 0), dict.fromkeys(asked, 0)
    answers: dict[int, Answer] = {}
    refused: list[Refused] = []

    pending: dict[str, int] = {}
    node_of: dict[str, int] = {}
    size = None
    for node in asked:
        # One at a time: an engine that cannot deliver a message may leave it out of the ids.
        message = Message(
            content, node, message_type, ttl=deadline_seconds + 60.0, group_id=purpose
        )
        size = content_bytes(message) if size is None else size
        message_id = _push(grid, message)
        if message_id is None:
            refused.append(Refused(node, NOT_DELIVERED))
        else:
            bytes_down[node] = size
            pending[message_id] = node_of[message_id] = node

    pause = SHORTEST_PAUSE
    while pending:
        replies = list(grid.pull_messages(list(pending)))
        for reply in replies:
            # Error replies that Flower itself writes carry a wrong source node, so a reply
            # belongs to the device whose message it answers.
            message_id = reply.metadata.reply_to_message_id
            if message_id not in node_of:
                continue
            node = node_of[message_id]
            if message_id not in pending:
                refused.append(Refused(node, TWICE))
                continue
            if reply.has_content() and reply.metadata.src_node_id != node:
                refused.append(Refused(node, FOREIGN))
                continue
            del pending[message_id]
            bytes_up[node] = content_bytes(reply)
            try:
                answers[node] = _read(reply, read)
            except ProtocolError as error:
                refused.append(Refused(node, error.reason))
            if on_reply is not None:
                on_reply(len(asked) - len(pending))
        if pending and time.monotonic() >= deadline:
            break
        if pending:
            pause = SHORTEST_PAUSE if replies else min(2 * pause, LONGEST_PAUSE)
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))

    refused += [Refused(node, NO_ANSWER) for node in pending.values()]
    exchange = Exchange(
        asked,
        {node: answers[node] for node in asked if node in answers},
        tuple(sorted(refused, key=lambda entry: entry.node)),
        bytes_down,
        bytes_up,
    )
    _require_quorum(exchange, purpose, needed)
    return exchange


def _push(grid: Grid, message: Message) -> str | None:
    """Hand one message to the engine; None if the engine cannot deliver it."""
    ids = list(grid.push_messages([message]))
    return ids[0] if ids and ids[0] else None


def _read(reply: Message, read: Callable[[RecordDict], Answer]) -> Answer:
    if reply.has_error():
        code = reply.error.code
        if code in REASONS:
            # Our own words for the code: the text that came is the device's, and not trusted.
            raise ReplyError(REASONS[Refusal(code)])
        raise ReplyError(f"Flower reported error {code}")
    return read(reply.content)


def _require_quorum(exchange: Exchange[Answer], purpose: str, needed: int) -> None:
    done = len(exchange.answers)
    if done >= needed:
        return
    counts: dict[str, int] = {}
    for entry in exchange.refused:
        counts[entry.reason] = counts.get(entry.reason, 0) + 1
    reasons = "; ".join(f"{number} x {reason}" for reason, number in sorted(counts.items()))
    raise MesofedError(
        f"Expected at least {needed} of {len(exchange.asked)} devices to {purpose}; "
        f"{done} did ({reasons or 'no device was asked'}). Mend the devices and resume the run, "
        "or lower rounds.quorum."
    )
