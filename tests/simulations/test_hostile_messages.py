"""Ten thousand hostile questions and as many hostile answers, over the wire into the real doors.

Each is a genuine message with one thing changed, past Flower's own checks, and then serialised and
read again as Flower does. A question goes to a device that would answer the genuine one; an answer
goes to a server that asks for it, beside the genuine one of another device.
"""

import itertools
import math
import random
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from client.boundary import answer
from client.device import Device
from client.ledger import ledger
from client.seal import Seal
from client.vault import Vault
from server.exchange import Exchange, exchange
from server.rounds import broadcast_release, gather_noised, gather_statistics
from shared.base_model import BaseModel
from shared.config import PrivacyConfig
from shared.errors import MesofedError
from shared.flower_internals import (
    Run,
    become_server,
    content_from_bytes,
    content_to_bytes,
    empty_run,
    name_message,
    over_the_wire,
)
from shared.privacy import calibrate
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    ROUTER_STATISTICS,
    ProtocolError,
    noised_request,
    release_to_content,
    statistics_request,
)
from shared.record_form import Field, RecordForm
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    Session,
    read_reply,
    request_content,
)
from shared.secure_aggregation.server_session import ServerSession
from shared.wire import BY_TYPE

MESSAGES = 10_000
NOISE = calibrate(8.0, 1e-5, 1)
ME, PEERS = 1, (2, 3, 4)
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "honest_share": 1.0, "minimum_devices": 4}


@dataclass(frozen=True)
class Door:
    """A device that is about to be asked a genuine question, and its genuine answer.

    Attributes
    ----------
    check : callable
        What else the server refuses of an answer to it.
    """

    device: Device
    request: str
    question: RecordDict
    reply: RecordDict
    check: Callable[[Any], object] = lambda said: None


