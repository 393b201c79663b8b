"""A round ends at its deadline, with what valid answers there are."""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server.exchange import (
    FOREIGN,
    NO_ANSWER,
    NOT_DELIVERED,
    TOO_LARGE,
    TWICE,
    Exchange,
)
from server.refusals import QuorumError, Refused
from server.round_record import RoundPrivacy, describe_noised, describe_round, describe_sum
from server.rounds import (
    broadcast_release,
    gather_noised,
    gather_statistics,
    quorum_of,
    wait_for_devices,
)
from server.secure_round import SecureSum
from shared.config import PrivacyConfig, RoundsConfig
from shared.errors import MesofedError
from shared.flower_internals import Run, become_server, content_to_bytes, empty_run, name_message
from shared.privacy import LedgerEntry, noise_variance, spent
from shared.protocol import (
    REASONS,
    NoisedStatistics,
    Refusal,
    RouterStatistics,
    noised_to_content,
    release_from_content,
    statistics_to_content,
)
from shared.secure_aggregation.server_session import Opened
from shared.statistic_vector import noise_bound

FILES = {"manifest.json": b"{}", "population.safetensors": b"\x01" * 1000}
Answers = Callable[[Message], list[Message]]


class ScriptedGrid(Grid):
    """An engine whose every node does what a test says, at once."""

    def __init__(self, script: dict[int, Answers]) -> None:
        become_server(1)
        self.script = script
        self.inbox: list[Message] = []
        self.pushed: list[Message] = []
        self.numbers = itertools.count()

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return empty_run(1)

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.script)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self.script:
                continue
            name_message(message, f"m{next(self.numbers)}")
            ids.append(message.metadata.message_id)
            self.pushed.append(message)
            self.inbox += self.script[message.metadata.dst_node_id](message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found = [m for m in self.inbox if m.metadata.reply_to_message_id in wanted]
        self.inbox = [m for m in self.inbox if m not in found]
        return found

    def send_and_receive(self, *args: Any, **options: Any) -> Iterable[Message]:
        raise NotImplementedError


def statistics(first: float = 0.25, release: int = 1) -> RouterStatistics:
    return RouterStatistics(release, (first, 1 - first), (1.0, 0.0), 0.5, 0.8)


def says(content: RecordDict) -> Answers:
    return lambda message: [Message(content, reply_to=message)]


def fails(code: int, reason: str) -> Answers:
    return lambda message: [Message(Error(code, reason), reply_to=message)]


def silent(message: Message) -> list[Message]:
    return []


def as_the_superlink(message: Message) -> list[Message]:
    """Flower's own error for a lost node: its source is the SuperLink, not the node."""
    reply = Message(Error(5, "Node unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return [reply]


def in_the_name_of_another(message: Message) -> list[Message]:
    reply = Message(statistics_to_content(statistics(0.99)), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 99
    return [reply]


good = says(statistics_to_content(statistics()))


def gather(
    script: dict[int, Answers], needed: int = 1, deadline: float = 0.3, **options: Any
) -> Exchange[RouterStatistics]:
    grid = ScriptedGrid(script)
    return gather_statistics(
        grid,
        1,
        experts=2,
        anchors=2,
        nodes=options.pop("nodes", tuple(script)),
        needed=needed,
        deadline_seconds=deadline,
        **options,
    )


def test_everyone_answers_and_the_round_does_not_wait_for_its_deadline() -> None:
    started = time.monotonic()
    exchange = gather({30: good, 10: good, 20: good}, needed=3, deadline=60.0)
    assert time.monotonic() - started < 5
    assert exchange.asked == (10, 20, 30)
    assert list(exchange.answers) == [10, 20, 30]
    assert exchange.answers[20] == statistics()
    assert exchange.refused == ()


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (silent, NO_ANSWER),
        (fails(int(Refusal.DEVICE_FAILED), "secret"), REASONS[Refusal.DEVICE_FAILED]),
        (fails(2, "<class 'ValueError'>:<'secret'>"), "Flower reported error 2"),
        (fails(99, "secret"), "Flower reported error 99"),
        (as_the_superlink, "Flower reported error 5"),
        (says(RecordDict()), "expected exactly the records router-statistics"),
        (
            says(RecordDict({"router-statistics": ConfigRecord({"a": "secret"})})),
            "router-statistics: expected a metric record",
        ),
        (
            says(RecordDict({"user_lora": ArrayRecord({"a": Array("f", (1,), "x", b"secret")})})),
            "expected exactly the records router-statistics",
        ),
        (
            says(RecordDict({"router-statistics": MetricRecord({"release": 1})})),
            (
                "router-statistics: expected the fields release, expert-weights, anchor-weights, "
                "best-similarity, entropy"
            ),
        ),
        (says(statistics_to_content(statistics(release=2))), REASONS[Refusal.OTHER_RELEASE]),
        (
            says(statistics_to_content(RouterStatistics(1, (0.2, 0.3, 0.5), (1.0, 0.0), 0.5, 0.8))),
            "router statistics have another number of experts than the release",
        ),
    ],
)
def test_a_bad_device_costs_only_itself(answers: Answers, reason: str) -> None:
    exchange = gather({1: good, 2: answers, 3: good}, needed=2)
    assert list(exchange.answers) == [1, 3]
    assert [(entry.node, entry.reason) for entry in exchange.refused] == [(2, reason)]
    assert "secret" not in str(exchange.refused)


def test_a_device_that_answers_twice_counts_once() -> None:
    def twice(message: Message) -> list[Message]:
        first = Message(statistics_to_content(statistics(0.25)), reply_to=message)
        second = Message(statistics_to_content(statistics(0.75)), reply_to=message)
        return [first, second]

    exchange = gather({1: good, 2: twice})
    assert exchange.answers[2] == statistics(0.25)
    assert [(entry.node, entry.reason) for entry in exchange.refused] == [(2, TWICE)]


def test_a_device_cannot_answer_for_another() -> None:
    def both(message: Message) -> list[Message]:
        return in_the_name_of_another(message) + good(message)

    exchange = gather({1: good, 2: both, 3: in_the_name_of_another})
    assert exchange.answers == {1: statistics(), 2: statistics()}
    assert [(e.node, e.reason) for e in exchange.refused] == [
        (2, FOREIGN),
        (3, FOREIGN),
        (3, NO_ANSWER),
    ]


def test_a_device_that_is_gone_is_not_waited_for() -> None:
    started = time.monotonic()
    exchange = gather({1: good}, nodes=(1, 2), deadline=60.0)
    assert time.monotonic() - started < 5
    assert [(e.node, e.reason) for e in exchange.refused] == [(2, NOT_DELIVERED)]
    assert exchange.bytes_down[2] == 0


def test_a_missed_quorum_says_what_happened_in_numbers() -> None:
    started = time.monotonic()
    with pytest.raises(QuorumError) as caught:
        gather({1: good, 2: silent, 3: silent, 4: fails(2, "x")}, needed=3, deadline=0.3)
    assert 0.3 <= time.monotonic() - started < 5
    text = str(caught.value)
    assert "at least 3 of 4 devices" in text
    assert "1 did" in text
    assert f"2 x {NO_ANSWER}" in text
    assert "1 x Flower reported error 2" in text
    assert caught.value.record() == {
        "needed": 3,
        "asked": 4,
        "answered": 1,
        "refused": [
            {"node": 2, "reason": NO_ANSWER},
            {"node": 3, "reason": NO_ANSWER},
            {"node": 4, "reason": "Flower reported error 2"},
        ],
        "stray": 0,
    }


def test_what_was_refused_before_in_the_round_is_in_the_record_too() -> None:
    missed = QuorumError("x", needed=2, asked=3, answered=1, refused=[Refused(2, "b")], stray=1)
    both = missed.after([Refused(5, "a"), Refused(1, "a")], 2)
    assert str(both) == "x"
    assert both.record() == {
        "needed": 2,
        "asked": 3,
        "answered": 1,
        "refused": [
            {"node": 1, "reason": "a"},
            {"node": 2, "reason": "b"},
            {"node": 5, "reason": "a"},
        ],
        "stray": 3,
    }


def test_the_log_has_a_line_for_each_reason_and_nothing_that_a_device_wrote(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "flwr")  # a command of Mesofed in this process quiets it
    refuses = fails(int(Refusal.DEVICE_FAILED), "secret")
    script = dict.fromkeys(range(2, 9), refuses) | {1: good, 9: fails(7, "secret"), 10: good}
    purpose = "send router statistics of release 1"
    reason = REASONS[Refusal.DEVICE_FAILED]
    gather(script)
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("flwr", "WARNING")
    ] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"Refused, {purpose}: 1 x Flower reported error 7 (node 9)",
        f"Refused, {purpose}: 7 x {reason} (node 2, 3, 4, 5, 6 and 2 more)",
    ]


