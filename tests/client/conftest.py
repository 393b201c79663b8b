"""Sealed vaults, cheap locks, and a device agent behind a socket."""

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keyring
import keyring.backends.fail
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringError, PasswordDeleteError

from client.agent import Agent
from client.device import Device
from client.seal import Seal
from client.vault import Vault
from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query, User

CANARIES = (
    "heliotrope confessions of a lighthouse keeper",
    "my sister Wilhelmina owes me forty-one guilders",
    "zymurgy notebook, seventh of November",
    "quixotic remedies against insomnia",
)
"""Texts of a history that stand nowhere else in the world of the tests."""


class MemoryRing(KeyringBackend):
    """A keyring that works, in memory."""

    priority = 5

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def set_password(self, service: str, username: str, password: str) -> None:
        self._open()
        self.kept[service, username] = password

    def get_password(self, service: str, username: str) -> str | None:
        self._open()
        return self.kept.get((service, username))

    def delete_password(self, service: str, username: str) -> None:
        self._open()
        if (service, username) not in self.kept:
            raise PasswordDeleteError("not there")
        del self.kept[service, username]

    def _open(self) -> None:
        if self.locked:
            raise KeyringError("the keyring is locked")


@pytest.fixture(autouse=True)
def _no_keyring() -> Iterator[None]:
    """Keep tests out of the keyring of whoever runs them."""
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests out of the sockets of whoever runs them."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


@pytest.fixture
def ring(_no_keyring: None) -> MemoryRing:
    memory = MemoryRing()
    keyring.set_keyring(memory)
    return memory


@pytest.fixture
def canaries() -> tuple[str, ...]:
    return CANARIES


@pytest.fixture
def canary_user() -> User:
    items = (ProfileItem(f"h{i}", "tagging", text, "gear") for i, text in enumerate(CANARIES[:3]))
    return User("wilhelmina", tuple(items), (Query("q0", "headline", CANARIES[3], "ü"),))


@pytest.fixture
def quick_lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Argon2id take milliseconds; the parameters that are written tell so."""
    from client import lock

    fields = lock.Kdf.model_fields
    monkeypatch.setattr(fields["iterations"], "default", 1)
    monkeypatch.setattr(fields["memory_kib"], "default", 8 * 1024)
    lock.Kdf.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    lock.Kdf.model_rebuild(force=True)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    folder = Path(tempfile.mkdtemp(prefix="mf-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sealed_device(federation: Any, base: BaseModel, tmp_path: Path, canary_user: User) -> Device:
    """A device whose person has just moved in; its vault is sealed."""
    vault = Vault(tmp_path / "sealed", Seal(bytes(range(32))))
    vault.trust(federation.server_key)
    vault.move_in(canary_user)
    config = federation.config
    return Device(base, vault, ("population", "oppu"), config.private, config.seed)


@contextmanager
def serving(agent: Agent) -> Iterator[Agent]:
    """Let an agent serve in a thread for the length of a block."""
    ready, failed = threading.Event(), []

    def serve() -> None:
        try:
            agent.serve(ready.set)
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60)
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield agent
    finally:
        agent.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(name="serving")
def _serving() -> Callable[[Agent], Any]:
    return serving


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait until something is so."""

    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.01)

    return wait


@pytest.fixture(name="listens")
def _listens() -> Callable[[Path], bool]:
    """Return whether somebody listens at a socket; its file is there a moment before that."""

    def listens(path: Path) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

    return listens