@pytest.fixture(scope="module")
def doors(federation: Any, base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[Door]:
    """A device of each privacy mode, at each question that it may be asked."""
    folder, config = tmp_path_factory.mktemp("doors"), federation.config
    vault = Vault(folder / "before", Seal(bytes(32)))
    vault.trust(federation.server_key)
    vault.move_in(federation.people.device[0])
    bring = release_to_content(federation.release_files(1), 1)
    found: list[Door] = []

    def door(before: Device, request: str, question: RecordDict, **more: Any) -> Device:
        """Keep a device as it is before a question; return it as it is after."""
        after = folder / f"{len(found)}"
        shutil.copytree(before.vault.folder, after)
        device = replace(before, vault=Vault(after, before.vault.seal))
        reply = answer(device, request, question)
        found.append(Door(before, request, question, reply, **more))
        return device

    installed = {}
    for mode in ("off", "local", "central"):
        privacy = PrivacyConfig.model_validate({"mode": mode, **PRIVACY})
        fresh = Device(base, vault, (), config.private, config.seed, privacy)
        installed[mode] = door(fresh, INSTALL_RELEASE, bring)
    door(installed["off"], ROUTER_STATISTICS, statistics_request(1))
    door(installed["local"], NOISED_STATISTICS, noised_request(1, NOISE))

    session, device = Session(1, 1, secrets.token_bytes(32), NOISE), installed["central"]
    server, others = ServerSession(session, 4, 7), {}
    device = door(device, KEYS, request_content(session))
    others = {node: DeviceSession(session, secrets.token_bytes(32)) for node in PEERS}
    keys = {node: state.keys() for node, state in others.items()}
    server, _ = server.advertise({ME: read_reply(KEYS, found[-1].reply), **keys})  # type: ignore[dict-item]

    dealing = server
    device = door(
        device,
        SHARES,
        request_content(session, server.roster(ME)),
        check=lambda said: dealing.check_dealt(ME, said),
    )
    dealt: dict[int, Any] = {ME: read_reply(SHARES, found[-1].reply)}
    for node in PEERS:
        others[node], dealt[node] = others[node].deal(server.roster(node), 4)
    server = masking = server.deal(dealt)

    device = door(
        device, MASKED, request_content(session, server.delivery(ME)), check=masking.check_masked
    )
    masked: dict[int, Any] = {ME: read_reply(MASKED, found[-1].reply)}
    for node in PEERS:
        others[node], masked[node] = others[node].masked(server.delivery(node), [0] * 7)
    server = opening = server.mask(masked)
    door(
        device,
        UNMASK,
        request_content(session, server.survivors(ME)),
        check=lambda said: opening.check_revealed(ME, said),
    )
    return found


def unchecked(record: Any, fields: dict[str, Any]) -> Any:
    """Write fields past Flower's own checks, as a hostile peer would."""
    made = type(record)()
    made.__dict__["_data"] = fields
    return made


def broken_value(field: Field, value: Any, rng: random.Random) -> Any:
    """Return a value that the field's form does not admit."""
    other = ["text", True, None, {"a": 1}, [["x"]], float("nan"), [float("inf")], b"", [b"x"]]
    if field.kind == "bytes":
        longer = field.size * (field.most + 1)
        other += [value + b"x", value + bytes(longer), "x" * len(value), list(value), 7]
        if field.size > 1 and value:
            other.append(value[:-1])
        if field.least > 0:
            other.append(b"")
        else:
            other = [item for item in other if item != b""]
        return rng.choice(other)
    number = int if field.kind.startswith("int") else float
    beyond = [number(field.low - 1), number(field.high + 1), math.nan, -math.inf, 10**30]
    swapped = float(field.high) if number is int else int(field.low)
    if not field.kind.endswith("s"):
        return rng.choice([*other, *beyond, swapped, [value], b"1"])
    at = rng.randrange(len(value))
    one = [*value[:at], rng.choice([*beyond, swapped, True, None, "x"]), *value[at + 1 :]]
    return rng.choice([*other, one, one, one, [], value * (field.most + 1), tuple(value)])


def broken(content: RecordDict, forms: tuple[RecordForm, ...], rng: random.Random) -> RecordDict:
    """Return content that differs from the declared form in one place."""
    made = RecordDict(dict(content))
    form = rng.choice([form for form in forms if isinstance(form.fields, tuple)])
    record: Any = content[form.name]
    fields = dict(record)
    assert isinstance(form.fields, tuple)
    field = rng.choice(form.fields)
    move = rng.randrange(9)
    if move == 0:
        del made[form.name]
    elif move == 1:
        extra = rng.choice(["user_lora", "round2", "", "Session", form.name.upper()])
        made[extra] = rng.choice(
            [ConfigRecord(), MetricRecord({"a": 1}), ArrayRecord({"w": Array(np.ones(3))})]
        )
    elif move == 2:
        made[form.name + "s"] = made[form.name]
        del made[form.name]
    elif move == 3:
        wrong = MetricRecord if isinstance(record, ConfigRecord) else ConfigRecord
        del made[form.name]  # or Flower warns
        made[form.name] = unchecked(wrong(), fields)
    elif move == 4:
        del fields[field.name]
        made[form.name] = unchecked(record, fields)
    elif move == 5:
        made[form.name] = unchecked(record, {**fields, "more": rng.choice([1, "x", b"x", 1.0])})
    elif move == 6:
        fields[field.name.replace("-", "_") + "_"] = fields.pop(field.name)
        made[form.name] = unchecked(record, fields)
    else:
        fields[field.name] = broken_value(field, fields[field.name], rng)
        made[form.name] = unchecked(record, fields)
    return made


def broken_files(content: RecordDict, rng: random.Random) -> RecordDict:
    """Return a release that differs from a genuine one in one file."""
    record = content["release"]
    assert isinstance(record, ArrayRecord)
    files = dict(record)
    name = rng.choice(sorted(files))
    array = files.pop(name)
    data = bytearray(array.data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    other: dict[str, Array] = rng.choice(
        [
            {},
            {f"../{name}": array},
            {name: array, "notes.json": array},
            {name: Array(array.dtype, array.shape, array.stype, bytes(data))},
            {name: Array(array.dtype, array.shape, array.stype, array.data[:-1])},
            {name: Array("float32", array.shape, array.stype, array.data)},
            {name: Array(array.dtype, (*array.shape, 1), array.stype, array.data)},
            {name: Array(array.dtype, array.shape, "torch.pickle", array.data)},
            {name: Array(array.dtype, (0,), array.stype, b"")},
        ]
    )
    return RecordDict({**content, "release": ArrayRecord({**files, **other})})


def as_it_arrives(content: RecordDict) -> RecordDict | None:
    """Return content after the wire; None if Flower cannot write it, or makes another of it.

    Flower turns a tuple into a list, and a True among whole numbers into 1.
    """
    try:
        arrived = content_from_bytes(content_to_bytes(content))
    except Exception:
        return None
    return arrived if written(arrived) == written(content) else None


def written(content: RecordDict) -> dict[str, object]:
    """Return what content holds, each value with its type; NaN is NaN."""
    return {
        name: (
            type(record),
            {k: v if isinstance(v, Array) else repr(v) for k, v in record.items()},
        )
        for name, record in content.items()
    }


def hostile_questions(doors: list[Door], rng: random.Random) -> Iterator[tuple[Door, RecordDict]]:
    """Yield questions that reach a device as they were made."""
    while True:
        door = rng.choice(doors)
        if door.request == INSTALL_RELEASE and rng.random() < 0.5:
            made = broken_files(door.question, rng)
        else:
            made = broken(door.question, BY_TYPE[door.request].down, rng)
        content = as_it_arrives(made)
        if content is not None:
            yield door, content


def everything(vault: Vault) -> dict[str, bytes]:
    """Return every file of a vault: person, release, journal with its ledger, sessions."""
    return {
        str(path.relative_to(vault.folder)): path.read_bytes()
        for path in vault.folder.rglob("*")
        if path.is_file()
    }


def test_ten_thousand_hostile_questions_get_no_answer_and_leave_a_vault_as_it_was(
    doors: list[Door],
) -> None:
    before = [everything(door.device.vault) for door in doors]
    asked, reasons = dict.fromkeys((door.request for door in doors), 0), set()
    for door, content in itertools.islice(hostile_questions(doors, random.Random(2)), MESSAGES):
        # Anything but an error that is ours would end the test.
        with pytest.raises(MesofedError) as caught:
            answer(door.device, door.request, content)
        if isinstance(caught.value, ProtocolError):
            reasons.add(caught.value.reason)
        asked[door.request] += 1
    assert [everything(door.device.vault) for door in doors] == before
    assert min(asked.values()) > MESSAGES // 20
    # As many texts as the table can make, whatever came.
    assert 20 < len(reasons) < 80
    for door in doors:  # each would have answered the genuine question, and does
        paid = ledger(door.device.vault)
        assert answer(door.device, door.request, door.question).keys() == door.reply.keys()
        assert len(ledger(door.device.vault)) - len(paid) == (
            door.request in (NOISED_STATISTICS, MASKED)
        )


class Devices(Grid):
    """An engine whose every node has its answer ready; it comes as it comes over the wire."""

    def __init__(self, replies: dict[int, RecordDict]) -> None:
        become_server(1)
        self.replies, self.numbers = replies, itertools.count()
        self.inbox: dict[str, Message] = {}

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return empty_run(1)

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.replies)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"m{next(self.numbers)}")
            name_message(message, ids[-1])
            reply = Message(self.replies[message.metadata.dst_node_id], reply_to=message)
            self.inbox[ids[-1]] = over_the_wire(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.inbox.pop(name) for name in message_ids if name in self.inbox]

    def send_and_receive(self, *args: Any, **options: Any) -> Iterable[Message]:
        raise NotImplementedError


