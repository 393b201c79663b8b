"""The device agent: a resident process that owns the vault, the base model and all that is private.

    SuperNode -> flwr-clientapp (a new process a message) -> socket -> agent -> vault, base model

The ClientApp in the short-lived process is code that a server ships. It can ask the agent what the
protocol declares, and nothing else: there is no request that returns a text, a history or a
LoRA. The agent acknowledges a release as soon as it is verified and stored, and trains afterwards,
so that the time of an answer tells nothing about the person.
"""

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import RecordDict

from client.agent_call import FrameError, receive_frame, send_frame
from client.agent_errors import log_error
from client.boundary import answer
from client.device import Device
from client.soundness import damages
from client.traces import is_left, remember_socket
from client.vault import Vault
from shared.errors import MesofedError
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    read_round,
    refusal_of,
)
from shared.secure_aggregation.messages import MASKED

CONNECTIONS = 4
"""Served at once: each may hold a release in memory."""
READ_SECONDS = 30.0
"""For a whole call to arrive; so nobody can hold a turn for ever."""
_GLANCE_SECONDS = 0.25
_LINES = {
    INSTALL_RELEASE: "Installed release {release}, signed with {key}",
    ROUTER_STATISTICS: "Sent the statistics of release {release}",
    NOISED_STATISTICS: "Sent the statistics of release {release}, with noise",
    MASKED: "Sent the statistics of release {release}, with noise and under masks",
}
"""What the agent says of its answers."""
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@dataclass
class Agent:
    """A device behind a socket.

    Attributes
    ----------
    device : Device
    path : Path
        The socket; its folder has to be there.
    users : frozenset of int
        User ids that may ask, this process's own among them.
    say : callable
        Takes a line for whoever runs the agent; nothing private is in it.
    """

    device: Device
    path: Path
    users: frozenset[int] = field(default_factory=lambda: frozenset({os.getuid()}))
    say: Callable[[str], None] = lambda text: None
    _told: set[tuple[str, int]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _work: threading.Event = field(default_factory=threading.Event)
    _turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(CONNECTIONS))

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer until :meth:`stop`; call it from the main thread or any other.

        Raises
        ------
        MesofedError
            If another agent has the vault, the socket cannot be made, or something in the vault
            is damaged without which the device must not answer.
        """
        with owned(self.device.vault), self._listening() as listener:
            self._check_vault()
            remember_socket(self.device.vault.folder, self.path)
            self.device.prepare()
            threading.Thread(target=self._personalise, name="personalise", daemon=True).start()
            self._work.set()  # what a release before a restart has left undone
            ready()
            while not self._stopped.is_set():
                if not self._turns.acquire(timeout=_GLANCE_SECONDS):
                    continue
                try:
                    connection, _ = listener.accept()
                except OSError:  # stopped, or a time-out to look whether it is
                    self._turns.release()
                    continue
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def stop(self) -> None:
        """End :meth:`serve` within half a second."""
        self._stopped.set()
        self._work.set()

    def _check_vault(self) -> None:
        """Refuse to serve without what an answer rests on; say what else is damaged."""
        found = damages(self.device.vault)
        stopping = [damage.text for damage in found if damage.stops]
        if stopping:
            raise MesofedError("\n".join(stopping))
        for damage in found:
            self.say(f"Damaged: {damage.text}")

    @contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if is_left(self.path):  # nothing else is ours to take away
                self.path.unlink()
            # Owner-only from the first moment on; others are let in by name, and then checked.
            before = os.umask(0o177)
            try:
                listener.bind(str(self.path))
            finally:
                os.umask(before)
            if self.users != {os.getuid()}:
                self.path.chmod(0o666)
            listener.listen(CONNECTIONS)
            listener.settimeout(_GLANCE_SECONDS)
        except OSError as error:
            listener.close()
            raise MesofedError(
                f"Cannot listen at {self.path}: {error.strerror or error}. Name another place with "
                "--socket: a folder that is there and yours, and fewer than 100 characters."
            ) from error
        try:
            yield listener
        finally:
            listener.close()
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one call; whatever goes wrong ends as a number."""
        try:
            with connection:
                connection.settimeout(READ_SECONDS)
                if peer_user(connection) not in self.users:
                    send_frame(connection, {"code": int(Refusal.REQUEST_REFUSED)})
                    return
                header, content = self._answered(connection)
                connection.settimeout(READ_SECONDS)
                send_frame(connection, header, content)
        except OSError:
            return  # whoever asked has gone
        finally:
            self._turns.release()

    def _answered(self, connection: socket.socket) -> tuple[dict[str, object], bytes]:
        try:
            frame = receive_frame(connection, READ_SECONDS)
            request = frame.header.get("request")
            if set(frame.header) != {"request", "bytes"} or not isinstance(request, str):
                raise FrameError("a call does not have the form that the agent knows")
        except FrameError as error:
            log_error(self.device.vault, "unknown", error)
            return {"code": int(Refusal.MALFORMED_REQUEST)}, b""
        try:
            content = _records(frame.content)
            reply = answer(self.device, request, content)
        except BaseException as error:
            log_error(self.device.vault, request[:100], error)
            return {"code": int(refusal_of(error))}, b""
        if request == INSTALL_RELEASE:
            self._work.set()
        # A line that cannot be written holds up no answer.
        with contextlib.suppress(Exception, SystemExit):
            self._tell(request, read_round(content))
        return {"code": 0}, content_to_bytes(reply)

    def _tell(self, request: str, release: int) -> None:
        """Say once what an answer was; nobody fills a log by asking again."""
        if request not in _LINES or (request, release) in self._told:
            return
        self._told.add((request, release))
        # The server's key may have changed with this release.
        self.say(_LINES[request].format(release=release, key=self.device.vault.trusted()))

    def _personalise(self) -> None:
        """Train for the installed release whenever there is a new one."""
        while not self._stopped.is_set():
            self._work.wait()
            self._work.clear()
            try:
                if not self._stopped.is_set() and self.device.vault.installed() is not None:
                    self.device.personalise()
            except Exception as error:
                log_error(self.device.vault, "personalise", error)


def _records(data: bytes) -> RecordDict:
    try:
        return content_from_bytes(data)
    except Exception as error:  # Flower's parser, on bytes that may be anything
        raise ProtocolError("the request is not in Flower's format") from error


@contextmanager
def owned(vault: Vault) -> Iterator[None]:
    """Own a vault for the length of a block.

    Raises
    ------
    MesofedError
        If another process owns it.
    """
    file = os.open(vault.folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MesofedError(
                f"Expected {vault.folder} to be free; another process has it, its agent most "
                "likely. Stop that one first, with Ctrl-C where it runs."
            ) from error
        yield
    finally:
        os.close(file)


def peer_user(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel knows it.

    Only Linux tells; elsewhere the rights of the socket and of its folder decide alone.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])
