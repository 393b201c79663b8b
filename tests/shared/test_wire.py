"""The table of messages: what is declared comes through, and what contradicts it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from shared import protocol
from shared.config import MAX_ANCHORS, MAX_EXPERTS
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    REASONS,
    ROUTER_STATISTICS,
    NoisedStatistics,
    ProtocolError,
    Refusal,
    ReplyError,
    RouterStatistics,
)
from shared.record_form import Field, RecordForm, fault_of, fault_of_names
from shared.secure_aggregation.graph import MOST_DEVICES, MOST_NEIGHBOURS
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    REPLIES,
    REQUESTS,
    SEALED_BYTES,
    SHARES,
    UNMASK,
    Dealt,
    Delivery,
    DeviceKeys,
    MaskedVector,
    Revealed,
    Roster,
    Session,
    Survivors,
    read_reply,
    read_request,
    reply_content,
    request_content,
)
from shared.secure_aggregation.shamir import SHARE_BYTES
from shared.wire import BY_TYPE, ERROR_BYTES, MESSAGES, canonical_reply, wire_page

SESSION = Session(2**63 - 1, 3, b"n" * 32, 1.25)
PLACES = tuple(range(MOST_DEVICES - MOST_NEIGHBOURS, MOST_DEVICES))
SECAGG = (KEYS, SHARES, MASKED, UNMASK)


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


# Messages as large as they get.
REQUEST_BODIES: dict[str, Any] = {
    KEYS: None,
    SHARES: Roster(
        MOST_DEVICES,
        MOST_DEVICES,
        MOST_DEVICES - 1,
        PLACES,
        tuple(DeviceKeys(key(2 * n), key(2 * n + 1)) for n in range(MOST_NEIGHBOURS)),
    ),
    MASKED: Delivery(PLACES, (b"s" * SEALED_BYTES,) * MOST_NEIGHBOURS),
    UNMASK: Survivors(MOST_DEVICES, PLACES[:90], PLACES[90:]),
}
REPLY_BODIES: dict[str, Any] = {
    KEYS: DeviceKeys(key(1), key(2)),
    SHARES: Dealt(b"c" * 32, (b"s" * SEALED_BYTES,) * 100, (b"h" * 64,) * MOST_NEIGHBOURS),
    MASKED: MaskedVector(b"v" * 8 * protocol.MAX_LENGTH),
    UNMASK: Revealed((b"a" * SHARE_BYTES,) * 90, (b"b" * SHARE_BYTES,) * 10),
}
LARGEST = RouterStatistics(
    protocol.MAX_RELEASE,
    tuple([1 / MAX_EXPERTS] * MAX_EXPERTS),
    tuple([1 / MAX_ANCHORS] * MAX_ANCHORS),
    -0.1234,
    0.1234,
)


def questions() -> dict[str, RecordDict]:
    return {
        INSTALL_RELEASE: protocol.release_to_content({"manifest.json": b"{}"}, 3),
        ROUTER_STATISTICS: protocol.statistics_request(3),
        NOISED_STATISTICS: protocol.noised_request(3, 1.25),
        **{name: request_content(SESSION, REQUEST_BODIES[name]) for name in SECAGG},
    }


def answers() -> dict[str, RecordDict]:
    vector = (-protocol.MAX_NOISED,) * protocol.MAX_LENGTH
    return {
        ROUTER_STATISTICS: protocol.statistics_to_content(LARGEST),
        NOISED_STATISTICS: protocol.noised_to_content(
            NoisedStatistics(protocol.MAX_RELEASE, vector)
        ),
        **{name: reply_content(REPLY_BODIES[name]) for name in SECAGG},
    }


def over_the_wire(content: RecordDict) -> RecordDict:
    return content_from_bytes(content_to_bytes(content))


READ: dict[str, Callable[[RecordDict], Any]] = {
    INSTALL_RELEASE: protocol.release_from_content,
    ROUTER_STATISTICS: protocol.read_statistics_request,
    NOISED_STATISTICS: protocol.read_noised_request,
    **{name: (lambda content, name=name: read_request(name, content)) for name in SECAGG},
}


def test_the_page_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "wire.md"
    assert page.read_text(encoding="utf-8") == wire_page(), "python -m shared.wire > docs/wire.md"
    for message in MESSAGES:
        assert f"## {message.type}\n" in wire_page()
        for form in (*message.down, *message.up):
            assert f"`{form.name}`" in wire_page()
    assert all(reason in wire_page() for reason in REASONS.values())


def test_every_message_is_declared_once() -> None:
    assert len(BY_TYPE) == len(MESSAGES)
    assert set(BY_TYPE) == set(questions())
    assert set(REQUESTS) == set(REPLIES) == set(SECAGG)


@pytest.mark.parametrize("name", SECAGG)
def test_the_largest_messages_arrive_as_they_were(name: str) -> None:
    content = over_the_wire(questions()[name])
    assert read_request(name, content) == (SESSION, REQUEST_BODIES[name])
    assert read_reply(name, over_the_wire(answers()[name])) == REPLY_BODIES[name]
    assert canonical_reply(name, over_the_wire(answers()[name]), 3) == answers()[name]


def test_empty_lists_arrive_too() -> None:
    nobody = Survivors(3, (0, 1), ())
    assert read_request(UNMASK, over_the_wire(request_content(SESSION, nobody)))[1] == nobody
    said = Revealed((b"a" * SHARE_BYTES,) * 2, ())
    assert read_reply(UNMASK, over_the_wire(reply_content(said))) == said


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_the_largest_messages_fit_their_budgets_and_the_budgets_are_no_larger_than_that(
    message: Any,
) -> None:
    if message.type == INSTALL_RELEASE:
        assert message.up_bytes == len(content_to_bytes(RecordDict()))
        return
    down = len(content_to_bytes(questions()[message.type]))
    up = len(content_to_bytes(answers()[message.type]))
    assert down <= message.down_bytes < 2 * down + 300
    assert up <= message.up_bytes < 2 * up + 300


def test_an_error_is_small() -> None:
    assert max(len(reason) for reason in REASONS.values()) < ERROR_BYTES - 20


def test_noised_statistics_come_through_for_their_release_alone() -> None:
    content = protocol.noised_to_content(NoisedStatistics(3, (1, -2, 3, 4)))
    assert canonical_reply(NOISED_STATISTICS, over_the_wire(content), 3) == content
    with pytest.raises(ProtocolError) as caught:
        canonical_reply(NOISED_STATISTICS, content, 4)
    assert caught.value.refusal is Refusal.OTHER_RELEASE


@pytest.mark.parametrize("name", [*SECAGG, ROUTER_STATISTICS, NOISED_STATISTICS, INSTALL_RELEASE])
def test_another_version_is_told_apart_whatever_else_it_says(name: str) -> None:
    for version in (1, protocol.PROTOCOL + 1):
        content = questions()[name]
        content["round"] = ConfigRecord({"protocol": version, "of": "another form"})
        with pytest.raises(ProtocolError) as caught:
            READ[name](content)
        assert caught.value.refusal is Refusal.OTHER_PROTOCOL


@pytest.mark.parametrize(
    "content",
    [
        request_content(SESSION, Roster(9, 5, 0, (3, 2), (DeviceKeys(key(1), key(2)),) * 2)),
        request_content(SESSION, Roster(9, 5, 0, (2, 2), (DeviceKeys(key(1), key(2)),) * 2)),
        request_content(SESSION, Roster(9, 5, 0, (2, 3, 4), (DeviceKeys(key(1), key(2)),) * 2)),
        request_content(SESSION, Roster(9, 5, 0, (2, 10_000), (DeviceKeys(key(1), key(2)),) * 2)),
    ],
)
def test_a_roster_that_contradicts_itself_is_refused(content: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        read_request(SHARES, content)


def test_other_messages_that_contradict_themselves_are_refused() -> None:
    sealed = (b"s" * SEALED_BYTES,) * 3
    with pytest.raises(ProtocolError):
        read_request(MASKED, request_content(SESSION, Delivery((1, 2), sealed)))
    with pytest.raises(ProtocolError):
        read_request(UNMASK, request_content(SESSION, Survivors(5, (1, 2), (2, 3))))
    with pytest.raises(ReplyError):
        read_reply(KEYS, reply_content(DeviceKeys(key(1), key(1))))
    with pytest.raises(ReplyError):
        read_reply(SHARES, reply_content(Dealt(b"c" * 32, sealed, (b"h" * 64,) * 2)))


def test_a_form_says_itself_in_words() -> None:
    form = RecordForm("r", "config", (Field("a", "int", "", 1, 5), Field("b", "bytes", "", size=4)))
    assert fault_of(ConfigRecord({"a": 1, "b": b"1234"}), form) is None
    assert fault_of(ConfigRecord({"a": 6, "b": b"1234"}), form) == (
        "r: expected a to be one int from 1 to 5"
    )
    assert fault_of(ConfigRecord({"a": 1, "b": b"123"}), form) == "r: expected b to be 4 bytes"
    assert fault_of(MetricRecord({"a": 1}), form) == "r: expected a config record"
    assert fault_of_names(RecordDict(), (form,)) == "expected exactly the records r"
    assert fault_of_names(RecordDict(), ()) is None
