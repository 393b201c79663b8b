"""The wire under observation: every byte that leaves a device, and all that the server keeps of it.

messages   each reply as it crosses Flower's wire, metadata and error texts included; of requests,
           which bring releases to all devices, nothing is kept
logs       what any library logs in this process while the federation runs
files      names and contents in the run's folder, but for the vaults, which are the devices'
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flwr.app import Message
from flwr.clientapp import ClientApp

from shared.flower_internals import message_to_bytes
from shared.protocol import REASONS
from simulations.local_grid import LocalGrid, run_config_of

DEVICE_SIDE = ("vaults", "pool")
"""What of a simulation's run folder lies on the devices: no server has it."""


Kind = Literal["answer", "refusal", "error"]


@dataclass(frozen=True)
class Left:
    """One reply that left a device.

    Attributes
    ----------
    device : int
        Partition, from 0.
    request : str
        Message type.
    kind : str
        An answer with content, a refusal in the protocol's own words, or any other error.
    data : bytes
        As it crossed the wire.
    """

    device: int
    request: str
    kind: Kind
    data: bytes


class TappedGrid(LocalGrid):
    """The local engine, with a record of what every device answers.

    Attributes
    ----------
    left : list of Left
        Every reply, in the order in which they left.
    """

    def __init__(self, client_app: ClientApp, devices: int, run_dir: Path) -> None:
        super().__init__(client_app, devices, run_config_of(run_dir))
        self.left: list[Left] = []

    def _answer(self, request: Message, node: int) -> Message:
        reply = super()._answer(request, node)
        kind: Kind = "answer"
        if reply.has_error():
            own = (reply.error.code, reply.error.reason) in REASONS.items()
            kind = "refusal" if own else "error"
        request_type = request.metadata.message_type
        self.left.append(Left(node - 1, request_type, kind, message_to_bytes(reply)))
        return reply


class Records(logging.Handler):
    """Keeps what is logged, with the texts of exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.lines.append(self.format(record))


@contextmanager
def logs_kept() -> Iterator[Records]:
    """Keep what is logged in a block, by whatever logger that lets it out."""
    records = Records()
    # Flower's logger does not pass on to the root.
    loggers = (logging.getLogger(), logging.getLogger("flwr"))
    for logger in loggers:
        logger.addHandler(records)
    try:
        yield records
    finally:
        for logger in loggers:
            logger.removeHandler(records)


def server_files(run_dir: Path) -> list[bytes]:
    """Return the name and the content of every file on the server's side of a run."""
    found = []
    for path in sorted(run_dir.rglob("*")):
        inside = path.relative_to(run_dir)
        if path.is_file() and inside.parts[0] not in DEVICE_SIDE:
            found.append(str(inside).encode("utf-8", "surrogateescape") + b"\n" + path.read_bytes())
    return found
