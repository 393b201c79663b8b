"""A secure sum over an engine: exact without those who go, and resumed where it was left."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from server.exchange import NO_ANSWER, TOO_LARGE
from server.refusals import QuorumError
from server.secure_round import LOST, WRONG_SHARE, SecureSum, gather_sum, new_session
from shared.errors import MesofedError
from shared.protocol import REASONS, Refusal
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SEALED_BYTES,
    SHARES,
    UNMASK,
    Dealt,
    read_request,
    reply_content,
)
from shared.secure_aggregation.server_session import NO_KEY, ServerSession
from simulations.local_grid import LocalGrid

LENGTH = 6
Interfere = Callable[[int, str, RecordDict], RecordDict | None]


class Devices:
    """Devices that keep their sessions in memory, and a test's hand on what they answer."""

    def __init__(self, count: int) -> None:
        rng = random.Random(3)
        self.count = count
        self.vectors = {
            node: [rng.randrange(-9_999, 9_999) for _ in range(LENGTH)]
            for node in range(1, count + 1)
        }
        self.sessions: dict[int, DeviceSession] = {}
        self.interfere: Interfere = lambda node, stage, content: content
        self.asked: list[tuple[int, str]] = []

    def answer(self, node: int, stage: str, content: RecordDict) -> RecordDict:
        session, body = read_request(stage, content)
        state: Any = self.sessions.setdefault(
            node, DeviceSession(session, node.to_bytes(32, "big"))
        )
        if stage == KEYS:
            return reply_content(state.keys())
        if stage == SHARES:
            self.sessions[node], said = state.deal(body, 3)
        elif stage == MASKED:
            self.sessions[node], said = state.masked(body, self.vectors[node])
        else:
            self.sessions[node], said = state.reveal(body)
        return reply_content(said)

    def grid(self) -> LocalGrid:
        app = ClientApp()

        def handle(message: Message, context: Context) -> Message:
            node, stage = context.node_id, message.metadata.message_type
            self.asked.append((node, stage))
            content = self.interfere(node, stage, self.answer(node, stage, message.content))
            if content is None:
                return Message(Error(int(Refusal.DEVICE_FAILED), "x"), reply_to=message)
            return Message(content, reply_to=message)

        for stage in (KEYS, SHARES, MASKED, UNMASK):
            app.query(stage.removeprefix("query."))(handle)
        return LocalGrid(app, self.count)

    def sum(self, file: Path, needed: int = 3, deadline: float = 20.0) -> SecureSum:
        return gather_sum(
            self.grid(),
            file,
            lambda: new_session(1, 4, 1.0, needed=needed, length=LENGTH),
            nodes=tuple(range(1, self.count + 1)),
            deadline_seconds=deadline,
        )

    def truth(self, nodes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(sum, zip(*(self.vectors[node] for node in nodes), strict=True)))


def test_the_sum_comes_over_an_engine(tmp_path: Path) -> None:
    devices = Devices(7)
    found = devices.sum(tmp_path / "r4.json")
    assert found.opened.devices == (1, 2, 3, 4, 5, 6, 7)
    assert found.opened.total == devices.truth(found.opened.devices)
    assert found.refused == ()
    assert all(1_000 < up < 20_000 for up in found.bytes_up.values())
    assert all(1_000 < down < 20_000 for down in found.bytes_down.values())


@pytest.mark.parametrize("stage", [KEYS, SHARES, MASKED])
def test_a_device_that_fails_at_a_stage_is_not_in_the_sum(tmp_path: Path, stage: str) -> None:
    devices = Devices(7)
    devices.interfere = lambda node, s, content: None if (node, s) == (3, stage) else content
    found = devices.sum(tmp_path / "r4.json")
    assert found.opened.devices == (1, 2, 4, 5, 6, 7)
    assert found.opened.total == devices.truth(found.opened.devices)
    assert [(e.node, e.reason) for e in found.refused] == [(3, REASONS[Refusal.DEVICE_FAILED])]


