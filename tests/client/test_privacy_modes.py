"""What a device answers in each privacy mode, what it costs, and what a kill in between changes."""

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.boundary import answer
from client.device import Device
from client.journal import Journal
from client.ledger import ledger
from client.vault import Vault
from shared.config import PrivacyConfig, PrivateConfig
from shared.errors import MesofedError
from shared.flower_internals import content_from_bytes, content_to_bytes
from shared.noise import discrete_gaussian, simulated_randomness
from shared.privacy import calibrate, noise_variance, share_variance
from shared.protocol import (
    NOISED_STATISTICS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    RouterStatistics,
    noised_from_content,
    noised_request,
    statistics_from_content,
    statistics_request,
)
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    Body,
    Session,
    read_reply,
    request_content,
)
from shared.secure_aggregation.server_session import ServerSession
from shared.statistic_vector import encode, noise_bound, within_bounds
from shared.wire import MESSAGES

STATISTICS = RouterStatistics(1, (0.75, 0.25), (0.5, 0.25, 0.25), 0.5, 0.8)
ENOUGH = PrivacyConfig(mode="local", epsilon=8.0, delta=1e-5)
NOISE = calibrate(8.0, 1e-5, 1)


@dataclass(frozen=True)
class Known(Device):
    """A device that needs no model to know its statistics."""

    def statistics(self) -> RouterStatistics:
        return replace(STATISTICS, release=self.vault.installed() or 0)


def device(folder: Path, privacy: PrivacyConfig, release: int = 1, **more: Any) -> Known:
    vault = Vault(folder)
    vault.sent.begin()
    if vault.installed() != release:
        vault.install(release, {"manifest.json": b"{}"})
    return Known(cast("Any", None), vault, (), PrivateConfig(), 7, privacy, **more)


def refusal(act: Callable[[], object]) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        act()
    return caught.value.refusal


def test_the_privacy_mode_is_which_questions_a_device_answers(tmp_path: Path) -> None:
    session = Session(1, 1, b"n" * 32, 1.0)
    questions = {
        ROUTER_STATISTICS: statistics_request(1),
        NOISED_STATISTICS: noised_request(1, NOISE),
        KEYS: request_content(session),
    }
    for mode, allowed in (
        ("off", ROUTER_STATISTICS),
        ("local", NOISED_STATISTICS),
        ("central", KEYS),
    ):
        one = device(tmp_path / mode, replace_mode(ENOUGH, mode))
        for message_type, content in questions.items():
            if message_type == allowed:
                assert answer(one, message_type, content)
            else:
                assert refusal(lambda: answer(one, message_type, content)) is Refusal.OTHER_PRIVACY  # noqa: B023
    assert {m.type for m in MESSAGES if "off" in m.modes} == {
        "train.install_release",
        ROUTER_STATISTICS,
    }


def replace_mode(privacy: PrivacyConfig, mode: str) -> PrivacyConfig:
    return PrivacyConfig.model_validate({**privacy.model_dump(), "mode": mode})


def test_local_noise_is_on_every_number_and_within_the_wire_s_bounds(tmp_path: Path) -> None:
    one = device(tmp_path, ENOUGH, randomness=simulated_randomness(7, "0"))
    sent = noised_from_content(answer(one, NOISED_STATISTICS, noised_request(1, NOISE)))
    generator, variance = simulated_randomness(7, "0")(1), noise_variance(NOISE)
    wanted = [x + discrete_gaussian(variance, generator) for x in encode(STATISTICS)]
    assert list(sent.vector) == wanted
    assert within_bounds(sent.vector, 2, 3, noise_bound(variance))
    assert len(set(map(int.__sub__, sent.vector, encode(STATISTICS)))) == 7
    (entry,) = ledger(one.vault)
    assert (entry.release, entry.mechanism, entry.noise_multiplier) == (1, "local", NOISE)


def test_the_noise_of_a_real_device_is_nobody_s_to_repeat(tmp_path: Path) -> None:
    sent = [
        noised_from_content(
            answer(device(tmp_path / name, ENOUGH), NOISED_STATISTICS, noised_request(1, NOISE))
        ).vector
        for name in "ab"
    ]
    assert sent[0] != sent[1]
    assert isinstance(device(tmp_path / "a", ENOUGH).randomness(1), random.SystemRandom)


