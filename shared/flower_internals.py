"""The only private parts of Flower that Mesofed uses; nothing else imports from them.

Flower gives a message its identity in private places, and its wire format has no public door.
``tests/shared/test_flower_internals.py`` fails loudly when an upgrade moves one of them.
"""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.common.serde_utils import error_to_proto, metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.logger import update_console_handler
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared.errors import MesofedError

FLOWER_FAMILY = "1.41"
"""The version family that these hooks were checked against."""

__all__ = [
    "FLOWER_FAMILY",
    "Run",
    "become_server",
    "content_bytes",
    "content_from_bytes",
    "content_to_bytes",
    "deliver",
    "empty_run",
    "error_of_exception",
    "message_from_bytes",
    "message_to_bytes",
    "name_message",
    "numbered_nodes",
    "over_the_wire",
    "plain_errors",
    "quiet_flower",
]


def become_server(run_id: int) -> None:
    """Give this process the identity of a ServerApp, without which it may not create messages."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def empty_run(run_id: int) -> Run:
    """Return the description of a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def name_message(message: Message, message_id: str) -> None:
    """Write the message's id, as a SuperLink does when it takes a message."""
    message.metadata.__dict__["_message_id"] = message_id


def content_to_bytes(content: RecordDict) -> bytes:
    """Return records as they cross the wire."""
    return bytes(_to_proto(content).SerializeToString())


def content_from_bytes(data: bytes) -> RecordDict:
    """Return the records that crossed the wire."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def deliver(message: Message, content: RecordDict) -> Message:
    """Return the message as it arrives: its metadata crossed the wire, its content is given."""
    return make_message(metadata_from_proto(metadata_to_proto(message.metadata)), content)


def over_the_wire(message: Message) -> Message:
    """Return the message as it arrives after serialisation, metadata and all."""
    return message_from_bytes(message_to_bytes(message))


def message_to_bytes(message: Message) -> bytes:
    """Return a message as it crosses the wire, metadata and all."""
    return bytes(message_to_proto(message).SerializeToString())


def message_from_bytes(data: bytes) -> Message:
    """Return the message that crossed the wire."""
    return message_from_proto(ProtoMessage.FromString(data))


def content_bytes(message: Message) -> int:
    """Return the serialised size of what a message carries: its records, or its error."""
    if message.has_error():
        return int(error_to_proto(message.error).ByteSize())
    return int(_to_proto(message.content).ByteSize())


def _to_proto(content: RecordDict) -> ProtoRecordDict:
    """Return records as Flower's own serialisation does, which copies arrays five times."""
    hollow = RecordDict()
    for name, record in content.items():
        hollow[name] = (
            ArrayRecord(
                {k: Array(a.dtype, tuple(a.shape), a.stype, b"") for k, a in record.items()}
            )
            if isinstance(record, ArrayRecord)
            else record
        )
    proto = recorddict_to_proto(hollow)
    for item in proto.items:
        for array in item.array_record.items:
            array.value.data = content.array_records[item.key][array.key].data
    return proto


def error_of_exception(error: BaseException) -> Error:
    """Return what Flower tells the server when a ClientApp raises: the exception's own text."""
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>")


class _PlainErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Say of a MesofedError what it says itself, without Flower's traceback."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, MesofedError):
            record.msg, record.args, record.exc_info = "%s", (str(error),), None
        return True


_PLAIN_ERRORS = _PlainErrors()


def plain_errors() -> None:
    """Let Flower's log tell of an error that the user can mend by its text alone, from now on.

    Flower logs what a ServerApp raises with its traceback; the run fails all the same.
    """
    logging.getLogger("flwr").addFilter(_PLAIN_ERRORS)


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's own lines off the console while a progress display is up."""
    update_console_handler(level=logging.CRITICAL)
    try:
        yield
    finally:
        update_console_handler(level=logging.INFO)


@contextmanager
def numbered_nodes() -> Iterator[None]:
    """Let Flower's simulation give partition i the node id i + 2, and not one at random.

    A run that is resumed has to find its devices under the numbers that it knows them by. 1 is the
    SuperLink's.
    """
    from flwr.server.superlink.linkstate import in_memory_linkstate

    module: Any = in_memory_linkstate
    draw, numbers = module.generate_rand_int_from_bytes, itertools.count(SUPERLINK_NODE_ID + 1)
    module.generate_rand_int_from_bytes = lambda *_, **__: next(numbers)
    try:
        yield
    finally:
        module.generate_rand_int_from_bytes = draw
