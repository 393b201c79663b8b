"""What crosses the wire, and what must not."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import protocol
from shared.config import MAX_ANCHORS, MAX_EXPERTS
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    PROTOCOL,
    REASONS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    ReplyError,
    RouterStatistics,
)
from shared.wire import canonical_reply

FILES = {"manifest.json": b'{"release": 3}', "population.safetensors": bytes(range(256)) * 9}
STATISTICS = RouterStatistics(3, (0.7, 0.3), (1.0, 0.0, 0.0), 0.91, 0.8813)


def shares(size: int) -> st.SearchStrategy[tuple[float, ...]]:
    """Weights that sum to one, from very uneven to even."""
    parts = st.lists(st.floats(0, 1), min_size=size, max_size=size).filter(lambda p: sum(p) > 1e-6)
    return parts.map(lambda p: tuple(x / math.fsum(p) for x in p))


valid_statistics = st.builds(
    RouterStatistics,
    st.integers(1, protocol.MAX_RELEASE),
    st.integers(1, MAX_EXPERTS).flatmap(shares),
    st.integers(1, MAX_ANCHORS).flatmap(shares),
    st.floats(-1, 1),
    st.floats(0, 1),
)


def over_the_wire(content: RecordDict) -> RecordDict:
    return content_from_bytes(content_to_bytes(content))


def test_a_release_arrives_byte_for_byte() -> None:
    content = over_the_wire(protocol.release_to_content(FILES, 3))
    assert protocol.release_from_content(content) == (3, FILES)


@given(st.binary(min_size=1, max_size=300))
def test_any_file_arrives_byte_for_byte(data: bytes) -> None:
    content = over_the_wire(protocol.release_to_content({"a.json": data}, 1))
    assert protocol.release_from_content(content) == (1, {"a.json": data})


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"../x.json": b"1"},
        {"/etc/x.json": b"1"},
        {".hidden.json": b"1"},
        {"A.json": b"1"},
        {"x.pkl": b"1"},
        {"x.json\n": b"1"},
        {"x.json": b""},
        {f"f{i}.json": b"1" for i in range(protocol.MAX_FILES + 1)},
    ],
)
def test_a_release_with_other_names_or_sizes_is_refused_on_both_sides(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProtocolError):
        protocol.release_to_content(files, 1)
    with monkeypatch.context() as without_checks:
        without_checks.setattr(protocol, "_check_files", lambda sizes: None)
        content = protocol.release_to_content(files, 1)
    with pytest.raises(ProtocolError):
        protocol.release_from_content(content)


def test_a_release_beyond_the_byte_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = protocol.release_to_content(FILES, 3)
    monkeypatch.setattr(protocol, "MAX_RELEASE_BYTES", sum(map(len, FILES.values())) - 1)
    with pytest.raises(ProtocolError):
        protocol.release_from_content(content)
    with pytest.raises(ProtocolError):
        protocol.release_to_content(FILES, 3)
    monkeypatch.setattr(protocol, "MAX_RELEASE_BYTES", sum(map(len, FILES.values())))
    assert protocol.release_from_content(content) == (3, FILES)


def lying_array() -> Array:
    honest = Array(np.zeros(8, dtype=np.uint8))
    return Array(honest.dtype, (9,), honest.stype, honest.data + b"x")


@pytest.mark.parametrize(
    "array",
    [
        Array(np.zeros(8, dtype=np.float32)),
        Array(np.zeros((2, 4), dtype=np.uint8)),
        Array("uint8", (8,), "numpy.ndarray", b"garbage"),
        Array("uint8", (8,), "torch", Array(np.zeros(8, dtype=np.uint8)).data),
        Array("uint8", (8,), "numpy.ndarray", Array(np.zeros(8, dtype=np.int8)).data),
        lying_array(),
    ],
)
def test_an_array_that_is_not_plain_bytes_is_refused(array: Array) -> None:
    content = RecordDict(
        {"round": protocol.round_to_record(1), "release": ArrayRecord({"a.json": array})}
    )
    with pytest.raises(ProtocolError):
        protocol.release_from_content(content)


@pytest.mark.parametrize(
    ("record", "refusal"),
    [
        (ConfigRecord({"protocol": protocol.PROTOCOL + 1, "release": 1}), Refusal.OTHER_PROTOCOL),
        (ConfigRecord({"protocol": 0, "new": "form"}), Refusal.OTHER_PROTOCOL),
        (ConfigRecord({"protocol": True, "release": 1}), Refusal.MALFORMED_REQUEST),
        (ConfigRecord({"protocol": PROTOCOL, "release": True}), Refusal.MALFORMED_REQUEST),
        (ConfigRecord({"protocol": PROTOCOL, "release": 0}), Refusal.MALFORMED_REQUEST),
        (
            ConfigRecord({"protocol": PROTOCOL, "release": 2**40}),
            Refusal.MALFORMED_REQUEST,
        ),
        (
            ConfigRecord({"protocol": PROTOCOL, "release": 1, "more": 1}),
            Refusal.MALFORMED_REQUEST,
        ),
        (ConfigRecord({"release": 1}), Refusal.MALFORMED_REQUEST),
        (MetricRecord({"protocol": PROTOCOL, "release": 1}), Refusal.MALFORMED_REQUEST),
    ],
)
def test_a_request_of_another_form_or_version_is_refused(record: Any, refusal: Refusal) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.read_statistics_request(RecordDict({"round": record}))
    assert caught.value.refusal is refusal


def test_a_request_carries_nothing_more() -> None:
    content = protocol.statistics_request(2)
    assert protocol.read_statistics_request(over_the_wire(content)) == 2
    content["more"] = ConfigRecord()
    with pytest.raises(ProtocolError):
        protocol.read_statistics_request(content)
    release = protocol.release_to_content(FILES, 2)
    release["more"] = ConfigRecord()
    with pytest.raises(ProtocolError):
        protocol.release_from_content(release)


@given(valid_statistics)
def test_statistics_arrive_rounded_to_four_decimals_and_still_sum_to_one(
    statistics: RouterStatistics,
) -> None:
    content = over_the_wire(protocol.statistics_to_content(statistics))
    arrived = protocol.statistics_from_content(
        content, len(statistics.expert_weights), len(statistics.anchor_weights)
    )
    assert arrived.release == statistics.release
    for sent, came in (
        (statistics.expert_weights, arrived.expert_weights),
        (statistics.anchor_weights, arrived.anchor_weights),
    ):
        # Largest remainder: each share moves by less than one unit, and the units sum exactly.
        assert all(abs(a - b) < 1.0001e-4 for a, b in zip(sent, came, strict=True))
        assert sum(round(10_000 * w) for w in came) == 10_000
        assert all(w == round(w, 4) for w in came)
    assert abs(arrived.best_similarity - statistics.best_similarity) <= 0.5001e-4
    assert abs(arrived.entropy - statistics.entropy) <= 0.5001e-4


@given(valid_statistics)
def test_rounding_again_changes_nothing(statistics: RouterStatistics) -> None:
    once = protocol.as_sent(statistics)
    assert protocol.statistics_to_record(once) == protocol.statistics_to_record(statistics)
    assert protocol.as_sent(once) == once


def test_the_largest_remainder_gets_the_odd_unit() -> None:
    record = protocol.statistics_to_record(
        replace(STATISTICS, expert_weights=(1 / 3, 1 / 3, 1 / 3))
    )
    assert record["expert-weights"] == [0.3334, 0.3333, 0.3333]


@pytest.mark.parametrize(
    "change",
    [
        {"release": 0},
        {"release": True},
        {"release": 1.0},
        {"expert-weights": []},
        {"expert-weights": [0.5, 0.4]},
        {"expert-weights": [1.5, -0.5]},
        {"expert-weights": [math.nan, 1.0]},
        {"expert-weights": [math.inf, 1.0]},
        {"expert-weights": [1, 0]},
        {"expert-weights": 1.0},
        {"anchor-weights": [0.0] * MAX_ANCHORS + [1.0]},
        {"expert-weights": [0.0] * MAX_EXPERTS + [1.0]},
        {"best-similarity": 1.01},
        {"best-similarity": math.nan},
        {"best-similarity": 1},
        {"entropy": -0.01},
        {"entropy": math.inf},
        {"extra": 1.0},
    ],
)
def test_statistics_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    fields = {**protocol.statistics_to_record(STATISTICS)}
    protocol.statistics_from_record(MetricRecord(dict(fields)))
    fields.update(change)
    record = MetricRecord()
    # Written past MetricRecord's own checks, as a hostile device would.
    record.__dict__["_data"] = fields
    with pytest.raises(ReplyError) as caught:
        protocol.statistics_from_record(record)
    for value in change.values():
        assert str(value) not in caught.value.reason or value == 1.0 or value == 1


@pytest.mark.parametrize("field", sorted(protocol.statistics_to_record(STATISTICS)))
def test_statistics_that_lack_a_field_are_refused(field: str) -> None:
    record = protocol.statistics_to_record(STATISTICS)
    del record[field]
    with pytest.raises(ReplyError):
        protocol.statistics_from_record(record)


def test_statistics_are_of_the_release_s_size() -> None:
    record = protocol.statistics_to_record(STATISTICS)
    assert protocol.statistics_from_record(record, experts=2, anchors=3) == STATISTICS
    with pytest.raises(ReplyError, match="experts"):
        protocol.statistics_from_record(record, experts=3, anchors=3)
    with pytest.raises(ReplyError, match="anchors"):
        protocol.statistics_from_record(record, experts=2, anchors=2)


def test_a_device_cannot_build_statistics_out_of_bounds() -> None:
    for wrong in (
        replace(STATISTICS, expert_weights=(0.9, 0.2)),
        replace(STATISTICS, best_similarity=math.nan),
        replace(STATISTICS, entropy=1.2),
    ):
        with pytest.raises(ReplyError):
            protocol.statistics_to_record(wrong)


scalars = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.lists(st.floats(), max_size=4),
    st.lists(st.integers(-5, 5), max_size=4),
)
configs = st.one_of(scalars, st.booleans(), st.text(max_size=20), st.binary(max_size=20))
names = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["router-statistics", "round", "release", "expert-weights", "user_lora"]),
)
any_content = st.dictionaries(
    names,
    st.one_of(
        st.dictionaries(names, scalars, max_size=6).map(MetricRecord),
        st.dictionaries(names, configs, max_size=6).map(ConfigRecord),
        st.dictionaries(
            names, st.integers(0, 6).map(lambda n: Array(np.ones(n, np.float32))), max_size=2
        ).map(ArrayRecord),
    ),
    max_size=3,
).map(RecordDict)


@settings(max_examples=300)
@given(any_content, st.sampled_from([INSTALL_RELEASE, ROUTER_STATISTICS, "train.other"]))
def test_of_random_answers_only_the_empty_acknowledgement_comes_through(
    content: RecordDict, message_type: str
) -> None:
    if message_type == INSTALL_RELEASE and not content:
        assert not canonical_reply(message_type, content, 3)
        return
    with pytest.raises(ProtocolError):
        canonical_reply(message_type, content, 3)


@settings(max_examples=300)
@given(any_content)
def test_whatever_a_server_asks_nothing_but_a_protocol_error_comes_of_it(
    content: RecordDict,
) -> None:
    for read in (protocol.release_from_content, protocol.read_statistics_request):
        with pytest.raises(ProtocolError):
            read(content)


def test_a_reply_about_another_release_is_held_back() -> None:
    content = protocol.statistics_to_content(STATISTICS)
    assert canonical_reply(ROUTER_STATISTICS, content, 3) == content
    with pytest.raises(ProtocolError) as caught:
        canonical_reply(ROUTER_STATISTICS, content, 2)
    assert caught.value.refusal is Refusal.OTHER_RELEASE


def test_every_refusal_has_one_fixed_text_and_a_code_of_its_own() -> None:
    assert set(REASONS) == set(Refusal)
    assert all(code >= 100 for code in Refusal)
    assert len(set(REASONS.values())) == len(Refusal)
