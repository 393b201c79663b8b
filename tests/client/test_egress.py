"""Nothing leaves a device but what the protocol declares, whatever its handlers do."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client.egress import egress_guard, error_log
from shared.errors import MesofedError
from shared.flower_internals import become_server, name_message, over_the_wire
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    PROTOCOL,
    REASONS,
    ROUTER_STATISTICS,
    NoisedStatistics,
    ProtocolError,
    Refusal,
    ReplyError,
    RouterStatistics,
    noised_to_content,
    release_to_content,
    statistics_from_content,
    statistics_request,
    statistics_to_content,
)
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SEALED_BYTES,
    SHARES,
    UNMASK,
    Dealt,
    DeviceKeys,
    MaskedVector,
    Revealed,
    reply_content,
)
from shared.secure_aggregation.shamir import SHARE_BYTES
from shared.wire import BY_TYPE, MESSAGES

CANARY = "CANARY-7f3a: I wrote this in my diary"
STATISTICS = RouterStatistics(1, (0.25, 0.75), (1.0,), 0.5, 0.8113)
Handler = Callable[[Message, Context], Any]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        run_id=1,
        node_id=5,
        node_config={"agent": str(tmp_path / "agent.sock")},
        state=RecordDict(),
        run_config={},
    )


def request(message_type: str = ROUTER_STATISTICS, content: RecordDict | None = None) -> Message:
    become_server(1)
    message = Message(
        statistics_request(1) if content is None else content, 5, message_type, group_id="g"
    )
    name_message(message, "m1")
    return message


def answered(handler: Handler, context: Context, message: Message | None = None) -> Message:
    """Pass a request through a ClientApp whose only mod is the guard."""
    app = ClientApp(mods=[egress_guard])
    for name in (*BY_TYPE, "query.other"):
        kind, action = name.split(".")
        getattr(app, kind)(action)(handler)
    return over_the_wire(app(message or request(), context))


def sent_bytes(reply: Message) -> bytes:
    """Every byte of a reply, metadata included."""
    from flwr.common.serde import message_to_proto

    return bytes(message_to_proto(reply).SerializeToString())


def refusal_of(reply: Message) -> Refusal:
    assert reply.has_error()
    code = Refusal(reply.error.code)
    assert reply.error.reason == REASONS[code]
    return code


def test_router_statistics_pass(context: Context) -> None:
    reply = answered(lambda m, c: Message(statistics_to_content(STATISTICS), reply_to=m), context)
    assert statistics_from_content(reply.content) == STATISTICS
    assert reply.metadata.reply_to_message_id == "m1"
    assert not error_log(context).exists()


def test_an_acknowledgement_passes_and_carries_nothing(context: Context) -> None:
    message = request(INSTALL_RELEASE, release_to_content({"manifest.json": b"{}"}, 1))
    reply = answered(lambda m, c: Message(RecordDict(), reply_to=m), context, message)
    assert reply.has_content()
    assert not reply.content


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError(CANARY)


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (ValueError(CANARY), Refusal.DEVICE_FAILED),
        (KeyError(CANARY), Refusal.DEVICE_FAILED),
        (ImportError(CANARY), Refusal.DEVICE_FAILED),
        (MemoryError(CANARY), Refusal.DEVICE_FAILED),
        (SystemExit(CANARY), Refusal.DEVICE_FAILED),
        (KeyboardInterrupt(CANARY), Refusal.DEVICE_FAILED),
        (UnprintableError(), Refusal.DEVICE_FAILED),
        (MesofedError(CANARY), Refusal.REQUEST_REFUSED),
        (ProtocolError(CANARY, Refusal.OTHER_RELEASE), Refusal.OTHER_RELEASE),
    ],
)
def test_an_exception_leaves_as_a_fixed_text_and_is_logged_on_the_device(
    error: BaseException, refusal: Refusal, context: Context
) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise error

    reply = answered(handler, context)
    assert refusal_of(reply) is refusal
    assert b"CANARY" not in sent_bytes(reply)
    log = error_log(context)
    assert type(error).__name__ in log.read_text(encoding="utf-8")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    if not isinstance(error, UnprintableError):
        assert CANARY in log.read_text(encoding="utf-8")


def test_without_the_guard_the_same_exception_would_be_told(context: Context) -> None:
    """The contrast: so the search above does find what leaks."""
    from shared.flower_internals import error_of_exception

    def handler(message: Message, context: Context) -> Message:
        raise ValueError(CANARY)

    app = ClientApp()
    app.query("router_statistics")(handler)
    message = request()
    with pytest.raises(ValueError, match="CANARY") as caught:
        app(message, context)
    assert b"CANARY" in sent_bytes(Message(error_of_exception(caught.value), reply_to=message))


def with_metadata(message: Message) -> Message:
    reply = Message(statistics_to_content(STATISTICS), reply_to=message)
    reply.metadata.group_id = CANARY
    reply.metadata.__dict__["_reply_to_message_id"] = CANARY
    reply.metadata.ttl = 31337.25
    return reply


def test_metadata_that_a_handler_wrote_does_not_leave(context: Context) -> None:
    reply = answered(lambda m, c: with_metadata(m), context)
    assert statistics_from_content(reply.content) == STATISTICS
    assert reply.metadata.reply_to_message_id == "m1"
    assert reply.metadata.group_id == "g"
    assert reply.metadata.ttl != 31337.25
    assert b"CANARY" not in sent_bytes(reply)


@pytest.mark.parametrize("value", [None, CANARY, {"a": CANARY}, 7])
def test_a_reply_that_is_no_message_is_blocked(value: object, context: Context) -> None:
    assert refusal_of(answered(lambda m, c: value, context)) is Refusal.REPLY_BLOCKED


def test_an_error_reply_of_a_handler_is_blocked(context: Context) -> None:
    reply = answered(lambda m, c: Message(Error(3, CANARY), reply_to=m), context)
    assert refusal_of(reply) is Refusal.REPLY_BLOCKED
    assert b"CANARY" not in sent_bytes(reply)


def test_statistics_of_another_release_are_blocked(context: Context) -> None:
    reply = answered(
        lambda m, c: Message(statistics_to_content(STATISTICS), reply_to=m),
        context,
        request(content=statistics_request(2)),
    )
    assert refusal_of(reply) is Refusal.OTHER_RELEASE


def test_a_request_that_the_protocol_does_not_know_is_refused(context: Context) -> None:
    """Fail closed: even a registered handler whose answer would be harmless."""
    reply = answered(
        lambda m, c: Message(RecordDict(), reply_to=m), context, request("query.other")
    )
    assert refusal_of(reply) is Refusal.UNKNOWN_REQUEST


def test_another_protocol_version_never_reaches_the_handler(context: Context) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise AssertionError("reached")

    content = RecordDict({"round": ConfigRecord({"protocol": PROTOCOL + 1, "release": 1})})
    reply = answered(handler, context, request(content=content))
    assert refusal_of(reply) is Refusal.OTHER_PROTOCOL
    assert "reached" not in error_log(context).read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_still_lets_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a relative place of the socket leads
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for node_config in ({"agent": str(tmp_path / "file" / "agent")}, {}, {"agent": 3}):
        nowhere = Context(
            run_id=1, node_id=5, node_config=node_config, state=RecordDict(), run_config={}
        )
        reply = answered(lambda m, c: 1 / 0, nowhere)
        assert refusal_of(reply) is Refusal.DEVICE_FAILED


lora = np.arange(64, dtype=np.float32)
secrets = st.one_of(
    st.just(ConfigRecord({"note": CANARY})),
    st.just(ConfigRecord({"raw": CANARY.encode()})),
    st.just(ArrayRecord({"q_proj.a": Array(lora)})),
    st.just(ArrayRecord({CANARY: Array(np.zeros(1, np.uint8))})),
    st.just(MetricRecord({CANARY: 1.0})),
    st.just(MetricRecord({"private": [float(x) for x in lora]})),
)
genuine = statistics_to_content(STATISTICS)["router-statistics"]


def tampered(change: dict[str, Any]) -> MetricRecord:
    return MetricRecord({**genuine, **change})


bad_values = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**62), 2**62),
    st.lists(st.floats(), max_size=5),
)
bad_statistics = st.one_of(
    st.builds(tampered, st.dictionaries(st.sampled_from(sorted(genuine)), bad_values, min_size=1)),
    st.builds(tampered, st.dictionaries(st.text(max_size=8), bad_values, min_size=1)),
    st.just(tampered({"expert-weights": [1.0 / 5000] * 5000})),
)
ANSWERS = {
    INSTALL_RELEASE: RecordDict(),
    ROUTER_STATISTICS: statistics_to_content(STATISTICS),
    NOISED_STATISTICS: noised_to_content(NoisedStatistics(1, (1, -2, 3, 4))),
    KEYS: reply_content(DeviceKeys(b"1" * 32, b"2" * 32)),
    SHARES: reply_content(Dealt(b"c" * 32, (b"s" * SEALED_BYTES,) * 2, (b"h" * 64,) * 2)),
    MASKED: reply_content(MaskedVector(b"v" * 32)),
    UNMASK: reply_content(Revealed((b"a" * SHARE_BYTES,) * 2, (b"b" * SHARE_BYTES,))),
}
FORMS = sorted({form.name for message in MESSAGES for form in message.up})


def padded(record: Any) -> Any:
    """A genuine record of a sum with one more field, or with bytes that are none of its own."""
    name, value = next(iter(sorted(record.items())))
    return st.sampled_from(
        [{**record, "note": CANARY}, {**record, name: value + CANARY.encode()}, {CANARY: value}]
    ).map(ConfigRecord)


bad_sums = st.sampled_from((KEYS, SHARES, MASKED, UNMASK)).flatmap(
    lambda name: st.fixed_dictionaries({key: padded(r) for key, r in ANSWERS[name].items()})
)
replies = st.one_of(
    st.dictionaries(st.sampled_from([*FORMS, "user_lora", CANARY]), secrets).map(RecordDict),
    st.tuples(st.sampled_from(list(ANSWERS.values())), secrets).map(
        lambda drawn: RecordDict({**drawn[0], "more": drawn[1]})
    ),
    bad_statistics.map(lambda s: RecordDict({"router-statistics": s})),
    bad_statistics.map(lambda s: RecordDict({"renamed": s})),
    bad_sums.map(RecordDict),
)
types = st.sampled_from([*BY_TYPE, "query.other"])


def asked(message_type: str) -> Message:
    """Return a request about release 1: the guard reads its round, and no more of it."""
    files = release_to_content({"manifest.json": b"{}"}, 1)
    return request(
        message_type, files if message_type == INSTALL_RELEASE else statistics_request(1)
    )


def test_the_genuine_answers_all_pass(context: Context) -> None:
    """So what is blocked below is blocked for what was done to it."""
    assert ANSWERS.keys() == BY_TYPE.keys()
    for message_type, content in ANSWERS.items():
        reply = answered(
            lambda m, c, content=content: Message(content, reply_to=m),  # type: ignore[misc]
            context,
            asked(message_type),
        )
        assert reply.content == content


@settings(
    max_examples=500,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(replies, types)
def test_whatever_a_handler_answers_only_declared_values_leave(
    context: Context, content: RecordDict, message_type: str
) -> None:
    message = asked(message_type)
    reply = answered(lambda m, c: Message(content, reply_to=m), context, message)
    sent = sent_bytes(reply)
    assert b"CANARY" not in sent
    assert lora[32:].tobytes() not in sent
    if reply.has_error():
        refusal_of(reply)
        return
    if message_type == INSTALL_RELEASE:
        assert not reply.content
        assert not content
        return
    # By chance a tampered record may be valid; then it is what the protocol declares.
    assert message_type == ROUTER_STATISTICS
    statistics = statistics_from_content(reply.content)
    assert statistics.release == 1
    for weights in (statistics.expert_weights, statistics.anchor_weights):
        assert all(weight == round(weight, 4) for weight in weights)


texts = st.builds(
    lambda before, after: before + CANARY + after, st.text(max_size=50), st.text(max_size=50)
)
kinds = st.sampled_from(
    [ValueError, KeyError, OSError, ImportError, SystemExit, KeyboardInterrupt, Exception]
)
errors: st.SearchStrategy[BaseException] = st.one_of(
    st.builds(lambda kind, text: kind(text), kinds, texts),
    texts.map(MesofedError),
    st.builds(ProtocolError, texts, st.sampled_from(Refusal)),
    texts.map(ReplyError),
    texts.map(lambda text: ExceptionGroup(text, [ValueError(text)])),
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(errors, types)
def test_whatever_text_an_exception_has_the_same_few_bytes_leave(
    context: Context, error: BaseException, message_type: str
) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise error

    reply = answered(handler, context, asked(message_type))
    code = refusal_of(reply)
    sent = sent_bytes(reply)
    assert b"CANARY" not in sent
    assert reply.error == Error(int(code), REASONS[code])
    if not isinstance(error, MesofedError):
        assert code is Refusal.DEVICE_FAILED


@pytest.mark.parametrize("place", ["client.agent_call", "client.simulated"])
def test_app_guards_both_requests_and_knows_no_other(
    place: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real app with a device that fails when it is asked."""
    import sys
    import types

    from client.app import app

    if place == "client.simulated":
        context.node_config = {"partition-id": 0}
    broken = types.ModuleType(place)

    def ask(*_: object) -> None:
        raise RuntimeError(CANARY)

    broken.ask_agent = broken.ask_simulated = ask  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, place, broken)
    for message in (
        request(),
        request(INSTALL_RELEASE, release_to_content({"manifest.json": b"{}"}, 1)),
    ):
        assert refusal_of(over_the_wire(app(message, context))) is Refusal.DEVICE_FAILED
    monkeypatch.setitem(sys.modules, place, None)
    assert refusal_of(over_the_wire(app(request(), context))) is Refusal.DEVICE_FAILED
    with pytest.raises(ValueError, match="No query function"):
        app(request("query.history"), context)
