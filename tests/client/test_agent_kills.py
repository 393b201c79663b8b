"""Kill -9 of the agent at random moments of a round: nothing is lost, nothing is said twice."""

import base64
import contextlib
import os
import random
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from client.agent import Agent
from client.agent_call import ask_agent
from client.agent_errors import error_journal
from client.device import Device
from client.ledger import ledger
from shared.config import PrivacyConfig
from shared.flower_internals import content_to_bytes
from shared.privacy import LedgerEntry, calibrate
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    RouterStatistics,
    noised_request,
    release_to_content,
    statistics_request,
)
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

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill cheaply")
Said = tuple[str, int, bytes]
QUESTIONS = {
    "off": (ROUTER_STATISTICS,),
    "local": (NOISED_STATISTICS,),
    "central": (KEYS, SHARES, MASKED, UNMASK),
}
PAID = {"local": NOISED_STATISTICS, "central": MASKED}
"""The question whose answer costs, by privacy mode."""
NOISE = calibrate(8.0, 1e-5, 2)
ME, PEERS = 1, (2, 3, 4, 5)


@dataclass
class Server:
    """What asks one device through two releases; the others of its secure sums are in memory."""

    mode: str
    files: dict[int, Any]
    received: list[Said] = field(default_factory=list)
    sums: dict[int, ServerSession] = field(init=False)
    totals: list[object] = field(default_factory=list)
    _asked: dict[tuple[str, int], Any] = field(default_factory=dict)
    _peers: dict[int, DeviceSession] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nonce = secrets.token_bytes(32)
        self.sums = {n: ServerSession(Session(1, n, nonce, NOISE), 5, 7) for n in self.files}

    @property
    def steps(self) -> list[tuple[str, int]]:
        requests = (INSTALL_RELEASE, *QUESTIONS[self.mode])
        return [(request, version) for version in self.files for request in requests]

    def ask(self, request: str, version: int) -> Any:
        """Return a question; who asks again asks the same."""
        if (request, version) not in self._asked:
            self._asked[request, version] = self._question(request, version)
        return self._asked[request, version]

    def take(self, request: str, version: int, reply: Any) -> None:
        new = (request, version) not in [said[:2] for said in self.received]
        self.received.append((request, version, content_to_bytes(reply)))
        if new and request in QUESTIONS["central"]:
            self._take(request, version, read_reply(request, reply))

    def _question(self, request: str, version: int) -> Any:
        if request == INSTALL_RELEASE:
            return release_to_content(self.files[version], version)
        if request == ROUTER_STATISTICS:
            return statistics_request(version)
        if request == NOISED_STATISTICS:
            return noised_request(version, NOISE)
        server = self.sums[version]
        body = {
            KEYS: lambda node: None,
            SHARES: server.roster,
            MASKED: server.delivery,
            UNMASK: server.survivors,
        }[request](ME)
        return request_content(server.session, body)

    def _take(self, request: str, version: int, mine: Any) -> None:
        server, others = self.sums[version], self._peers
        if request == KEYS:
            others |= {n: DeviceSession(server.session, secrets.token_bytes(32)) for n in PEERS}
            keys = {node: state.keys() for node, state in others.items()}
            self.sums[version], refused = server.advertise({ME: mine, **keys})
            assert refused == {}
            return
        said = {ME: mine}
        for node, state in others.items():
            if request == SHARES:
                others[node], said[node] = state.deal(server.roster(node), 5)
            elif request == MASKED:
                others[node], said[node] = state.masked(server.delivery(node), [0] * 7)
            else:
                others[node], said[node] = state.reveal(server.survivors(node))
        if request == UNMASK:
            self.totals.append(server.open(said).total)
        else:
            self.sums[version] = (server.deal if request == SHARES else server.mask)(said)


def drawn(self: Device) -> RouterStatistics:
    """Statistics that are others each time, as under noise: a second draw would show."""
    share, version = int.from_bytes(os.urandom(3), "big") / 2**25, self.vault.installed()
    assert version is not None
    return RouterStatistics(version, (share, 1 - share), (1.0, 0.0, 0.0), share, 0.5)


def start(agent: Agent) -> int:
    """Let an agent serve in a process of its own, the model resident; return its id."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            Device.statistics = drawn  # type: ignore[method-assign]
            agent.serve(lambda: os.close(write))
        finally:
            os._exit(1)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return child


class Child:
    """An agent's process that is killed after a time, or when the block ends."""

    def __init__(self, agent: Agent, seconds: float) -> None:
        self.id, self.ended = start(agent), False
        self._killer = threading.Timer(seconds, self._kill)

    def __enter__(self) -> "Child":
        self._killer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._killer.cancel()
        self._killer.join()
        self._kill()
        if not self.ended:
            os.waitpid(self.id, 0)

    @property
    def alive(self) -> bool:
        if not self.ended:
            self.ended = os.waitpid(self.id, os.WNOHANG) != (0, 0)
        return not self.ended

    def _kill(self) -> None:
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.id, signal.SIGKILL)