def test_statistics_leave_once_with_one_noise_and_the_same_question_gets_the_same_bytes(
    tmp_path: Path,
) -> None:
    first = answer(device(tmp_path, ENOUGH), NOISED_STATISTICS, noised_request(1, NOISE))
    again = answer(device(tmp_path, ENOUGH), NOISED_STATISTICS, noised_request(1, NOISE))
    assert again == first
    assert len(ledger(Vault(tmp_path))) == 1
    with pytest.raises(MesofedError, match="left this device before"):
        answer(device(tmp_path, ENOUGH), NOISED_STATISTICS, noised_request(1, 2 * NOISE))
    assert len(Vault(tmp_path).sent.entries()) == 1


def test_what_has_left_without_noise_cannot_be_asked_for_with_it(tmp_path: Path) -> None:
    answer(device(tmp_path, PrivacyConfig(mode="off")), ROUTER_STATISTICS, statistics_request(1))
    noised = device(tmp_path, ENOUGH)
    with pytest.raises(MesofedError, match="without noise, in privacy mode off"):
        answer(noised, NOISED_STATISTICS, noised_request(1, NOISE))
    assert ledger(noised.vault) == ()
    # In a secure sum it says so before the others send anything.
    summed = device(tmp_path, replace_mode(ENOUGH, "central"))
    with pytest.raises(MesofedError, match="without noise, in privacy mode off"):
        answer(summed, KEYS, request_content(Session(1, 1, b"n" * 32, 1.0)))
    assert summed.vault.session(1) is None
    noised = device(tmp_path, ENOUGH, release=2)
    answer(noised, NOISED_STATISTICS, noised_request(2, NOISE))
    assert [entry.release for entry in ledger(noised.vault)] == [2]


def test_a_device_stops_when_its_budget_is_spent_whatever_the_server_says(tmp_path: Path) -> None:
    noise = calibrate(8.0, 1e-5, 3)
    for release in (1, 2, 3):
        one = device(tmp_path, ENOUGH, release)
        answer(one, NOISED_STATISTICS, noised_request(release, noise))
    fourth = device(tmp_path, ENOUGH, 4)
    assert (
        refusal(lambda: answer(fourth, NOISED_STATISTICS, noised_request(4, noise)))
        is Refusal.BUDGET_SPENT
    )
    assert [entry.release for entry in ledger(fourth.vault)] == [1, 2, 3]
    # What has left may leave again, for it costs nothing.
    assert answer(fourth, NOISED_STATISTICS, noised_request(3, noise))
    # Less noise than the budget has room for is refused at once.
    fresh = device(tmp_path / "fresh", ENOUGH)
    assert (
        refusal(lambda: answer(fresh, NOISED_STATISTICS, noised_request(1, 0.9 * NOISE)))
        is Refusal.BUDGET_SPENT
    )


def test_a_question_about_another_release_gets_no_answer(tmp_path: Path) -> None:
    one = device(tmp_path, ENOUGH)
    assert (
        refusal(lambda: answer(one, NOISED_STATISTICS, noised_request(2, NOISE)))
        is Refusal.OTHER_RELEASE
    )
    plain = device(tmp_path / "plain", PrivacyConfig())
    assert (
        refusal(lambda: answer(plain, ROUTER_STATISTICS, statistics_request(2)))
        is Refusal.OTHER_RELEASE
    )
    sent = statistics_from_content(answer(plain, ROUTER_STATISTICS, statistics_request(1)))
    assert sent == STATISTICS
    assert ledger(plain.vault) == ()


def test_a_damaged_ledger_stops_the_device(tmp_path: Path) -> None:
    one = device(tmp_path, ENOUGH)
    answer(one, NOISED_STATISTICS, noised_request(1, NOISE))
    (entry,) = one.vault.sent.journal.entries()
    one.vault.sent.journal.append({**entry, "ledger": {"release": 1}})
    with pytest.raises(MesofedError, match="privacy ledger"):
        answer(device(tmp_path, ENOUGH, 2), NOISED_STATISTICS, noised_request(2, NOISE))