def test_an_exchange_that_refuses_nobody_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "flwr")  # a command of Mesofed in this process quiets it
    gather({1: good, 2: good})
    assert caplog.records == []


class StrayGrid(ScriptedGrid):
    """An engine that also hands over a reply to a message which was never sent."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        if found:
            stray = Message(statistics_to_content(statistics(0.99)), reply_to=self.pushed[0])
            stray.metadata.__dict__["_reply_to_message_id"] = "m77"
            found.append(stray)
        return found


def test_a_reply_to_no_message_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "flwr")  # a command of Mesofed in this process quiets it
    found = gather_statistics(
        StrayGrid({1: good, 2: good}),
        1,
        experts=2,
        anchors=2,
        nodes=(1, 2),
        needed=2,
        deadline_seconds=5.0,
    )
    assert found.answers == {1: statistics(), 2: statistics()}
    assert (found.refused, found.stray) == ((), 1)
    assert describe_round(installed_by((1, 2)), found)["stray"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Dropped, send router statistics of release 1: 1 x a reply to no message that was sent"
    ]


@pytest.mark.parametrize("others", [2, 3])
def test_devices_of_another_protocol_are_told_apart_and_say_what_to_do(others: int) -> None:
    """An old client and a new server, or the reverse: the device answers with the code alone."""
    other = fails(int(Refusal.OTHER_PROTOCOL), "secret")
    script = {1: good, **dict.fromkeys(range(2, 2 + others), other)}
    text = "the device speaks another protocol version: update the older side, device or server"
    found = gather(script, needed=1)
    record = describe_round(installed_by(tuple(script)), found)
    assert (record["asked"], record["answered"]) == (1 + others, 1)
    assert record["refused"] == [{"node": n, "reason": text} for n in range(2, 2 + others)]
    with pytest.raises(QuorumError) as caught:
        gather(script, needed=2)
    assert str(caught.value) == (
        f"Expected at least 2 of {1 + others} devices to send router statistics of release 1; "
        f"1 did ({others} x {text}). Mend the devices and resume the run, or lower rounds.quorum."
    )
    assert caught.value.record()["refused"] == record["refused"]


def test_a_release_reaches_every_device_and_its_bytes_are_counted() -> None:
    script = {node: says(RecordDict()) for node in (1, 2)}
    script[3] = says(statistics_to_content(statistics()))
    grid = ScriptedGrid(script)
    seen: list[int] = []
    exchange = broadcast_release(
        grid, FILES, 4, nodes=(1, 2, 3), needed=2, deadline_seconds=5, on_reply=seen.append
    )
    assert [release_from_content(m.content) for m in grid.pushed] == [(4, FILES)] * 3
    down = len(content_to_bytes(grid.pushed[0].content))
    assert down > 1000
    assert exchange.bytes_down == {1: down, 2: down, 3: down}
    up = len(content_to_bytes(statistics_to_content(statistics())))
    assert exchange.bytes_up == {1: 0, 2: 0, 3: up}
    assert list(exchange.answers) == [1, 2]
    assert [e.reason for e in exchange.refused] == [TOO_LARGE]
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("quorum", "devices", "needed"),
    [(0.5, 4, 2), (0.5, 5, 3), (0.6, 5, 3), (0.01, 3, 1), (1.0, 7, 7), (0.7, 10, 7)],
)
def test_the_quorum_is_rounded_up(quorum: float, devices: int, needed: int) -> None:
    assert quorum_of(RoundsConfig(quorum=quorum), devices) == needed


class LateGrid(ScriptedGrid):
    """Nodes that register one by one."""

    def __init__(self, moments: list[float]) -> None:
        super().__init__({})
        self.start = time.monotonic()
        self.moments = moments

    def get_node_ids(self) -> Iterable[int]:
        passed = time.monotonic() - self.start
        return [9 - i for i, moment in enumerate(self.moments) if passed >= moment]


def test_devices_that_register_late_are_waited_for() -> None:
    assert wait_for_devices(LateGrid([0.1, 0.2, 0.3]), 3, 10.0) == (7, 8, 9)


def test_fewer_devices_than_expected_are_taken_when_no_more_come() -> None:
    started = time.monotonic()
    assert wait_for_devices(LateGrid([0.0, 0.1]), 5, 60.0, settle_seconds=0.3) == (8, 9)
    assert time.monotonic() - started < 10


def test_no_device_by_the_deadline_is_an_error() -> None:
    with pytest.raises(MesofedError, match=r"Expected 3 devices; none registered within 0\.2 s"):
        wait_for_devices(LateGrid([]), 3, 0.2)


def test_a_round_is_described_in_the_order_of_nodes_with_exact_means() -> None:
    firsts = {3: 0.1, 1: 0.2, 2: 0.4}
    script = {n: says(statistics_to_content(statistics(first))) for n, first in firsts.items()}
    script[4] = silent
    installed = broadcast_release(
        ScriptedGrid({**{node: says(RecordDict()) for node in firsts}, 4: silent}),
        FILES,
        1,
        nodes=(4, 3, 2, 1),
        needed=1,
        deadline_seconds=0.1,
    )
    described = describe_round(installed, gather(script, nodes=tuple(installed.answers)))
    assert described["asked"] == 4
    assert described["answered"] == 3
    assert described["refused"] == [{"node": 4, "reason": NO_ANSWER}]
    assert [device["node"] for device in described["devices"]] == [1, 2, 3]
    assert [d["statistics"]["expert_weights"][0] for d in described["devices"]] == [0.2, 0.4, 0.1]
    assert described["mean"]["expert_weights"][0] == math.fsum([0.1, 0.2, 0.4]) / 3
    assert described["mean"]["anchor_weights"] == [1.0, 0.0]
    assert all(d["bytes_down"] > 1000 for d in described["devices"])


# Noised statistics.

NOISE = 0.5
BOUND = noise_bound(noise_variance(NOISE))


def noised(vector: tuple[int, ...], release: int = 1) -> Answers:
    return says(noised_to_content(NoisedStatistics(release, vector)))


HONEST = (2_500, 7_500, 10_000, 0, 2_500, 4_000)


def gather_those(script: dict[int, Answers]) -> Exchange[NoisedStatistics]:
    return gather_noised(
        ScriptedGrid(script),
        1,
        NOISE,
        experts=2,
        anchors=2,
        nodes=tuple(script),
        needed=1,
        deadline_seconds=0.3,
    )


@pytest.mark.parametrize(
    "answers",
    [
        noised((*HONEST, 1)),
        noised(HONEST[:-1]),
        noised(HONEST, release=2),
        noised((10_001 + BOUND, *HONEST[1:])),
        noised((-1 - BOUND, *HONEST[1:])),
        noised((*HONEST[:-1], 5_001 + BOUND)),
        noised((10_000 + BOUND, 10_000 + BOUND, *HONEST[2:])),
        noised((*HONEST[:2], -BOUND, -BOUND, *HONEST[4:])),
        noised((2**40, *HONEST[1:])),
        noised((2**41, *HONEST[1:])),
        good,
        silent,
        in_the_name_of_another,
        fails(113, "secret text"),
    ],
)
def test_a_noised_answer_that_is_none_costs_its_device_alone(answers: Answers) -> None:
    found = gather_those({1: noised(HONEST), 2: answers, 3: noised(HONEST)})
    assert list(found.answers) == [1, 3]
    assert {entry.node for entry in found.refused} == {2}
    assert "secret" not in str(found.refused)


def installed_by(nodes: tuple[int, ...]) -> Exchange[None]:
    return Exchange(
        nodes, dict.fromkeys(nodes), (), dict.fromkeys(nodes, 10), dict.fromkeys(nodes, 0)
    )


def test_a_noised_round_says_what_it_cost_and_what_all_have_cost() -> None:
    config = PrivacyConfig(mode="local", epsilon=30.0, delta=1e-6)
    found = gather_those({1: noised(HONEST), 2: noised(HONEST)})
    privacy = RoundPrivacy(config, NOISE, noise_variance(NOISE), (NOISE, 2.0))
    record = describe_noised(installed_by((1, 2, 3)), found, 2, privacy)
    assert (record["asked"], record["answered"]) == (3, 2)
    assert record["mean"]["expert_weights"] == pytest.approx([0.25, 0.75])
    assert record["mean"]["best_similarity"] == pytest.approx(0.5)
    assert record["mean"]["entropy"] == pytest.approx(0.8)
    said = record["privacy"]
    costs = [LedgerEntry(k, "local", noise, "") for k, noise in enumerate((NOISE, 2.0, NOISE))]
    assert said["epsilon_of_round"] == spent(costs[:1], 1e-6)
    assert said["epsilon_in_total"] == spent(costs, 1e-6) > said["epsilon_of_round"]
    # sigma is half the sensitivity: sqrt(21) / 4 of a weight; the mean of two has 1 / sqrt(2) of it
    assert said["noise_of_mean"] == pytest.approx(math.sqrt(21) / 4 / math.sqrt(2), rel=1e-6)
    assert [set(device) for device in record["devices"]] == [{"node", "bytes_down", "bytes_up"}] * 2


@pytest.mark.parametrize(
    ("total", "said"),
    [
        ([5_000, 15_000, 20_000, 0, 5_000, 8_000], "taken"),
        (None, "lost"),
        ([2**50, 15_000, 20_000, 0, 5_000, 8_000], "implausible"),
    ],
)
def test_a_summed_round_has_a_mean_if_the_sum_can_be_believed(
    total: list[int] | None, said: str
) -> None:
    config = PrivacyConfig(mode="central")
    opened = Opened(None if total is None else tuple(total), (1, 2), (), () if total else (2,))
    summed = SecureSum(opened, 2, 3, (Refused(3, "x"),), {1: 5, 2: 5}, {1: 7, 2: 7})
    record = describe_sum(installed_by((1, 2, 3)), summed, 2, RoundPrivacy(config, 1.0, 100, ()))
    assert (record["sum"], record["joined"], record["answered"]) == (said, 3, 2)
    assert record["refused"] == [{"node": 3, "reason": "x"}]
    assert [device["bytes_up"] for device in record["devices"]] == [7, 7]
    if said == "taken":
        assert record["mean"]["expert_weights"] == pytest.approx([0.25, 0.75])
    else:
        assert record["mean"] is None
