"""Answers that do not count: in the log, in a round's record, and where a quorum is missed.

A reason is one of this code base's fixed texts; nothing that a device wrote is repeated.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import MesofedError

NAMED = 5
"""So many node ids are named in a line of the log; the record has all."""


@dataclass(frozen=True)
class Refused:
    """An answer that does not count, or that never came."""

    node: int
    reason: str


def counted(refused: Sequence[Refused]) -> dict[str, list[int]]:
    """Return the nodes of each reason, both ascending."""
    nodes: dict[str, list[int]] = {}
    for entry in sorted(refused, key=lambda entry: (entry.reason, entry.node)):
        nodes.setdefault(entry.reason, []).append(entry.node)
    return nodes


def log_refused(purpose: str, refused: Sequence[Refused], stray: int = 0) -> None:
    """Tell Flower's log, a line for each reason, whose answers do not count.

    Parameters
    ----------
    purpose : str
        What devices were to do.
    stray : int
        Replies to no message that was sent.
    """
    log = logging.getLogger("flwr")
    for reason, nodes in counted(refused).items():
        named = ", ".join(map(str, nodes[:NAMED]))
        more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
        log.warning("Refused, %s: %d x %s (node %s%s)", purpose, len(nodes), reason, named, more)
    if stray:
        log.warning("Dropped, %s: %d x a reply to no message that was sent", purpose, stray)


def refused_record(refused: Sequence[Refused]) -> list[dict[str, Any]]:
    """Return refusals as a record keeps them, by node id."""
    return [
        {"node": entry.node, "reason": entry.reason}
        for entry in sorted(refused, key=lambda entry: entry.node)
    ]


class QuorumError(MesofedError):
    """Too few devices did what they were asked.

    Parameters
    ----------
    text : str
    needed, asked, answered : int
        Devices.
    refused : sequence of Refused
    stray : int
        Replies to no message that was sent.
    """

    def __init__(
        self,
        text: str,
        *,
        needed: int,
        asked: int,
        answered: int,
        refused: Sequence[Refused],
        stray: int = 0,
    ) -> None:
        super().__init__(text)
        self.needed, self.asked, self.answered = needed, asked, answered
        self.refused, self.stray = tuple(refused), stray

    def after(self, refused: Sequence[Refused], stray: int = 0) -> "QuorumError":
        """Return the error with what was refused before, in the same round."""
        return QuorumError(
            str(self),
            needed=self.needed,
            asked=self.asked,
            answered=self.answered,
            refused=(*refused, *self.refused),
            stray=stray + self.stray,
        )

    def record(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "needed": self.needed,
            "asked": self.asked,
            "answered": self.answered,
            "refused": refused_record(self.refused),
            "stray": self.stray,
        }
