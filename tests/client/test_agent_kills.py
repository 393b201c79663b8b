"""Kill -9 of the agent at random moments of a round: nothing is lost, nothing is said twice."""

import base64
import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.agent import Agent
from client.agent_call import ask_agent
from client.agent_errors import error_journal
from client.device import Device
from shared.errors import MesofedError
from shared.flower_internals import content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    ROUTER_STATISTICS,
    ProtocolError,
    RouterStatistics,
    release_to_content,
    statistics_request,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill cheaply")
Said = tuple[str, int, bytes]
ROUND = [
    (request, version) for version in (1, 2) for request in (INSTALL_RELEASE, ROUTER_STATISTICS)
]


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


def play(agent: Agent, child: Child, files: dict[int, Any], received: list[Said]) -> bool:
    """Ask as a server does, on from where it was; return whether the round came to its end."""
    done = [(request, version) for request, version, _ in received]
    left = [step for step in ROUND if step not in done]
    for request, version in [*done[-1:], *left]:  # what was answered last is asked again
        content = (
            release_to_content(files[version], version)
            if request == INSTALL_RELEASE
            else statistics_request(version)
        )
        try:
            reply = ask_agent(agent.path, request, content)
        except ProtocolError:
            raise
        except MesofedError:
            assert not child.alive or wait(lambda: not child.alive)
            return False
        received.append((request, version, content_to_bytes(reply)))
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


def check(agent: Agent, received: list[Said], kills: int) -> None:
    vault = agent.device.vault
    assert vault.person().user_id == "wilhelmina"
    assert vault.installed() in (None, 1, 2)
    entries = vault.sent.entries()
    kept = [(e["request"], e["release"], base64.b64decode(e["content"])) for e in entries]
    assert len(set(kept)) == len(kept), "an answer that was repeated is in the journal twice"
    times = Counter({one: e["times"] for one, e in zip(kept, entries, strict=True)})
    assert Counter(received) <= times, "the journal lost what a client has received"
    firsts = list(dict.fromkeys(received))
    assert [one for one in kept if one in firsts] == firsts
    # A kill may leave one answer that was written down and not received, and no more.
    assert times.total() <= len(received) + kills
    for version in (1, 2):
        said = {data for request, n, data in kept if (request, n) == (ROUTER_STATISTICS, version)}
        assert len(said) <= 1, "two different statistics for one release"
    errors = [entry["error"] for entry in error_journal(vault).entries()]
    assert errors == []


def trial(kills: int, agent: Agent, files: dict[int, Any], folder: Path) -> None:
    """Kill an agent so many times, on a vault that is made anew when its round has ended."""
    untouched = folder / "untouched"
    shutil.copytree(agent.device.vault.folder, untouched)
    begin, received = time.monotonic(), list[Said]()
    with Child(agent, 120) as child:
        assert play(agent, child, files, received)
    assert len(received) == len(ROUND)
    whole, moments, finished, killed, rounds = (
        time.monotonic() - begin,
        random.Random(7),
        True,
        0,
        0,
    )
    for _ in range(kills):
        if finished:
            rounds, received, killed = rounds + 1, [], 0
            home = replace(agent.device.vault, folder=folder / f"round{rounds}")
            shutil.copytree(untouched, home.folder)
            agent = Agent(replace(agent.device, vault=home), agent.path)
        with Child(agent, moments.uniform(0, whole)) as child:
            finished = play(agent, child, files, received)
        killed += 1
        check(agent, received, killed)
    if not finished:  # the last one comes to its end, too
        with Child(agent, 120) as child:
            assert play(agent, child, files, received)
        check(agent, received, killed)
    print(f"{kills} kills in {rounds} rounds of {whole:.2f} s")


@pytest.fixture
def files(federation: Any) -> dict[int, Any]:
    return {version: federation.release_files(version) for version in (1, 2)}


def test_an_agent_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    sealed_device: Device, files: dict[int, Any], short_path: Path, tmp_path: Path
) -> None:
    trial(6, Agent(sealed_device, short_path / "agent.sock"), files, tmp_path)


@pytest.mark.slow
def test_an_agent_that_is_killed_a_hundred_times_loses_and_doubles_nothing(
    sealed_device: Device, files: dict[int, Any], short_path: Path, tmp_path: Path
) -> None:
    trial(100, Agent(sealed_device, short_path / "agent.sock"), files, tmp_path)
