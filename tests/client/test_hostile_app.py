"""A hostile ClientApp with all that the socket, the file system and /proc give it."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from client.agent_call import ask_agent, receive_frame, send_frame
from client.app import app
from client.lock import lock_with_passphrase
from client.vault import Vault
from shared.corpus.user import User
from shared.flower_internals import become_server, content_to_bytes, name_message, over_the_wire
from shared.protocol import (
    INSTALL_RELEASE,
    ROUTER_STATISTICS,
    release_to_content,
    statistics_from_content,
    statistics_request,
)

NOBODY = 65534
WORDS = "aubergine passphrase nobody guesses"
PTRACE_ATTACH = 16

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.getuid() != 0,
    reason="needs root to become another user, and /proc to look around in",
)


@dataclass(frozen=True)
class Target:
    """What is attacked, and all that a ClientApp could know of it."""

    process: int
    vault: Path
    socket: Path

    @property
    def node_config(self) -> dict[str, Any]:
        return {"agent": str(self.socket)}


@pytest.fixture
def target(
    federation: Any, short_path: Path, canary_user: User, listens: Any, quick_lock: None
) -> Iterator[Target]:
    """`mesofed device start` as it is started on a real device, the SuperNode being nobody."""
    short_path.chmod(0o755)
    vault, place = short_path / "people" / "me", short_path / "run"
    place.mkdir(mode=0o755)
    home = Vault(vault, lock_with_passphrase(vault, WORDS))
    home.move_in(canary_user)
    home.trust(federation.server_key)
    path = place / "agent.sock"
    command = ["-c", "from shared.cli import main; main()", "device", "start", vault]
    command += ["--socket", path, "--allow-user", "nobody"]
    command += ["--config", federation.run_dir / "config.toml"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MESOFED_PASSPHRASE": WORDS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not listens(path):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        yield Target(process.pid, vault, path)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "Stopped." in output


def loot(target: Target) -> Iterator[bytes]:
    """Yield everything that a hostile app can lay its hands on."""
    yield from files(target)
    yield from memory(target)
    yield from whatever_is_asked(target)
    yield from damage(target)


def files(target: Target) -> Iterator[bytes]:
    for start in (target.vault, target.vault.parent, target.socket.parent):
        with contextlib.suppress(OSError):
            yield repr(os.stat(start)).encode()  # noqa: PTH116
        for folder, _, names in os.walk(start):
            for name in names:
                yield Path(folder, name).name.encode()
                with contextlib.suppress(OSError):
                    yield Path(folder, name).read_bytes()
    for name in ("lock.json", "person.jsonl", "journal", "errors", "server.pub"):
        with contextlib.suppress(OSError):
            yield (target.vault / name).read_bytes()


def memory(target: Target) -> Iterator[bytes]:
    proc = Path("/proc") / str(target.process)
    for name in ("environ", "cmdline", "maps", "auxv", "stack", "syscall", "io"):
        with contextlib.suppress(OSError):
            yield (proc / name).read_bytes()
    for folder in ("fd", "cwd", "root", "task", "map_files"):
        with contextlib.suppress(OSError):
            for entry in (proc / folder).iterdir():
                yield str(entry).encode()
                with contextlib.suppress(OSError):
                    yield entry.read_bytes() if folder == "fd" and entry.is_file() else b""
    yield from regions(proc)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, target.process, None, None) == 0:
        yield b"ATTACHED"


def regions(proc: Path) -> Iterator[bytes]:
    try:
        maps = (proc / "maps").read_text().splitlines()
        file = (proc / "mem").open("rb", buffering=0)
    except OSError:
        return
    with file:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found and "/" not in line:
                begin, end = (int(part, 16) for part in found.groups())
                with contextlib.suppress(OSError):
                    file.seek(begin)
                    yield file.read(min(end - begin, 256 << 20))


REQUESTS = (
    *("query.history", "query.person", "query.export", "query.ask", "query.errors", "query"),
    *("train.export", "evaluate.evaluate", "query.router_statistics.raw", "../person.jsonl"),
    *("__class__", "vault", "device", "journal", "passphrase", "{self.device.vault}", "%s"),
)


def whatever_is_asked(target: Target) -> Iterator[bytes]:
    import socket

    contents = [RecordDict(), statistics_request(1), statistics_request(2)]
    greedy = statistics_request(1)
    greedy["please"] = ConfigRecord({"history": True, "path": str(target.vault)})
    for request in (*REQUESTS, ROUTER_STATISTICS, INSTALL_RELEASE):
        for content in (*contents, greedy):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(target.socket))
                send_frame(connection, {"request": request}, content_to_bytes(content))
                frame = receive_frame(connection)
                yield repr(frame.header).encode() + frame.content
    # And as Flower itself would, with error texts and the log of the guard.
    become_server(1)
    from flwr.app import Message

    context = Context(1, 5, target.node_config, RecordDict(), {})
    for version in (1, 2):
        message = Message(statistics_request(version), 5, ROUTER_STATISTICS, group_id="g")
        name_message(message, "m")
        reply = over_the_wire(app(message, context))
        yield repr(reply.error if reply.has_error() else reply.content).encode()


def damage(target: Target) -> Iterator[bytes]:
    """Try to change what is not one's own."""

    def tries(work: Callable[[], object]) -> bytes:
        try:
            work()
        except OSError:
            return b"refused"
        return b"DAMAGED"

    yield tries(lambda: (target.vault / "mine").write_bytes(b"x"))
    yield tries(lambda: (target.vault / "lock.json").unlink())
    yield tries(target.socket.unlink)
    yield tries(lambda: target.socket.rename(target.socket.with_name("other")))
    yield tries(lambda: os.kill(target.process, signal.SIGSTOP))


