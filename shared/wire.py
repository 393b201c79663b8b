"""The table of every message between server and device; nothing else crosses the wire.

From this table come the allow-list of what may leave a device, the most bytes that a message may
have, and the page ``docs/wire.md``: ``python -m shared.wire > docs/wire.md``.
"""

from dataclasses import dataclass

from flwr.app import RecordDict

from shared.protocol import (
    INSTALL_RELEASE,
    MAX_FILES,
    MAX_RELEASE_BYTES,
    NOISE_FORM,
    NOISED_FORM,
    NOISED_STATISTICS,
    PROTOCOL,
    REASONS,
    RELEASE_FORM,
    ROUND_FORM,
    ROUTER_STATISTICS,
    STATISTICS_FORM,
    ProtocolError,
    Refusal,
    acknowledgement_from_content,
    noised_from_content,
    noised_to_content,
    statistics_from_content,
    statistics_to_content,
)
from shared.record_form import Files, RecordForm
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    REPLIES,
    SHARES,
    UNMASK,
    read_reply,
    reply_content,
    request_forms,
)

INTRODUCTION = """\
Protocol {protocol}. This page is made from the table in `shared/wire.py`, by `python -m
shared.wire`, and a test holds it current. Nothing but these messages passes between a server and a
device. A device builds every answer afresh from the values below; whatever is of another name,
type, length or bound does not leave it. What goes wrong leaves as one of the numbers at the end,
with its fixed text. The device's journal has every answer, byte for byte; a refusal is one of
those few fixed texts, and is not in it.

*Bytes* are those of a message's records as Flower serialises them. Places, keys and shares are
packed one after the other into one field."""
ERROR_BYTES = 200
"""The most bytes of a refusal: a number and its fixed text."""


@dataclass(frozen=True)
class MessageForm:
    """One question and its answer.

    Attributes
    ----------
    type : str
        Flower's message type.
    modes : str
        Privacy modes in which a device answers.
    meaning : str
    down, up : tuple of RecordForm
        Records of the question and of the answer.
    down_bytes, up_bytes : int
        The most bytes of their content as Flower serialises it.
    """

    type: str
    modes: tuple[str, ...]
    meaning: str
    down: tuple[RecordForm, ...]
    up: tuple[RecordForm, ...]
    down_bytes: int
    up_bytes: int


ALL = ("off", "local", "central")

MESSAGES: tuple[MessageForm, ...] = (
    MessageForm(
        INSTALL_RELEASE,
        ALL,
        "Install a release. The device verifies it and answers nothing.",
        (ROUND_FORM, RELEASE_FORM),
        (),
        MAX_RELEASE_BYTES + MAX_FILES * 400,
        0,
    ),
    MessageForm(
        ROUTER_STATISTICS,
        ("off",),
        "Say how the router uses the installed release, without noise.",
        (ROUND_FORM,),
        (STATISTICS_FORM,),
        200,
        1_200,
    ),
    MessageForm(
        NOISED_STATISTICS,
        ("local",),
        "Say the same with noise that this device adds.",
        (ROUND_FORM, NOISE_FORM),
        (NOISED_FORM,),
        300,
        1_000,
    ),
    MessageForm(
        KEYS,
        ("central",),
        "Join a secure sum: make keys for it.",
        request_forms(KEYS),
        (REPLIES[KEYS].FORM,),
        400,
        300,
    ),
    MessageForm(
        SHARES,
        ("central",),
        "Cut this device's secrets for the sum into shares for its neighbours.",
        request_forms(SHARES),
        (REPLIES[SHARES].FORM,),
        8_000,
        16_000,
    ),
    MessageForm(
        MASKED,
        ("central",),
        "Send the noised statistics under masks that only the sum of all is free of.",
        request_forms(MASKED),
        (REPLIES[MASKED].FORM,),
        10_000,
        1_000,
    ),
    MessageForm(
        UNMASK,
        ("central",),
        "Open one share of each neighbour, so that the masks of the sum can be taken off.",
        request_forms(UNMASK),
        (REPLIES[UNMASK].FORM,),
        1_500,
        4_000,
    ),
)
BY_TYPE = {message.type: message for message in MESSAGES}


def canonical_reply(message_type: str, content: RecordDict, release: int) -> RecordDict:
    """Build afresh what a device may answer to a request; the allow-list of the egress guard.

    Parameters
    ----------
    message_type : str
        Type of the request.
    content : RecordDict
        What the device wants to answer.
    release : int
        The release that the request is about.

    Raises
    ------
    ProtocolError
        If the answer is anything else than declared for this type.
    """
    if message_type not in BY_TYPE:
        raise ProtocolError(REASONS[Refusal.UNKNOWN_REQUEST], Refusal.UNKNOWN_REQUEST)
    if message_type == INSTALL_RELEASE:
        acknowledgement_from_content(content)
        return RecordDict()
    if message_type in REPLIES:
        return reply_content(read_reply(message_type, content))
    if message_type == ROUTER_STATISTICS:
        statistics = statistics_from_content(content)
        named, reply = statistics.release, statistics_to_content(statistics)
    else:
        noised = noised_from_content(content)
        named, reply = noised.release, noised_to_content(noised)
    if named != release:
        raise ProtocolError(REASONS[Refusal.OTHER_RELEASE], Refusal.OTHER_RELEASE)
    return reply


def wire_page() -> str:
    """Return the page that tells people what crosses the wire, in Markdown."""
    lines = ["# What crosses the wire", "", INTRODUCTION.format(protocol=PROTOCOL)]
    for message in MESSAGES:
        modes = "in every privacy mode" if message.modes == ALL else f"in mode {message.modes[0]}"
        lines += ["", f"## {message.type}", "", f"{message.meaning} Answered {modes}."]
        for title, forms, most in (
            ("Server to device", message.down, message.down_bytes),
            ("Device to server", message.up, message.up_bytes),
        ):
            if not forms:
                lines += ["", f"{title}: no record at all."]
                continue
            lines += [
                "",
                f"{title}, at most {most:,} bytes:",
                "",
                "| record | field | form | meaning |",
                "| --- | --- | --- | --- |",
            ]
            lines += [row for form in forms for row in _rows(form)]
    lines += ["", "## Refusals", "", f"At most {ERROR_BYTES} bytes: a number and its text.", ""]
    lines += ["| number | text |", "| --- | --- |"]
    lines += [f"| {int(refusal)} | {REASONS[refusal]} |" for refusal in Refusal]
    return "\n".join(lines) + "\n"


def _rows(form: RecordForm) -> list[str]:
    record = f"`{form.name}` ({form.kind})"
    if isinstance(form.fields, Files):
        name = form.fields.name.pattern.replace("|", "\\|")
        return [f"| {record} | `{name}` | {form.fields.form} | {form.fields.meaning} |"]
    return [f"| {record} | `{f.name}` | {f.form} | {f.meaning} |" for f in form.fields]


if __name__ == "__main__":
    print(wire_page(), end="")