def play(agent: Agent, child: Child, server: Server) -> bool:
    """Ask as a server does, on from where it was; return whether the round came to its end."""
    done = [(request, version) for request, version, _ in server.received]
    left = [step for step in server.steps if step not in done]
    for request, version in [*done[-1:], *left]:  # what was answered last is asked again
        try:
            reply = ask_agent(agent.path, request, server.ask(request, version))
        except ProtocolError as error:
            if error.refusal != Refusal.NO_AGENT:
                raise
            assert not child.alive or wait(lambda: not child.alive)
            return False
        server.take(request, version, reply)
    # A kill may come while the device trains, too.
    return wait(lambda: not child.alive or trained(agent)) and trained(agent)


def trained(agent: Agent) -> bool:
    return agent.device.vault.load_private(2, "oppu") is not None


def wait(condition: Any, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return True


@dataclass
class Kept:
    """What a vault had after the kill before: it must have it still."""

    answers: list[Said] = field(default_factory=list)
    costs: tuple[LedgerEntry, ...] = ()


def check(agent: Agent, server: Server, before: Kept, kills: int) -> None:
    vault, received = agent.device.vault, server.received
    assert vault.person().user_id == "wilhelmina"
    assert vault.installed() in (None, 1, 2)
    entries = vault.sent.entries()
    kept = [(e["request"], e["release"], base64.b64decode(e["content"])) for e in entries]
    assert len(set(kept)) == len(kept), "an answer that was repeated is in the journal twice"
    assert kept[: len(before.answers)] == before.answers
    times = Counter({one: e["times"] for one, e in zip(kept, entries, strict=True)})
    assert Counter(received) <= times, "the journal lost what a client has received"
    firsts = list(dict.fromkeys(received))
    assert [one for one in kept if one in firsts] == firsts
    # A kill may leave one answer that was written down and not received, and no more.
    assert times.total() <= len(received) + kills
    steps = [(request, version) for request, version, _ in kept]
    assert len(set(steps)) == len(steps), "two different answers about one release"
    costs = ledger(vault)
    assert costs[: len(before.costs)] == before.costs
    paid = [version for request, version in steps if request == PAID.get(server.mode)]
    assert [entry.release for entry in costs] == paid, "an answer is not in the ledger once"
    for entry in costs:
        assert entry.mechanism == server.mode
        assert NOISE <= entry.noise_multiplier < 1.001 * NOISE
    before.answers, before.costs = kept, costs
    errors = [entry["error"] for entry in error_journal(vault).entries()]
    assert errors == []


def trial(
    kills: int, mode: str, device: Device, socket: Path, files: dict[int, Any], folder: Path
) -> None:
    """Kill an agent so many times, on a vault that is made anew when its round has ended."""
    privacy = PrivacyConfig.model_validate(
        {"mode": mode, "epsilon": 8.0, "delta": 1e-5, "honest_share": 1.0, "minimum_devices": 5}
    )
    untouched = folder / "untouched"
    agent = Agent(replace(device, privacy=privacy), socket)
    shutil.copytree(device.vault.folder, untouched)
    begin, server = time.monotonic(), Server(mode, files)
    with Child(agent, 120) as child:
        assert play(agent, child, server)
    assert len(server.received) == len(server.steps)
    check(agent, server, Kept(), 0)
    whole, moments, finished = time.monotonic() - begin, random.Random(7), True
    killed, rounds, left, kept = 0, 0, 0, Kept()
    for _ in range(kills):
        if finished:
            rounds, killed, kept, server = rounds + 1, 0, Kept(), Server(mode, files)
            home = replace(agent.device.vault, folder=folder / f"round{rounds}")
            shutil.copytree(untouched, home.folder)
            agent = Agent(replace(agent.device, vault=home), socket)
        with Child(agent, moments.uniform(0, whole)) as child:
            finished = play(agent, child, server)
        killed += 1
        check(agent, server, kept, killed)
        left += finished
    if not finished:  # the last one comes to its end, too
        with Child(agent, 120) as child:
            assert play(agent, child, server)
        check(agent, server, kept, killed)
    if mode == "central":
        assert len(server.totals) == len(files)
        assert None not in server.totals
    print(f"{mode}: {kills} kills in {rounds} rounds of {whole:.2f} s, {kills - left} within one")


@pytest.fixture
def files(federation: Any) -> dict[int, Any]:
    return {version: federation.release_files(version) for version in (1, 2)}


MODES = pytest.mark.parametrize("mode", list(QUESTIONS))


@MODES
def test_an_agent_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    mode: str, sealed_device: Device, files: dict[int, Any], short_path: Path, tmp_path: Path
) -> None:
    trial(6, mode, sealed_device, short_path / "agent.sock", files, tmp_path)


@pytest.mark.slow
@MODES
def test_an_agent_that_is_killed_a_hundred_times_loses_and_doubles_nothing(
    mode: str, sealed_device: Device, files: dict[int, Any], short_path: Path, tmp_path: Path
) -> None:
    trial(100, mode, sealed_device, short_path / "agent.sock", files, tmp_path)
