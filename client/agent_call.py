"""Calling the device agent: one request a connection, over a Unix socket.

    call     length (4 bytes) | {"request": type, "bytes": n} | n bytes of records
    answer   length (4 bytes) | {"code": 0, "bytes": n}       | n bytes of records
             length (4 bytes) | {"code": refusal, "bytes": 0}

This is all that a Flower process on a device knows of it: it loads no model, and it knows neither
the vault's place nor its key.
"""

import json
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from shared.errors import MesofedError
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.program import command
from shared.protocol import MAX_RELEASE_BYTES, REASONS, ProtocolError, Refusal

LENGTH = struct.Struct(">I")
MAX_HEADER = 1024
MAX_CONTENT = MAX_RELEASE_BYTES + (1 << 20)
"""Bytes of records: a release, and room for its names."""
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Frame:
    """What one side says: a small header and the bytes of records."""

    header: dict[str, object]
    content: bytes


class FrameError(MesofedError):
    """Something that is no frame, or too large a one."""


class CutShortError(FrameError):
    """A frame whose sender has gone before its end."""


def ask_agent(path: Path, message_type: str, content: RecordDict) -> RecordDict:
    """Ask the agent behind a socket; return what it lets out.

    Raises
    ------
    ProtocolError
        If the agent refuses, with the refusal that it names, or if it cannot be reached or goes
        before it has answered.
    FrameError
        If what comes back is no frame, or names no known refusal.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.connect(str(path))
            send_frame(connection, {"request": message_type}, content_to_bytes(content))
            reply = receive_frame(connection)
        except (OSError, CutShortError) as error:  # not there, or gone before it has answered
            away = ProtocolError(REASONS[Refusal.NO_AGENT], Refusal.NO_AGENT)
            told = getattr(error, "strerror", None) or error
            away.add_note(  # for the device's own log
                f"Expected a device agent at {path}; {told}. Start it with "
                f"`{command('device', 'start')}`."
            )
            raise away from error
    code = reply.header.get("code")
    if code == 0:
        return content_from_bytes(reply.content)
    for refusal, reason in REASONS.items():
        if code == int(refusal):
            raise ProtocolError(reason, refusal)
    raise FrameError("Expected an answer of the device agent; got something else.")


def send_frame(connection: socket.socket, header: dict[str, object], content: bytes = b"") -> None:
    """Send a frame."""
    data = json.dumps({**header, "bytes": len(content)}).encode()
    connection.sendall(LENGTH.pack(len(data)) + data)
    connection.sendall(content)


def receive_frame(connection: socket.socket, seconds: float = PATIENCE_SECONDS) -> Frame:
    """Receive a frame; nothing is kept of one that is too large.

    Parameters
    ----------
    seconds : float
        For the whole of it, however small the pieces that it comes in.

    Raises
    ------
    FrameError
        If what comes is no frame, is too large, or ends early.
    TimeoutError
        If it takes too long.
    """
    end = time.monotonic() + seconds
    (length,) = LENGTH.unpack(_receive(connection, LENGTH.size, end))
    if length > MAX_HEADER:
        raise FrameError("a frame has too long a header")
    try:
        header = json.loads(_receive(connection, length, end))
    except (ValueError, RecursionError) as error:
        raise FrameError("the header of a frame is no JSON") from error
    size = header.get("bytes") if isinstance(header, dict) else None
    if type(size) is not int or not 0 <= size <= MAX_CONTENT:
        raise FrameError("the header of a frame names no possible size")
    return Frame(header, _receive(connection, size, end))


def _receive(connection: socket.socket, size: int, end: float) -> bytes:
    # Grows with what really comes, so that a large promise costs nothing.
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(end - time.monotonic(), 1e-3))
        piece = connection.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise CutShortError("a frame ended early")
        data += piece
    return bytes(data)