def test_a_device_that_goes_last_is_in_the_sum(tmp_path: Path) -> None:
    devices = Devices(7)
    devices.interfere = lambda node, s, content: None if (node, s) == (3, UNMASK) else content
    found = devices.sum(tmp_path / "r4.json")
    assert found.opened.devices == (1, 2, 3, 4, 5, 6, 7)
    assert found.opened.total == devices.truth(found.opened.devices)


def garbage(node: int, stage: str, content: RecordDict) -> RecordDict:
    """Nodes 1 to 4 answer nonsense, each at a stage of its own."""
    record: Any = next(iter(content.values()))
    fields = dict(record)
    if (node, stage) == (1, KEYS):
        fields["mask-key"] = bytes(32)
    elif (node, stage) == (2, SHARES):
        return RecordDict({"secagg-shares": ConfigRecord({**fields, "user_lora": b"x"})})
    elif (node, stage) == (3, MASKED):
        fields["vector"] = fields["vector"][:-8]
    elif (node, stage) == (4, UNMASK):
        fields["seed-shares"] = bytes(len(fields["seed-shares"]))
    elif (node, stage) == (5, MASKED):
        return RecordDict({"secagg-masked": ConfigRecord({"vector": bytes(5_000)})})
    else:
        return content
    return RecordDict({next(iter(content)): ConfigRecord(fields)})


def test_nonsense_costs_those_who_say_it(tmp_path: Path) -> None:
    devices = Devices(16)
    devices.interfere = garbage
    found = devices.sum(tmp_path / "r4.json")
    assert found.opened.devices == (4, *range(6, 17))
    assert found.opened.total == devices.truth(found.opened.devices)
    assert [(entry.node, entry.reason) for entry in found.refused] == [
        (1, NO_KEY),
        (2, "secagg-shares: expected the fields seed-commitment, sealed, commitments"),
        (3, "secagg-masked: expected a vector of the release's length"),
        (4, WRONG_SHARE),
        (5, TOO_LARGE),
    ]


def test_shares_that_are_none_lose_the_sum_but_not_the_round(tmp_path: Path) -> None:
    devices = Devices(6)

    def deal_garbage(node: int, stage: str, content: RecordDict) -> RecordDict:
        if (node, stage) != (2, SHARES):
            return content
        record: Any = content["secagg-shares"]
        said = Dealt.from_fields(record)
        return reply_content(
            Dealt(said.seed_commitment, (bytes(SEALED_BYTES),) * 5, said.commitments)
        )

    devices.interfere = deal_garbage
    found = devices.sum(tmp_path / "r4.json")
    assert found.opened.total is None
    assert [(entry.node, entry.reason) for entry in found.refused] == [(2, LOST)]


class StoppedError(RuntimeError):
    """The server's process ends."""


@contextmanager
def stopping_at(
    monkeypatch: pytest.MonkeyPatch, stage: str, node: int | None = None
) -> Iterator[None]:
    """Stop the server as it is about to ask for a stage; of a node, or of whoever is first."""
    real = LocalGrid.push_messages

    def stops(grid: LocalGrid, messages: Any) -> list[str]:
        messages = list(messages)
        metadata = messages[0].metadata
        if metadata.message_type == stage and node in (None, metadata.dst_node_id):
            raise StoppedError
        return real(grid, messages)

    with monkeypatch.context() as patch:
        patch.setattr(LocalGrid, "push_messages", stops)
        yield