def as_user(user: int, work: Callable[[], Iterator[bytes]]) -> bytes:
    """Collect what another user's process gets."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with open(write, "wb") as file:  # noqa: PTH123
                for piece in work():
                    file.write(piece + b"\n")
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with open(read, "rb") as file:  # noqa: PTH123
        data = file.read()
    assert os.waitpid(child, 0)[1] == 0, "the attack itself failed"
    return data


def test_another_users_app_gets_the_two_answers_and_nothing_private(
    target: Target, federation: Any, canaries: tuple[str, ...], tmp_path: Path
) -> None:
    """The agent under its own user, as the deployment guide says.

    Protected: every file of the vault, the agent's memory and environment, the socket and its
    folder. Not protected: that there is an agent, its command line (the vault's path in it), and
    how many bytes of memory it takes; the kernel tells these to everybody.

    The control is the same attack by the agent's own user. Then nothing is protected but what is
    at rest: files are sealed still, while the passphrase is read from the environment and the
    history from memory.
    """
    ask_agent(target.socket, INSTALL_RELEASE, release_to_content(federation.release_files(1), 1))
    seal = Vault(target.vault, seal_of(target.vault))
    deadline = time.monotonic() + 60
    while seal.load_private(1, "oppu") is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = {path.name for path in target.vault.iterdir()}

    got = as_user(NOBODY, lambda: loot(target))
    words = {word for text in canaries for word in text.split() if len(word) > 6}
    private = {*canaries, *words, WORDS, "wilhelmina"}
    assert [word for word in private if word.encode() in got] == []
    for mark in (b"DAMAGED", b"ATTACHED", b"MSV1"):
        assert mark not in got
    assert got.count(b"refused\n") == 5
    # The agent itself has written down what it said, and what it refused.
    after = {path.name for path in target.vault.iterdir()}
    assert after == before | {"errors", "repeats", "statistics"}
    # What it did get is what it may get, and the journal knows of all of it.
    answers = {(e["request"], e["release"]) for e in seal.sent.entries()}
    assert answers == {(INSTALL_RELEASE, 1), (ROUTER_STATISTICS, 1)}
    assert b"router-statistics" in got
    statistics = ask_agent(target.socket, ROUTER_STATISTICS, statistics_request(1))
    assert statistics_from_content(statistics).release == 1

    same_user = b"\n".join(files(target))
    assert b"MSV1" in same_user
    assert [word for word in private if word.encode() in same_user] == []
    assert WORDS.encode() in (Path("/proc") / str(target.process) / "environ").read_bytes()
    proc = Path("/proc") / str(target.process)
    assert any(canaries[0].encode() in region for region in regions(proc))


def seal_of(vault: Path) -> Any:
    from client.lock import unlock

    return unlock(vault, lambda: WORDS)
