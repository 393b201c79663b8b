"""The boundary of a device: the requests that it answers, and the record of every answer.

    request -> read by the protocol -> device -> built afresh by the protocol -> journal -> answer

Whoever asks, the device agent's socket or a simulation in the same process, asks through
:func:`answer`. An answer is in the journal before it leaves, together with what it costs of the
privacy budget. The same question gets the same bytes, however often it is asked: that costs nothing
more, and is counted. A release's statistics leave once, so another question about them is refused.
"""

import base64
import threading
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from flwr.app import RecordDict

from client import secure_sum
from client.device import Device
from client.ledger import charge
from client.noised_statistics import local_vector
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.privacy import LedgerEntry
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    REASONS,
    ROUTER_STATISTICS,
    NoisedStatistics,
    ProtocolError,
    Refusal,
    noised_to_content,
    read_noised_request,
    read_round,
    read_statistics_request,
    release_from_content,
    statistics_to_content,
)
from shared.secure_aggregation.messages import UNMASK, read_request, reply_content
from shared.wire import BY_TYPE, canonical_reply

# One answer at a time: of two questions at once, both might find the budget unspent.
_answering = threading.Lock()


def answer(device: Device, message_type: str, content: RecordDict) -> RecordDict:
    """Answer a request of a server app, or of a program that may be one.

    Returns
    -------
    RecordDict
        What may leave the device; it is in the journal.

    Raises
    ------
    ProtocolError
        If the request is not one that the protocol declares, names another release, is none that
        the device's privacy mode answers, or costs more than its budget has.
    MesofedError
        If the device refuses the request, cannot answer, or cannot write its journal.
    """
    form = BY_TYPE.get(message_type)
    if form is None:
        raise ProtocolError(REASONS[Refusal.UNKNOWN_REQUEST], Refusal.UNKNOWN_REQUEST)
    read_round(content)  # another version is told so, whatever else it asks
    if device.privacy.mode not in form.modes:
        raise ProtocolError(REASONS[Refusal.OTHER_PRIVACY], Refusal.OTHER_PRIVACY)
    if message_type == INSTALL_RELEASE:
        with _answering:  # no answer about one release while another takes its place
            # Read in here: of devices that wait in one process, none holds files of its own.
            release, files = release_from_content(content)
            if device.install(files) != release:
                raise ProtocolError(REASONS[Refusal.OTHER_RELEASE], Refusal.OTHER_RELEASE)
            # A server that resumes a round brings its release again, and goes on with its sum.
            device.vault.end_sessions(but=release)
            return _let_out(device, message_type, release, "", RecordDict(), None)
    if len(content_to_bytes(content)) > form.down_bytes:
        raise ProtocolError(REASONS[Refusal.MALFORMED_REQUEST])
    with _answering:
        release, request = _read(message_type, content)
        question = sha256(repr(request).encode()).hexdigest()
        reply, cost = _sent(device, message_type, release, question), None
        if reply is None:
            if device.vault.installed() != release:
                raise ProtocolError(REASONS[Refusal.OTHER_RELEASE], Refusal.OTHER_RELEASE)
            reply, cost = _made(device, message_type, release, request)
        allowed = _let_out(device, message_type, release, question, reply, cost)
        if message_type == UNMASK:
            device.vault.end_sessions()
    return allowed


def _read(message_type: str, content: RecordDict) -> tuple[int, Any]:
    """Return the release and what is asked about it, in a form of its own."""
    if message_type == ROUTER_STATISTICS:
        return read_statistics_request(content), None
    if message_type == NOISED_STATISTICS:
        return read_noised_request(content)
    session, body = read_request(message_type, content)
    return session.release, (session, body)


def _made(
    device: Device, message_type: str, release: int, request: Any
) -> tuple[RecordDict, LedgerEntry | None]:
    """Return a new answer, and what it costs."""
    cost: LedgerEntry | None
    if message_type == ROUTER_STATISTICS:
        return statistics_to_content(device.statistics()), None
    if message_type == NOISED_STATISTICS:
        cost = charge(device, release, "local", request)
        vector = local_vector(device.statistics(), request, device.randomness(release))
        return noised_to_content(NoisedStatistics(release, tuple(vector))), cost
    body, cost = secure_sum.STAGES[message_type](device, *request)
    return reply_content(body), cost


def _let_out(
    device: Device,
    message_type: str,
    release: int,
    question: str,
    reply: RecordDict,
    cost: LedgerEntry | None,
) -> RecordDict:
    """Build an answer afresh and write it, and its cost, to the journal."""
    allowed = canonical_reply(message_type, reply, release)
    data = content_to_bytes(allowed)
    if len(data) > BY_TYPE[message_type].up_bytes:
        raise ProtocolError(REASONS[Refusal.REPLY_BLOCKED], Refusal.REPLY_BLOCKED)
    entry: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": message_type,
        "release": release,
        "question": question,
        "content": base64.b64encode(data).decode(),
    }
    if cost is not None:
        entry["ledger"] = cost.to_json()
    device.vault.sent.add(entry)
    return allowed


def _sent(device: Device, message_type: str, release: int, question: str) -> RecordDict | None:
    """Return what was answered to the very same question before, or None."""
    entry = device.vault.sent.find((message_type, release, question))
    return None if entry is None else content_from_bytes(base64.b64decode(entry["content"]))
