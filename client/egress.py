"""The egress guard: the outermost mod, and the only door out of a device.

It builds every answer afresh from values that the protocol allows for that request, so neither
records nor metadata that a handler made can leave. Whatever else happens (an unknown request, an
exception, an error reply, a return value that is no message) leaves as a number and its fixed
text. What really happened goes to a log file beside the vault, which stays on the device.
"""

import os
import traceback
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable

from shared.protocol import (
    REASONS,
    Refusal,
    ReplyError,
    read_round,
    refusal_of,
)
from shared.run_settings import vault_folder
from shared.wire import canonical_reply


def egress_guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Pass a request on and let only what the protocol allows come back; never raises.

    A Flower mod: put it first, so that it is the outermost.
    """
    try:
        release = read_round(message.content)
        reply = call_next(message, context)
        return _allowed(reply, message, release)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt carry texts too, and Flower would send them on.
        _log(context, message, error)
        return refuse(message, refusal_of(error))


def refuse(message: Message, refusal: Refusal) -> Message:
    """Return the answer that says no, with its fixed text."""
    return Message(Error(int(refusal), REASONS[refusal]), reply_to=message)


def error_log(context: Context) -> Path:
    """Return the log of what went wrong here; it lies beside the agent's socket or the vault."""
    agent = context.node_config.get("agent")
    place = Path(str(agent)).expanduser() if agent else vault_folder(context)
    return log_beside(place)


def log_beside(place: Path) -> Path:
    """Return the log of what goes wrong beside a socket, or beside the vault of a simulation."""
    return place.with_name(f"{place.name}.errors.log")


def _allowed(reply: object, message: Message, release: int) -> Message:
    """Return a new message that carries the allowed values of ``reply`` and nothing else."""
    if not isinstance(reply, Message) or reply.has_error():
        raise ReplyError(f"Expected an answer with content from the handler; got {reply!r}.")
    content = canonical_reply(message.metadata.message_type, reply.content, release)
    return Message(content, reply_to=message)


def _log(context: Context, message: Message, error: BaseException) -> None:
    """Append one error to the device's log; a log that cannot be written changes nothing."""
    try:
        path = error_log(context)
        path.parent.mkdir(parents=True, exist_ok=True)
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        text = "".join(traceback.format_exception(error))
        entry = f"{moment} {message.metadata.message_type}\n{text}\n"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, entry.encode("utf-8", "backslashreplace"))
        finally:
            os.close(handle)
    except Exception:
        return