@pytest.mark.parametrize("stage", [KEYS, SHARES, MASKED, UNMASK])
def test_a_killed_server_goes_on_with_the_stage_it_was_at(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, file = Devices(6), tmp_path / "r4.json"
    with stopping_at(monkeypatch, stage, 4), pytest.raises(StoppedError):
        devices.sum(file)
    before = ServerSession.from_bytes(file.read_bytes())
    done = set(devices.asked)
    found = devices.sum(file)
    assert ServerSession.from_bytes(file.read_bytes()).session == before.session
    assert found.opened.total == devices.truth((1, 2, 3, 4, 5, 6))
    # Stages that were over are not gone through again.
    stages = [KEYS, SHARES, MASKED, UNMASK]
    over = stages[: stages.index(stage)]
    assert all(devices.asked.count((node, s)) == 1 for node in range(1, 7) for s in over)
    assert done


def test_what_was_refused_before_the_server_was_killed_is_told_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, file = Devices(16), tmp_path / "r4.json"
    failing = {(1, KEYS), (2, SHARES), (3, MASKED)}

    def interfere(node: int, stage: str, content: RecordDict) -> RecordDict | None:
        if (node, stage) == (4, KEYS):
            return garbage(1, stage, content)
        return None if (node, stage) in failing else content

    devices.interfere = interfere
    with stopping_at(monkeypatch, UNMASK), pytest.raises(StoppedError):
        devices.sum(file)
    found = devices.sum(file)
    assert found.opened.total == devices.truth(tuple(range(5, 17)))
    failed = REASONS[Refusal.DEVICE_FAILED]
    assert [(entry.node, entry.reason) for entry in found.refused] == [
        (1, failed),
        (2, failed),
        (3, failed),
        (4, NO_KEY),
    ]


def test_a_missed_quorum_tells_of_the_stages_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "flwr")  # a command of Mesofed in this process quiets it
    devices = Devices(6)
    failing = {(1, KEYS), (2, MASKED), (3, MASKED)}
    devices.interfere = lambda node, s, content: None if (node, s) in failing else content
    with pytest.raises(QuorumError) as caught:
        devices.sum(tmp_path / "r4.json", needed=4)
    record = caught.value.record()
    assert (record["needed"], record["asked"], record["answered"]) == (4, 5, 3)
    assert [entry["node"] for entry in record["refused"]] == [1, 2, 3]
    reason = REASONS[Refusal.DEVICE_FAILED]
    assert [record.getMessage() for record in caplog.records] == [
        f"Refused, answer {KEYS} of release 4: 1 x {reason} (node 1)",
        f"Refused, answer {MASKED} of release 4: 2 x {reason} (node 2, 3)",
    ]


def test_too_few_keys_tell_who_sent_none(tmp_path: Path) -> None:
    devices = Devices(4)
    devices.interfere = lambda node, s, content: None if node > 2 else content
    with pytest.raises(QuorumError, match="devices in a secure sum; got 2") as caught:
        devices.sum(tmp_path / "r4.json", needed=2)
    assert [entry.node for entry in caught.value.refused] == [3, 4]


def test_too_few_devices_end_the_round_and_it_can_be_resumed(tmp_path: Path) -> None:
    devices, file = Devices(6), tmp_path / "r4.json"
    devices.interfere = lambda node, s, content: None if s == MASKED and node in (1, 2) else content
    with pytest.raises(MesofedError, match=r"at least 5 of 6 devices to answer query\.secagg_mask"):
        devices.sum(file, needed=5)
    devices.interfere = lambda node, s, content: content
    found = devices.sum(file, needed=5)
    assert found.opened.total == devices.truth((1, 2, 3, 4, 5, 6))


def test_a_device_that_hangs_holds_no_stage_up_beyond_its_deadline(tmp_path: Path) -> None:
    import time

    devices = Devices(5)
    hung: list[int] = []

    def hangs(node: int, stage: str, content: RecordDict) -> RecordDict:
        if (node, stage) == (2, MASKED):
            hung.append(node)
            time.sleep(3)
        return content

    devices.interfere = hangs
    started = time.monotonic()
    found = devices.sum(tmp_path / "r4.json", deadline=1.0)
    assert time.monotonic() - started < 3
    assert [(e.node, e.reason) for e in found.refused] == [(2, NO_ANSWER)]
    assert found.opened.total == devices.truth((1, 3, 4, 5))
    assert hung == [2]


def test_every_session_is_its_own() -> None:
    one, other = (new_session(2**64 - 1, 1, 1.0, needed=3, length=4) for _ in range(2))
    assert one.session.nonce != other.session.nonce
    assert 0 <= one.session.run < 2**63
