"""The agent behind its socket: two answers and numbers, whoever asks and however."""

import base64
import contextlib
import json
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import client.agent
import client.agent_errors
from client.agent import CONNECTIONS, Agent, owned, peer_user
from client.agent_call import LENGTH, ask_agent, receive_frame, send_frame
from client.agent_errors import error_journal, log_error
from client.device import Device
from client.vault import Vault
from shared.errors import MesofedError
from shared.flower_internals import content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    NOISED_STATISTICS,
    REASONS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    RouterStatistics,
    release_to_content,
    statistics_from_content,
    statistics_request,
)
from shared.secure_aggregation.messages import MASKED

NOBODY = 65534
needs_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to become another user"
)


@pytest.fixture
def agent(sealed_device: Device, short_path: Path) -> Agent:
    return Agent(sealed_device, short_path / "agent.sock")


@pytest.fixture
def release(federation: Any) -> Callable[[int], RecordDict]:
    return lambda version: release_to_content(federation.release_files(version), version)


def ask_statistics(agent: Agent, version: int = 1) -> RecordDict:
    return ask_agent(agent.path, ROUTER_STATISTICS, statistics_request(version))


def refusal(ask: Callable[[], Any]) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        ask()
    assert str(caught.value) == REASONS[caught.value.refusal]
    return caught.value.refusal


def trained(device: Device, version: int) -> bool:
    return device.vault.load_private(version, "oppu") is not None


def again(agent: Agent) -> Agent:
    """The same device after a restart."""
    vault = replace(agent.device.vault)
    return Agent(replace(agent.device, vault=vault), agent.path, agent.users)


# A round


