"""The local engine: Flower's Grid inside one process, with the same ClientApp on every device.

One process, one resident base model, all devices in it, no sockets. Every message still passes
through Flower's wire format, so what cannot cross a network cannot cross here either.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from shared.flower_internals import (
    Run,
    become_server,
    content_from_bytes,
    content_to_bytes,
    deliver,
    empty_run,
    error_of_exception,
    name_message,
    over_the_wire,
    quiet_flower,
)

RUN_ID = 1


class LocalGrid(Grid):
    """Devices 1 to ``devices`` of one process; device i is partition i - 1.

    Messages wait in line for ``concurrency`` daemon threads, so memory does not grow with the
    devices, and a device that hangs does not hold up the end of the process. A device works on
    one message at a time, as a SuperNode does. When no device begins or ends for
    ``patience_seconds``, the one that has been at work longest is taken to hang: another thread
    goes on in its stead, until it comes back after all.

    While others move, a device that hangs just keeps its turn: how long it has been at work does
    not tell it from one that trains in company, and one computing thread does the others' work,
    whether all turns are free for it or all but one. When every turn hangs, nothing moves for
    ``patience_seconds`` until one more device works; each further one that hangs costs as much
    again, up to the server's deadline.

    Parameters
    ----------
    client_app : ClientApp
    devices : int
    run_config : dict, optional
        What each device finds in ``context.run_config``.
    concurrency : int
    patience_seconds : float
    """

    def __init__(
        self,
        client_app: ClientApp,
        devices: int,
        run_config: UserConfig | None = None,
        *,
        concurrency: int = 64,
        patience_seconds: float = 60.0,
    ) -> None:
        become_server(RUN_ID)
        self._app = client_app
        self._run = empty_run(RUN_ID)
        self._contexts = {
            node: Context(
                run_id=RUN_ID,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": devices},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node in range(1, devices + 1)
        }
        self._concurrency = concurrency
        self._patience = patience_seconds
        # Holding it goes with every use of what follows, down to the replies.
        self._arrived = threading.Condition()
        self._waiting: deque[tuple[Message, int]] = deque()
        self._hangs: dict[int, bool] = {}  # of the devices at work, the longest first
        self._threads = 0
        self._moved = time.monotonic()
        self._replies: list[Message] = []
        self._messages = 0
        self._last: tuple[object, RecordDict] = (None, RecordDict())

    def set_run(self, run: Run) -> None:
        """Set the run that ``run`` describes."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run, which no SuperLink knows."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; Flower has deprecated this in favour of ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the node ids, ascending."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Start each message on its device; return the ids of those that have a device."""
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._contexts:
                continue
            self._messages += 1
            message_id = f"m{self._messages}"
            name_message(message, message_id)
            request = deliver(message, self._content_over_the_wire(message.content))
            with self._arrived:
                self._waiting.append((request, node))
                self._hire()
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come to these messages, each reply once."""
        wanted = set(message_ids)
        with self._arrived:
            self._mind_the_hanging()
            found = [r for r in self._replies if r.metadata.reply_to_message_id in wanted]
            self._replies = [
                r for r in self._replies if r.metadata.reply_to_message_id not in wanted
            ]
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        with self._arrived:
            while waiting:
                replies += (found := self.pull_messages(waiting))
                waiting -= {reply.metadata.reply_to_message_id for reply in found}
                left = None if deadline is None else deadline - time.monotonic()
                if not waiting or (left is not None and left <= 0):
                    break
                self._arrived.wait(self._patience if left is None else min(left, self._patience))
        return replies

    def _content_over_the_wire(self, content: RecordDict) -> RecordDict:
        """Serialise and parse content; equal content in a row passes once and is shared."""
        fingerprint = _fingerprint(content)
        if fingerprint != self._last[0]:
            self._last = fingerprint, content_from_bytes(content_to_bytes(content))
        return _copy(self._last[1])

    def _hire(self) -> None:
        """Start a thread if one more may work."""
        if self._threads < self._concurrency + sum(self._hangs.values()):
            self._threads += 1
            threading.Thread(target=self._work, name="devices", daemon=True).start()

    def _mind_the_hanging(self) -> None:
        """Let another thread work if nothing has moved for too long."""
        if self._waiting and time.monotonic() - self._moved > self._patience:
            self._moved = time.monotonic()
            slowest = next((node for node, hangs in self._hangs.items() if not hangs), None)
            if slowest is not None:
                self._hangs[slowest] = True
                self._hire()

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            request, node = turn
            reply = self._answer(request, node)
            name_message(reply, f"{request.metadata.message_id}-reply")
            with self._arrived:
                del self._hangs[node]
                self._moved = time.monotonic()
                self._replies.append(reply)
                self._arrived.notify_all()

    def _next(self) -> tuple[Message, int] | None:
        """Return the first message that waits for a device at rest; None ends the thread."""
        with self._arrived:
            if self._threads <= self._concurrency + sum(self._hangs.values()):
                for place, (request, node) in enumerate(self._waiting):
                    if node not in self._hangs:
                        del self._waiting[place]
                        self._hangs[node] = False
                        self._moved = time.monotonic()
                        return request, node
            self._threads -= 1
            return None

    def _answer(self, request: Message, node: int) -> Message:
        """Call the app and serialise its reply; failures become errors as Flower's engines do."""
        try:
            return over_the_wire(self._app(request, self._contexts[node]))
        except BaseException as error:
            return Message(error_of_exception(error), reply_to=request)


def _fingerprint(content: RecordDict) -> object:
    """Return what only equal content has: arrays by their bytes, which are not copied."""
    arrays = [
        (name, [(key, a.dtype, tuple(a.shape), a.stype, a.data) for key, a in record.items()])
        for name, record in content.items()
        if isinstance(record, ArrayRecord)
    ]
    others = RecordDict()
    for name, record in content.items():
        if not isinstance(record, ArrayRecord):
            others[name] = record
    return list(content), arrays, content_to_bytes(others)


def _copy(content: RecordDict) -> RecordDict:
    """Copy records so that no device sees another's changes; bytes never change, so share them."""
    copied = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copied[name] = ArrayRecord(
                {key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()}
            )
        elif isinstance(record, MetricRecord):
            copied[name] = MetricRecord(dict(record))
        else:
            copied[name] = ConfigRecord(dict(record))
    return copied


def run_local(server_app: ServerApp, client_app: ClientApp, run_dir: Path, devices: int) -> None:
    """Run a ServerApp and a ClientApp on the local engine.

    Parameters
    ----------
    run_dir : Path
        The run's folder; its ``config.toml`` is the run's configuration.
    devices : int
        Number of devices.

    Raises
    ------
    MesofedError
        If the ServerApp raises it.
    """
    run_on(LocalGrid(client_app, devices, run_config_of(run_dir)), server_app, run_dir)


def run_on(grid: Grid, server_app: ServerApp, run_dir: Path) -> None:
    """Run a ServerApp on a grid that has its devices already; see :func:`run_local`."""
    context = Context(
        run_id=RUN_ID,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config=run_config_of(run_dir),
    )
    with quiet_flower():
        server_app(grid, context)


def run_config_of(run_dir: Path) -> UserConfig:
    """Return what apps find in ``context.run_config``: where the run's folder is."""
    return {"run-dir": str(run_dir.absolute()), "config": ""}