def test_an_older_copy_of_the_journal_answers_nothing_again(tmp_path: Path) -> None:
    """A second answer to the same question, under fresh noise, would halve the noise."""
    one, noise = device(tmp_path, ENOUGH), calibrate(8.0, 1e-5, 2)
    answer(one, NOISED_STATISTICS, noised_request(1, noise))
    copy = one.vault.sent.journal.path.read_bytes()
    two = device(tmp_path, ENOUGH, 2)
    first = answer(two, NOISED_STATISTICS, noised_request(2, noise))
    newest = one.vault.sent.journal.path.read_bytes()
    one.vault.sent.journal.path.write_bytes(copy)
    for again in (two, device(tmp_path, ENOUGH, 2)):
        for release in (1, 2):
            with pytest.raises(MesofedError, match="an older copy"):
                answer(again, NOISED_STATISTICS, noised_request(release, noise))
        with pytest.raises(MesofedError, match="an older copy"):
            ledger(again.vault)
    one.vault.sent.journal.path.write_bytes(newest)
    assert answer(two, NOISED_STATISTICS, noised_request(2, noise)) == first


# Secure sums, with a new process for every message.

CENTRAL = PrivacyConfig(mode="central", epsilon=8.0, delta=1e-5, honest_share=1.0)


@dataclass
class Sum:
    """Devices 1, 2, ... whose every message opens the vault anew, and a server."""

    folder: Path
    devices: int = 5
    privacy: PrivacyConfig = CENTRAL
    nonce: bytes = b"n" * 32
    release: int = 1
    server: ServerSession = field(init=False)

    def __post_init__(self) -> None:
        self.server = ServerSession(Session(1, self.release, self.nonce, NOISE), 3, 7)

    def device(self, node: int) -> Known:
        return device(
            self.folder / str(node),
            self.privacy,
            self.release,
            randomness=simulated_randomness(7, str(node)),
        )

    def ask(self, node: int, message_type: str, body: Body | None = None) -> Any:
        content = request_content(self.server.session, body)
        return read_reply(message_type, answer(self.device(node), message_type, content))

    def everyone(self) -> range:
        return range(1, self.devices + 1)

    def advertise(self) -> None:
        self.server, _ = self.server.advertise({n: self.ask(n, KEYS) for n in self.everyone()})

    def deal(self) -> None:
        self.server = self.server.deal(
            {n: self.ask(n, SHARES, self.server.roster(n)) for n in self.everyone()}
        )

    def mask(self, nodes: range | None = None) -> None:
        self.server = self.server.mask(
            {
                n: self.ask(n, MASKED, self.server.delivery(n))
                for n in (self.everyone() if nodes is None else nodes)
            }
        )


def test_devices_whose_process_ends_after_each_message_give_an_exact_sum(tmp_path: Path) -> None:
    a_sum = Sum(tmp_path)
    a_sum.advertise()
    a_sum.deal()
    a_sum.mask()
    asked = {n: a_sum.server.survivors(n) for n in a_sum.everyone()}
    opened = a_sum.server.open({n: a_sum.ask(n, UNMASK, asked[n]) for n in asked})
    variance, expected = share_variance(NOISE, 3), [0] * 7
    for node in a_sum.everyone():
        generator = simulated_randomness(7, str(node))(1)
        for i, value in enumerate(encode(STATISTICS)):
            expected[i] += value + discrete_gaussian(variance, generator)
    assert opened.total == tuple(expected)
    for node in a_sum.everyone():
        vault = a_sum.device(node).vault
        (entry,) = ledger(vault)
        assert (entry.mechanism, entry.release) == ("central", 1)
        assert NOISE <= entry.noise_multiplier < 1.001 * NOISE
        # The round is over: its secrets are gone.
        assert vault.session(1) is None
        assert not (vault.folder / "sessions").exists()
        # The answer may be asked for again all the same.
        assert a_sum.ask(node, UNMASK, asked[node])


def test_no_answer_holds_the_vector_and_the_vault_keeps_its_secrets(tmp_path: Path) -> None:
    a_sum = Sum(tmp_path)
    a_sum.advertise()
    a_sum.deal()
    a_sum.mask()
    kept = a_sum.device(1).vault.session(1)
    assert kept is not None
    vector = DeviceSession.from_bytes(kept).vector
    assert vector is not None
    sent = b"".join(
        base64.b64decode(entry["content"]) for entry in a_sum.device(1).vault.sent.entries()
    )
    assert a_sum.server.masked[a_sum.server.nodes.index(1)].data in sent
    for value in (*vector, *encode(STATISTICS)):
        if value:
            assert (value % 2**64).to_bytes(8, "little") not in sent
    path = tmp_path / "1" / "sessions" / "r1.json"
    assert path.stat().st_mode & 0o077 == 0