def test_a_release_is_acknowledged_before_the_device_has_trained(
    agent: Agent, serving: Any, release: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, personalise = threading.Event(), Device.personalise

    def waits(self: Device) -> None:
        assert go.wait(60)
        personalise(self)

    monkeypatch.setattr(Device, "personalise", waits)
    with serving(agent):
        assert ask_agent(agent.path, INSTALL_RELEASE, release(1)) == RecordDict()
        assert agent.device.vault.installed() == 1
        statistics = statistics_from_content(ask_statistics(agent))
        assert not trained(agent.device, 1)
        go.set()
        until(lambda: trained(agent.device, 1))
        assert statistics_from_content(ask_statistics(agent)) == statistics


def test_statistics_are_those_of_the_device_in_memory_and_the_same_after_a_restart(
    agent: Agent, serving: Any, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(agent):
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        first = ask_statistics(agent)
        assert content_to_bytes(ask_statistics(agent)) == content_to_bytes(first)
    assert statistics_from_content(first) == agent.device.statistics()
    # Whatever it would compute now, it says what it has said.
    other = RouterStatistics(1, (0.5, 0.5), (1.0, 0.0, 0.0), 0.125, 1.0)
    monkeypatch.setattr(Device, "statistics", lambda self: other)
    with serving(again(agent)) as restarted:
        assert content_to_bytes(ask_statistics(restarted)) == content_to_bytes(first)


def test_the_journal_holds_exactly_what_the_socket_let_out(
    agent: Agent, serving: Any, release: Any
) -> None:
    out: list[bytes] = []
    with serving(agent):
        for request, content in (
            (INSTALL_RELEASE, release(1)),
            (ROUTER_STATISTICS, statistics_request(1)),
            (ROUTER_STATISTICS, statistics_request(2)),
            ("query.history", statistics_request(1)),
            (ROUTER_STATISTICS, statistics_request(1)),
        ):
            frame = raw_call(agent.path, request, content_to_bytes(content))
            if frame.header["code"] == 0:
                out.append(frame.content)
            else:
                assert frame.content == b""
            assert set(frame.header) == {"code", "bytes"}
    entries = agent.device.vault.sent.entries()
    kept = [base64.b64decode(e["content"]) for e in entries for _ in range(e["times"])]
    assert kept == out
    assert len(out) == 3


def raw_call(path: Path, request: str, content: bytes) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        send_frame(connection, {"request": request}, content)
        return receive_frame(connection)


def test_what_a_stop_left_undone_is_trained_after_a_restart(
    agent: Agent, serving: Any, release: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, serving(agent):
        patch.setattr(Device, "personalise", lambda self: None)
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
    assert not trained(agent.device, 1)
    with serving(again(agent)):
        until(lambda: trained(agent.device, 1))


def test_a_training_that_fails_is_recorded_and_the_agent_answers_on(
    agent: Agent, serving: Any, release: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Device) -> None:
        raise ValueError("out of memory, or so")

    with monkeypatch.context() as patch, serving(agent):
        patch.setattr(Device, "personalise", fails)
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        errors = error_journal(agent.device.vault)
        until(errors.entries)
        assert "out of memory, or so" in errors.entries()[0]["error"]
        ask_statistics(agent)
        patch.undo()
        ask_agent(agent.path, INSTALL_RELEASE, release(2))
        until(lambda: trained(agent.device, 2))


def test_two_that_ask_at_once_are_told_the_same(
    agent: Agent, serving: Any, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if statistics were drawn anew each time, as noise is."""
    counts = iter(range(100))

    def drawn(self: Device) -> RouterStatistics:
        number = next(counts)
        time.sleep(0.1)
        return RouterStatistics(1, (0.5, 0.5), (1.0, 0.0, 0.0), number / 100, 1.0)

    monkeypatch.setattr(Device, "statistics", drawn)
    with serving(agent):
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask_statistics, agent) for _ in range(4)]
        assert len({content_to_bytes(one.result()) for one in asked}) == 1
    assert [entry["times"] for entry in agent.device.vault.sent.entries()] == [1, 4]


def test_the_agent_says_once_what_came_and_what_left_and_nothing_private(
    agent: Agent, serving: Any, release: Any, federation: Any, canaries: tuple[str, ...]
) -> None:
    lines: list[str] = []
    with serving(replace(agent, say=lines.append)):
        assert lines == []
        refusal(lambda: ask_statistics(agent))
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        installed = f"Installed release 1, signed with {federation.server_key}"
        assert lines == [installed]
        refusal(lambda: ask_agent(agent.path, INSTALL_RELEASE, RecordDict()))
        refusal(lambda: ask_statistics(agent, 2))
        for _ in range(3):
            first = ask_statistics(agent)
            ask_agent(agent.path, INSTALL_RELEASE, release(1))
        assert lines == [installed, "Sent the statistics of release 1"]
        ask_agent(agent.path, INSTALL_RELEASE, release(2))
    assert lines[2:] == [f"Installed release 2, signed with {federation.server_key}"]
    text = "\n".join(lines)
    private = (*canaries, str(first["router-statistics"]["best-similarity"]), agent.path.name)
    assert [word for word in private if word in text] == []


def test_a_line_that_cannot_be_written_holds_up_no_answer(
    agent: Agent, serving: Any, release: Any
) -> None:
    def fails(text: str) -> None:
        raise BrokenPipeError(text)

    with serving(replace(agent, say=fails)):
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        assert statistics_from_content(ask_statistics(agent)).release == 1


# What is refused


def test_refusals_are_numbers(agent: Agent, serving: Any, release: Any) -> None:
    with serving(agent):
        before = refusal(lambda: ask_statistics(agent))
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        more = statistics_request(1)
        more["more"] = ConfigRecord({"a": "b"})
        asked = {
            "before the first release": before,
            "another release": refusal(lambda: ask_statistics(agent, 2)),
            "unknown": refusal(lambda: ask_agent(agent.path, "query.x", statistics_request(1))),
            "more": refusal(lambda: ask_agent(agent.path, ROUTER_STATISTICS, more)),
            "nothing": refusal(lambda: ask_agent(agent.path, INSTALL_RELEASE, RecordDict())),
        }
    assert asked == {
        "before the first release": Refusal.OTHER_RELEASE,
        "another release": Refusal.OTHER_RELEASE,
        "unknown": Refusal.UNKNOWN_REQUEST,
        "more": Refusal.MALFORMED_REQUEST,
        "nothing": Refusal.MALFORMED_REQUEST,
    }


@pytest.mark.parametrize("kind", [OSError, ValueError, MemoryError, SystemExit, KeyboardInterrupt])
def test_whatever_fails_inside_leaves_as_a_number_and_is_recorded(
    agent: Agent, serving: Any, release: Any, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    def fails(self: Device) -> RouterStatistics:
        raise kind("heliotrope secret")

    with serving(agent):
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        with monkeypatch.context() as patch:
            patch.setattr(Device, "statistics", fails)
            frame = raw_call(agent.path, ROUTER_STATISTICS, content_to_bytes(statistics_request(1)))
        assert frame.header == {"code": int(Refusal.DEVICE_FAILED), "bytes": 0}
        ask_statistics(agent)
    (entry,) = error_journal(agent.device.vault).entries()
    assert "heliotrope secret" in entry["error"]
    assert b"heliotrope" not in error_journal(agent.device.vault).path.read_bytes()


def test_the_record_of_errors_does_not_grow_for_ever(
    sealed_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.agent_errors, "_MOST_BYTES", 20_000)
    for number in range(60):
        log_error(sealed_device.vault, "x", ValueError("x" * 1000 + str(number)))
    journal = error_journal(sealed_device.vault)
    assert journal.path.stat().st_size < 30_000
    assert "x59" in journal.entries()[-1]["error"]


# Anything at all on the socket


@pytest.fixture(scope="module")
def resident(
    federation: Any, base: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agent]:
    """An agent for all the hostile calls of this file; its device has release 2."""
    folder = tmp_path_factory.mktemp("resident")
    shutil.copytree(federation.run_dir / "vaults" / "0001", folder / "vault")
    config = federation.config
    device = Device(base, Vault(folder / "vault"), ("oppu",), config.private, config.seed)
    path = Path("/tmp") / f"mf-{os.getpid()}.sock"
    agent, ready = Agent(device, path), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.agent, "READ_SECONDS", 0.5)
        thread = threading.Thread(target=agent.serve, args=(ready.set,))
        thread.start()
        assert ready.wait(60)
        yield agent
        agent.stop()
        thread.join(60)


def hostile_call(agent: Agent, pieces: list[bytes], pause: float = 0.0) -> bytes:
    """Send bytes, and return all that comes back until the agent closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(str(agent.path))
        came = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                came += piece
    return came


REFUSALS = {int(refusal) for refusal in Refusal}


def is_a_refusal_or_nothing(came: bytes) -> bool:
    if not came:
        return True
    length = int.from_bytes(came[:4], "big")
    header = json.loads(came[4:])
    return (
        len(came) == 4 + length
        and set(header) == {"code", "bytes"}
        and header["code"] in REFUSALS
        and header["bytes"] == 0
    )


def framed(header: object, content: bytes = b"") -> bytes:
    data = json.dumps(header).encode()
    return LENGTH.pack(len(data)) + data + content


HEADERS = st.dictionaries(
    st.sampled_from(["request", "bytes", "code", "more"]),
    st.sampled_from([ROUTER_STATISTICS, INSTALL_RELEASE, "", None, 0, 3, -1, 10**12, True, [], {}])
    | st.text(max_size=10)
    | st.integers(),
)
GOOD = content_to_bytes(statistics_request(2))


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(max_size=300)
    | st.builds(framed, HEADERS, st.binary(max_size=200))
    | st.builds(
        lambda content: framed({"request": ROUTER_STATISTICS, "bytes": len(content)}, content),
        st.binary(max_size=200),
    )
    | st.integers(0, 8 * len(GOOD) - 1).map(
        lambda bit: framed(
            {"request": ROUTER_STATISTICS, "bytes": len(GOOD)},
            (int.from_bytes(GOOD, "big") ^ 1 << bit).to_bytes(len(GOOD), "big"),
        )
    )
)
def test_whatever_comes_gets_a_number_or_a_close(resident: Agent, data: bytes) -> None:
    assert is_a_refusal_or_nothing(hostile_call(resident, [data]))


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"\0"],
        [LENGTH.pack(2**32 - 1)],
        [LENGTH.pack(2**32 - 1), b"x" * 100_000],
        [framed({"request": INSTALL_RELEASE, "bytes": 1 << 30})],
        [framed({"request": INSTALL_RELEASE, "bytes": 1 << 30}), bytes(1 << 20)],
        [framed({"request": INSTALL_RELEASE, "bytes": 1 << 62})],
        [framed({"request": "\ud800", "bytes": 0})],
        [framed({"request": "x" * 900, "bytes": 0})],
        [framed({"request": ROUTER_STATISTICS, "bytes": len(GOOD)}), GOOD[:-1]],
    ],
)
def test_malformed_calls_get_a_number_or_a_close_and_the_next_good_one_its_answer(
    resident: Agent, pieces: list[bytes]
) -> None:
    assert is_a_refusal_or_nothing(hostile_call(resident, pieces))
    assert statistics_from_content(ask_statistics(resident, 2)).release == 2


