"""The boundary of a device: the requests that it answers, and the record of every answer.

    request -> read by the protocol -> device -> built afresh by the protocol -> journal -> answer

Whoever asks, the device agent's socket or a simulation in the same process, asks through
:func:`answer`. An answer is in the journal before it leaves, and the statistics of a release leave
as the same bytes however often they are asked for.
"""

import base64
from datetime import UTC, datetime

from flwr.app import RecordDict

from client.device import Device
from client.journal import Journal
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    REASONS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    canonical_reply,
    read_statistics_request,
    release_from_content,
    statistics_to_content,
)


def answer(device: Device, message_type: str, content: RecordDict) -> RecordDict:
    """Answer a request of a server app, or of a program that may be one.

    Returns
    -------
    RecordDict
        What may leave the device; it is in the journal.

    Raises
    ------
    ProtocolError
        If the request is not one that the protocol declares, or names another release.
    MesofedError
        If the device refuses the release, cannot answer, or cannot write its journal.
    """
    journal = device.vault.journal
    if message_type == INSTALL_RELEASE:
        release, files = release_from_content(content)
        if device.install(files) != release:
            raise ProtocolError(REASONS[Refusal.OTHER_RELEASE], Refusal.OTHER_RELEASE)
        reply = RecordDict()
    elif message_type == ROUTER_STATISTICS:
        release = read_statistics_request(content)
        before = _sent(journal, message_type, release)
        reply = before if before is not None else statistics_to_content(device.statistics())
    else:
        raise ProtocolError(REASONS[Refusal.UNKNOWN_REQUEST], Refusal.UNKNOWN_REQUEST)
    allowed = canonical_reply(message_type, reply, release)
    journal.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": message_type,
            "release": release,
            "content": base64.b64encode(content_to_bytes(allowed)).decode(),
        }
    )
    return allowed


def _sent(journal: Journal, message_type: str, release: int) -> RecordDict | None:
    """Return what was answered to a request before, or None."""
    for entry in journal.entries():
        if (entry["request"], entry["release"]) == (message_type, release):
            return content_from_bytes(base64.b64decode(entry["content"]))
    return None