def test_sums_are_not_begun_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is another one, so a server that begins ever new ones would fill the journal."""
    monkeypatch.setattr("client.secure_sum.MOST_SUMS", 3)
    one = device(tmp_path, CENTRAL)
    questions = [request_content(Session(1, 1, bytes([n]) * 32, 1.0)) for n in range(5)]
    for question in questions[:3]:
        answer(one, KEYS, question)
    for question in questions[3:]:
        with pytest.raises(MesofedError, match="at most 3 secure sums"):
            answer(one, KEYS, question)
    assert answer(one, KEYS, questions[2])
    assert [entry["times"] for entry in one.vault.sent.entries()] == [1, 1, 2]
    later = device(tmp_path, CENTRAL, release=2)
    assert answer(later, KEYS, request_content(Session(1, 2, b"n" * 32, 1.0)))


def test_another_session_may_begin_until_the_masked_vector_has_left(tmp_path: Path) -> None:
    first = Sum(tmp_path)
    first.advertise()
    first.deal()
    second = Sum(tmp_path, nonce=b"m" * 32)
    second.advertise()
    with pytest.raises(MesofedError, match="or one that is over"):
        first.mask()
    second.deal()
    second.mask()
    third = Sum(tmp_path, nonce=b"k" * 32)
    with pytest.raises(MesofedError, match="statistics are in one"):
        third.advertise()
    # The keys of the one that was given up are still on record; nothing more comes of them.
    first.advertise()
    with pytest.raises(MesofedError, match="or one that is over"):
        first.mask()


def test_two_sums_of_one_release_never_hold_the_same_person(tmp_path: Path) -> None:
    """Their difference would be one person's numbers under a share of the noise."""
    a_sum = Sum(tmp_path)
    a_sum.advertise()
    a_sum.deal()
    a_sum.mask()
    other = a_sum.server.delivery(1)
    fewer = replace(other, senders=other.senders[1:], sealed=other.sealed[1:])
    with pytest.raises(MesofedError):
        a_sum.ask(1, MASKED, fewer)
    asked = a_sum.server.survivors(1)
    a_sum.ask(1, UNMASK, asked)
    with pytest.raises(MesofedError):
        a_sum.ask(1, UNMASK, replace(asked, total=asked.total - 1))
    assert len(ledger(a_sum.device(1).vault)) == 1


def test_a_budget_that_is_spent_ends_sums_too(tmp_path: Path) -> None:
    a_sum = Sum(tmp_path, privacy=CENTRAL.model_copy(update={"epsilon": 7.5}))
    a_sum.advertise()
    a_sum.deal()
    assert refusal(lambda: a_sum.ask(1, MASKED, a_sum.server.delivery(1))) is Refusal.BUDGET_SPENT
    assert ledger(a_sum.device(1).vault) == ()


class Killed(BaseException):
    """The device's process ends."""