def test_a_slow_writer_is_dropped_though_it_goes_on_writing(resident: Agent) -> None:
    begin = time.monotonic()
    call = framed({"request": ROUTER_STATISTICS, "bytes": len(GOOD)}, GOOD)
    came = hostile_call(resident, [call[i : i + 1] for i in range(60)], pause=0.05)
    assert came == b""
    assert time.monotonic() - begin < 10
    ask_statistics(resident, 2)


def is_answered(agent: Agent) -> bool:
    try:
        return bool(ask_statistics(agent, 2))
    except ProtocolError as error:
        if error.refusal != Refusal.NO_AGENT:  # the queue of the socket is full
            raise
        return False


def test_idle_and_slow_connections_hold_up_nobody_for_ever(resident: Agent, until: Any) -> None:
    idle = []
    for _ in range(3 * CONNECTIONS):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.connect(str(resident.path))
        idle.append(connection)

    until(lambda: is_answered(resident), seconds=20)
    for connection in idle:
        connection.close()


def test_those_who_leave_before_the_answer_harm_nobody(resident: Agent, until: Any) -> None:
    call = framed({"request": ROUTER_STATISTICS, "bytes": len(GOOD)}, GOOD)
    for _ in range(20):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The queue of the socket may be full.
        with connection, contextlib.suppress(BlockingIOError):
            connection.connect(str(resident.path))
            connection.sendall(call)
    until(lambda: is_answered(resident), seconds=20)


