"""Asking devices one question: wait until a deadline, keep what is valid, count the rest.

A device that raises, answers garbage, answers twice or never answers costs the round nothing but
that device. Flower's own strategies wait for ever when devices go; here every wait has an end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.refusals import QuorumError, Refused, counted, log_refused
from shared.flower_internals import content_bytes
from shared.protocol import REASONS, ProtocolError, Refusal, ReplyError
from shared.wire import BY_TYPE

Answer = TypeVar("Answer")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.5
"""Seconds between two looks for replies; the pause doubles while nothing comes."""
NO_ANSWER = "no answer before the deadline"
NOT_DELIVERED = "the request could not be delivered"
TWICE = "the device answered twice; its first answer counts"
FOREIGN = "the answer came from another device"
TOO_LARGE = "the answer has more bytes than the protocol allows"


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
    stray : int
        Replies to no message that was sent; whose they are cannot be told.
    """

    asked: tuple[int, ...]
    answers: dict[int, Answer]
    refused: tuple[Refused, ...]
    bytes_down: dict[int, int]
    bytes_up: dict[int, int]
    stray: int = 0


def exchange(
    grid: Grid,
    purpose: str,
    message_type: str,
    content: Callable[[int], RecordDict],
    read: Callable[[int, RecordDict], Answer],
    *,
    nodes: Sequence[int],
    needed: int,
    deadline_seconds: float,
    on_reply: Callable[[int], None] | None = None,
) -> Exchange[Answer]:
    """Ask devices one question and wait for their answers until a deadline.

    Parameters
    ----------
    purpose : str
        What devices are to do, for messages to people.
    content : callable
        What a device is asked, by node id.
    read : callable
        Reads the answer of a node; a ``ProtocolError`` refuses it.

    Raises
    ------
    QuorumError
        If fewer than ``needed`` devices gave a valid answer.
    """
    deadline = time.monotonic() + deadline_seconds
    asked = tuple(sorted(set(nodes)))
    bytes_down, bytes_up = dict.fromkeys(asked, 0), dict.fromkeys(asked, 0)
    answers: dict[int, Answer] = {}
    refused: list[Refused] = []
    stray = 0

    pending: dict[str, int] = {}
    node_of: dict[str, int] = {}
    sized: tuple[RecordDict | None, int] = (None, 0)
    for node in asked:
        # One at a time: an engine that cannot deliver a message may leave it out of the ids.
        question = content(node)
        message = Message(
            question, node, message_type, ttl=deadline_seconds + 60.0, group_id=purpose
        )
        if sized[0] is not question:  # a release is the same for all, and large
            sized = question, content_bytes(message)
        message_id = _push(grid, message)
        if message_id is None:
            refused.append(Refused(node, NOT_DELIVERED))
        else:
            bytes_down[node] = sized[1]
            pending[message_id] = node_of[message_id] = node

    pause = SHORTEST_PAUSE
    while pending:
        replies = list(grid.pull_messages(list(pending)))
        for reply in replies:
            # Error replies that Flower itself writes carry a wrong source node, so a reply
            # belongs to the device whose message it answers.
            message_id = reply.metadata.reply_to_message_id
            if message_id not in node_of:
                stray += 1
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
                if bytes_up[node] > BY_TYPE[message_type].up_bytes and reply.has_content():
                    raise ReplyError(TOO_LARGE)
                answers[node] = _read(reply, node, read)
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
    outcome = Exchange(
        asked,
        {node: answers[node] for node in asked if node in answers},
        tuple(sorted(refused, key=lambda entry: entry.node)),
        bytes_down,
        bytes_up,
        stray,
    )
    log_refused(purpose, outcome.refused, stray)
    _require_quorum(outcome, purpose, needed)
    return outcome


def _push(grid: Grid, message: Message) -> str | None:
    """Hand one message to the engine; None if the engine cannot deliver it."""
    ids = list(grid.push_messages([message]))
    return ids[0] if ids and ids[0] else None


def _read(reply: Message, node: int, read: Callable[[int, RecordDict], Answer]) -> Answer:
    if reply.has_error():
        code = reply.error.code
        if code in REASONS:
            # Our own words for the code: the text that came is the device's, and not trusted.
            raise ReplyError(REASONS[Refusal(code)])
        raise ReplyError(f"Flower reported error {code}")
    return read(node, reply.content)


def _require_quorum(outcome: Exchange[Answer], purpose: str, needed: int) -> None:
    done = len(outcome.answers)
    if done >= needed:
        return
    reasons = "; ".join(
        f"{len(nodes)} x {reason}" for reason, nodes in counted(outcome.refused).items()
    )
    raise QuorumError(
        f"Expected at least {needed} of {len(outcome.asked)} devices to {purpose}; "
        f"{done} did ({reasons or 'no device was asked'}). Mend the devices and resume the run, "
        "or lower rounds.quorum.",
        needed=needed,
        asked=len(outcome.asked),
        answered=done,
        refused=outcome.refused,
        stray=outcome.stray,
    )