@pytest.mark.parametrize("message_type", [KEYS, SHARES, MASKED, UNMASK])
@pytest.mark.parametrize("moment", ["before the session is kept", "before it is sent", "after"])
def test_a_kill_at_any_moment_changes_nothing_of_what_is_said(
    tmp_path: Path, message_type: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_sum = Sum(tmp_path)

    def body() -> Body | None:
        return {
            KEYS: lambda: None,
            SHARES: lambda: a_sum.server.roster(1),
            MASKED: lambda: a_sum.server.delivery(1),
            UNMASK: lambda: a_sum.server.survivors(1),
        }[message_type]()

    stages = (KEYS, SHARES, MASKED, UNMASK)
    before_it = (a_sum.advertise, a_sum.deal, a_sum.mask)[: stages.index(message_type)]
    for act in before_it:
        act()

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    # The device draws from the system: what it says twice is the same because it is kept.
    monkeypatch.setattr(a_sum, "device", lambda node: device(tmp_path / str(node), CENTRAL))
    if moment == "after":
        before = a_sum.ask(1, message_type, body())
        sent = True
    else:
        before, sent = None, False
        with monkeypatch.context() as deadly:
            if moment == "before it is sent":
                deadly.setattr(Journal, "append", killed)
            else:
                deadly.setattr(Vault, "save_session", killed)
            with pytest.raises(Killed):
                a_sum.ask(1, message_type, body())
        kept = a_sum.device(1).vault.session(1)
    first = a_sum.ask(1, message_type, body())
    assert a_sum.ask(1, message_type, body()) == first
    if sent:
        assert first == before
    costs = ledger(a_sum.device(1).vault)
    assert len(costs) == (message_type in (MASKED, UNMASK))
    if moment == "before it is sent" and message_type == MASKED:
        assert kept == a_sum.device(1).vault.session(1)


def test_a_damaged_session_costs_the_device_the_round_and_nothing_else(tmp_path: Path) -> None:
    a_sum = Sum(tmp_path)
    a_sum.advertise()
    path = tmp_path / "1" / "sessions" / "r1.json"
    path.write_bytes(b"{")
    with pytest.raises(MesofedError, match="sits this round out"):
        a_sum.ask(1, SHARES, a_sum.server.roster(1))
    path.unlink()
    with pytest.raises(MesofedError, match="or one that is over"):
        a_sum.ask(1, SHARES, a_sum.server.roster(1))
    assert ledger(a_sum.device(1).vault) == ()


def test_a_new_release_ends_the_sum_of_the_old_one(tmp_path: Path) -> None:
    a_sum = Sum(tmp_path)
    a_sum.advertise()
    a_sum.deal()
    for node in a_sum.everyone():
        device(tmp_path / str(node), CENTRAL, release=2)
    old = answer_with(a_sum, 1, MASKED, release=2)
    assert refusal(old) is Refusal.OTHER_RELEASE


def answer_with(a_sum: Sum, node: int, message_type: str, release: int) -> Callable[[], Any]:
    content = request_content(a_sum.server.session, a_sum.server.delivery(node))
    one = device(a_sum.folder / str(node), CENTRAL, release)
    return lambda: answer(one, message_type, content)


def test_a_request_beyond_its_byte_budget_is_refused(tmp_path: Path) -> None:
    content = statistics_request(1)
    content["round"] = ConfigRecord({**content["round"], "more": "x" * 5_000})  # type: ignore[dict-item]
    one = device(tmp_path, PrivacyConfig())
    assert refusal(lambda: answer(one, ROUTER_STATISTICS, content)) is Refusal.MALFORMED_REQUEST
    large = RecordDict({**statistics_request(1), "pad": ConfigRecord({"x": b"x" * 10_000})})
    assert refusal(lambda: answer(one, ROUTER_STATISTICS, large)) is Refusal.MALFORMED_REQUEST
    assert one.vault.sent.entries() == []


def test_bytes_that_were_tampered_with_never_crash_a_device_nor_charge_it_twice(
    tmp_path: Path,
) -> None:
    """Three thousand requests with flipped, missing and added bytes, as a socket may bring them."""
    a_sum, rng = Sum(tmp_path, devices=4), random.Random(9)
    a_sum.advertise()
    requests = {
        SHARES: content_to_bytes(request_content(a_sum.server.session, a_sum.server.roster(1)))
    }
    a_sum.deal()
    requests[MASKED] = content_to_bytes(
        request_content(a_sum.server.session, a_sum.server.delivery(1))
    )
    a_sum.mask()
    requests[UNMASK] = content_to_bytes(
        request_content(a_sum.server.session, a_sum.server.survivors(1))
    )
    sessions = [a_sum.device(n).vault.session(1) or b"" for n in a_sum.everyone()]
    vectors = [DeviceSession.from_bytes(session).vector or () for session in sessions]
    one, told = a_sum.device(1), 0
    for _ in range(3_000):
        message_type = rng.choice(list(requests))
        data = bytearray(requests[message_type])
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(data))
            change = rng.randrange(8)
            if change > 1:
                data[at] ^= 1 << rng.randrange(8)
            elif change == 1:
                del data[at : at + rng.randint(1, 40)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 40))
        try:
            content = content_from_bytes(bytes(data))
        except Exception:  # the agent answers these without asking the device
            continue
        told += 1
        try:
            answer(one, message_type, content)
        except MesofedError:
            continue
    assert told > 500
    assert len(ledger(one.vault)) == 1
    opened = a_sum.server.open(
        {n: a_sum.ask(n, UNMASK, a_sum.server.survivors(n)) for n in a_sum.everyone() if n != 1}
    )
    assert opened.total == tuple(map(sum, zip(*vectors, strict=True)))