# Stopping, and who may serve


def test_stopping_is_prompt_though_connections_are_open(agent: Agent, serving: Any) -> None:
    with serving(agent):
        idle = []
        for _ in range(CONNECTIONS + 3):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(agent.path))
            idle.append(connection)
        time.sleep(0.3)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    assert not agent.path.exists()
    for connection in idle:
        connection.close()
    with pytest.raises(MesofedError, match="mesofed device start"):
        ask_statistics(agent)


def test_a_second_agent_on_one_vault_is_refused(
    agent: Agent, serving: Any, release: Any, short_path: Path
) -> None:
    second = replace_path(again(agent), short_path / "other.sock")
    with serving(agent):
        with pytest.raises(MesofedError, match="another process has it"):
            second.serve()
        assert not second.path.exists()
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
    with serving(second):
        ask_statistics(second)


def replace_path(agent: Agent, path: Path) -> Agent:
    return Agent(agent.device, path, agent.users)


def test_an_agent_takes_no_socket_from_another(
    agent: Agent, serving: Any, release: Any, tmp_path: Path
) -> None:
    shutil.copytree(agent.device.vault.folder, tmp_path / "second")
    vault = replace(agent.device.vault, folder=tmp_path / "second")
    second = Agent(replace(agent.device, vault=vault), agent.path)
    with serving(agent):
        with pytest.raises(MesofedError, match=r"Cannot listen at .*in use"):
            second.serve()
        ask_agent(agent.path, INSTALL_RELEASE, release(1))
        assert (agent.device.vault.installed(), vault.installed()) == (1, None)