def asked_for(door: Door, replies: dict[int, RecordDict]) -> Exchange[Any]:
    """Let a server ask its question of so many devices."""
    grid, request = Devices(replies), door.request
    more: dict[str, Any] = {"nodes": tuple(replies), "needed": 1, "deadline_seconds": 60.0}
    if request == INSTALL_RELEASE:
        return broadcast_release(grid, {"manifest.json": b"{}"}, 1, **more)
    if request == ROUTER_STATISTICS:
        return gather_statistics(grid, 1, experts=2, anchors=3, **more)
    if request == NOISED_STATISTICS:
        return gather_noised(grid, 1, NOISE, experts=2, anchors=3, **more)

    def read(node: int, content: RecordDict) -> object:
        said = read_reply(request, content)
        door.check(said)
        return said

    return exchange(grid, "add to a sum", request, lambda node: door.question, read, **more)


def hostile_replies(door: Door, rng: random.Random) -> Iterator[RecordDict]:
    """Yield answers that reach a server as they were made."""
    while True:
        if door.request == INSTALL_RELEASE:  # the genuine one is empty
            record = rng.choice(
                [
                    ConfigRecord({"a": "b"}),
                    MetricRecord({"a": [1.0]}),
                    ArrayRecord(),
                    MetricRecord(),
                ]
            )
            made = RecordDict({rng.choice(["", "round", "release", "user_lora"]): record})
        else:
            made = broken(door.reply, BY_TYPE[door.request].up, rng)
        content = as_it_arrives(made)
        if content is not None:
            yield content


def test_ten_thousand_hostile_answers_are_refused_beside_a_genuine_one(doors: list[Door]) -> None:
    rng, reasons, refused = random.Random(1), set(), 0
    doors = list({door.request: door for door in doors}.values())
    while refused < MESSAGES:
        door = rng.choice(doors)
        replies = dict(enumerate(itertools.islice(hostile_replies(door, rng), 100), 2))
        found = asked_for(door, {ME: door.reply, **replies})
        assert list(found.answers) == [ME]
        assert [entry.node for entry in found.refused] == list(replies)
        reasons |= {entry.reason for entry in found.refused}
        refused += len(replies)
    assert 20 < len(reasons) < 60