def test_a_socket_that_a_killed_agent_left_is_taken_over(
    agent: Agent, serving: Any, release: Any
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(agent.path))
    with serving(agent):
        ask_agent(agent.path, INSTALL_RELEASE, release(1))


@pytest.mark.parametrize("kind", ["file", "folder", "long", "nowhere"])
def test_a_place_where_no_socket_can_be_is_told_and_left_alone(
    agent: Agent, short_path: Path, kind: str
) -> None:
    path = short_path / {"long": "x" * 200, "nowhere": "a/b"}.get(kind, "thesis")
    if kind == "file":
        path.write_bytes(b"three years of work")
    if kind == "folder":
        path.mkdir()
    with pytest.raises(MesofedError, match="Cannot listen at"):
        replace_path(agent, path).serve()
    assert kind != "file" or path.read_bytes() == b"three years of work"
    assert kind != "folder" or path.is_dir()


def test_the_vault_is_free_again_after_whatever_ended_the_agent(
    agent: Agent, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Device) -> None:
        raise MesofedError("no history")

    with monkeypatch.context() as patch:
        patch.setattr(Device, "prepare", fails)
        with pytest.raises(MesofedError, match="no history"):
            agent.serve()
    assert not agent.path.exists()
    with owned(agent.device.vault):
        pass
    with serving(agent):
        pass


# Who may ask


def test_only_the_owner_may_use_the_socket(
    agent: Agent, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    listen = socket.socket.listen

    def seen(self: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(os.stat(self.getsockname()).st_mode))  # noqa: PTH116
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", seen)
    before = os.umask(0)
    try:
        with serving(agent):
            assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert modes == [0o600]  # nobody else could come in before


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells")
def test_the_kernel_tells_who_asks() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        assert peer_user(one) == os.getuid()


def as_nobody(work: Callable[[], str]) -> str:
    """Do something as another user, in a process of its own; return what it says."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:  # noqa: PTH123
        said = file.read()
    os.waitpid(child, 0)
    return said


@needs_root
@pytest.mark.parametrize("allowed", ["owner alone", "a third one", "this one"])
def test_another_user_is_answered_only_if_named(
    agent: Agent, serving: Any, release: Any, short_path: Path, allowed: str
) -> None:
    users = {"owner alone": set(), "a third one": {1}, "this one": {NOBODY}}[allowed]
    short_path.chmod(0o755)
    asked = Agent(agent.device, agent.path, frozenset({0, *users}))

    def work() -> str:
        try:
            if allowed == "a third one":  # sent away at once, whatever it wants to ask
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.connect(str(asked.path))
                    return str(receive_frame(connection))
            return "statistics" if ask_statistics(asked) else "empty"
        except ProtocolError as error:
            away = error.refusal == Refusal.NO_AGENT
            return type(error.__cause__).__name__ if away else error.refusal.name

    with serving(asked):
        ask_agent(asked.path, INSTALL_RELEASE, release(1))
        said = as_nobody(work)
        entries = asked.device.vault.sent.entries()
    assert (
        said
        == {
            "owner alone": "PermissionError",
            "a third one": "Frame(header={'code': 110, 'bytes': 0}, content=b'')",
            "this one": "statistics",
        }[allowed]
    )
    assert len(entries) == (2 if allowed == "this one" else 1)


@pytest.mark.parametrize(
    ("request_type", "more"),
    [(NOISED_STATISTICS, ", with noise"), (MASKED, ", with noise and under masks")],
)
def test_the_agent_says_how_statistics_left(agent: Agent, request_type: str, more: str) -> None:
    lines: list[str] = []
    told = replace(agent, say=lines.append)
    for _ in range(2):
        told._tell(request_type, 3)
    assert lines == [f"Sent the statistics of release 3{more}"]
