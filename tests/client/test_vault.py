"""The vault gives back what was put in, and a crash leaves the former state."""

import base64
import contextlib
import errno
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import client.vault
from client.device import Device
from client.lock import change_passphrase, lock_with_passphrase, unlock
from client.seal import OPEN, Seal
from client.traces import remember_socket, remembered_sockets
from client.vault import Vault
from shared import atomic_file
from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError

ANN = User(
    "ann/ü",
    (
        ProfileItem("h0", "tagging", "a day\nwith two lines \u2028 and a strange one", "gear"),
        ProfileItem("h1", "rating", "😀", "4"),
    ),
    (Query("q0", "headline", "", "what happened"),),
)
KEY = base64.b64encode(bytes(32)).decode()
FILES = {"manifest.json": b'{"a": 1}', "population.safetensors": bytes(range(256))}


SEALED = Seal(bytes(range(32)))


@pytest.fixture(params=[OPEN, SEALED], ids=["open", "sealed"])
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Vault:
    return Vault(tmp_path / "some" / "vault", request.param)


class CrashError(Exception):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Stop the process, as it were, just before a file gets its name."""
    rename = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise CrashError
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replaced)


def test_a_person_moves_in_and_is_read_back(vault: Vault) -> None:
    assert not vault.exists
    vault.move_in(ANN)
    assert vault.exists
    assert replace(vault).person() == ANN
    shown = b"two lines" in (vault.folder / "person.jsonl").read_bytes()
    assert shown == (vault.seal == OPEN)


def test_an_empty_vault_says_how_to_fill_it(vault: Vault) -> None:
    with pytest.raises(MesofedError, match="mesofed device init"):
        vault.person()
    assert vault.installed() is None
    with pytest.raises(MesofedError, match="Expected an installed release"):
        vault.release_files()
    assert vault.load_private(1, "oppu") is None
    assert vault.load_embedding("abc") is None
    assert vault.statistics(1) is None


def test_the_last_installed_release_is_the_current_one(vault: Vault) -> None:
    other = {**FILES, "manifest.json": b"{}"}
    vault.install(1, FILES)
    assert (vault.installed(), vault.release_files()) == (1, FILES)
    vault.install(2, other)
    assert (vault.installed(), vault.release_files()) == (2, other)
    vault.install(1, FILES)
    assert (vault.installed(), vault.release_files()) == (1, FILES)


@pytest.mark.parametrize("moment", ["population.safetensors", "manifest.json", "installed.json"])
def test_a_crash_while_installing_leaves_the_former_release(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    vault.install(1, FILES)
    crash_at(monkeypatch, moment)
    with pytest.raises(CrashError):
        vault.install(2, {**FILES, "population.safetensors": b"new"})
    monkeypatch.undo()
    assert (vault.installed(), vault.release_files()) == (1, FILES)
    vault.install(2, {**FILES, "population.safetensors": b"new"})
    assert vault.release_files()["population.safetensors"] == b"new"


def test_private_state_is_read_back_exactly(vault: Vault) -> None:
    tensors = {"layer.a": torch.randn(5, 2), "weights": torch.rand(3)}
    log = {"curve": [[0, 1.5], [1, 0.25]], "tokens": 12, "seconds": 0.5}
    vault.save_private(2, "meso", tensors, log)
    found = vault.load_private(2, "meso")
    assert found is not None
    assert set(found[0]) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[0][name], tensor)
    assert found[1] == log
    assert vault.load_private(1, "meso") is None
    assert vault.load_private(2, "oppu") is None


def test_private_state_counts_only_when_it_is_complete(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_at(monkeypatch, "meso.json")
    with pytest.raises(CrashError):
        vault.save_private(1, "meso", {"weights": torch.ones(1)}, {"tokens": 1})
    monkeypatch.undo()
    assert vault.load_private(1, "meso") is None


def test_embeddings_belong_to_a_base_model(vault: Vault) -> None:
    embedding = torch.randn(8)
    vault.save_embedding("abc", embedding)
    found = vault.load_embedding("abc")
    assert found is not None
    assert torch.equal(found, embedding)
    assert vault.load_embedding("abd") is None
    vault.save_embedding("abd", 2 * embedding)  # of another one, in its place
    assert vault.load_embedding("abc") is None
    found = vault.load_embedding("abd")
    assert found is not None
    assert torch.equal(found, 2 * embedding)
    assert len(list((vault.folder / "embedding").iterdir())) == 1


def test_private_state_of_old_releases_goes_with_them(vault: Vault) -> None:
    for version in range(1, 6):
        vault.install(version, {**FILES, "population.safetensors": bytes([version])})
        vault.save_private(version, "meso", {"weights": torch.ones(1)}, {"tokens": version})
    for folder in ("releases", "private"):
        assert {path.name for path in (vault.folder / folder).iterdir()} == {"r4", "r5"}
    assert vault.load_private(4, "meso") is not None
    vault.install(5, {**FILES, "population.safetensors": bytes([5])})
    assert vault.load_private(4, "meso") is not None


def test_statistics_are_kept_by_release(vault: Vault) -> None:
    vault.save_statistics(3, {"release": 3, "expert_weights": (0.5, 0.5)})
    assert vault.statistics(3) == {"release": 3, "expert_weights": [0.5, 0.5]}
    assert vault.statistics(2) is None


# What a failing disk takes


@pytest.mark.parametrize("lost", ["manifest.json", "population.safetensors", None])
def test_a_release_that_lost_a_file_is_mended_by_installing_it_again(
    vault: Vault, lost: str | None
) -> None:
    vault.install(3, FILES)
    folder = vault.folder / "releases" / "r3"
    if lost is None:
        shutil.rmtree(folder)
        left = {}
    else:
        (folder / lost).unlink()
        left = {name: data for name, data in FILES.items() if name != lost}
    # The version stays known: a server cannot go back by it.
    assert (vault.installed(), vault.release_files()) == (3, left)
    vault.install(3, FILES)
    assert (vault.installed(), vault.release_files()) == (3, FILES)


@pytest.mark.parametrize("lost", ["manifest.json", "router.safetensors", None])
def test_a_device_whose_vault_lost_its_release_says_so_and_takes_it_again(
    federation: Any, base: BaseModel, tmp_path: Path, lost: str | None
) -> None:
    shutil.copytree(federation.run_dir / "vaults" / "0001", tmp_path / "vault")
    vault, config = Vault(tmp_path / "vault"), federation.config
    device = Device(base, vault, ("population",), config.private, config.seed)
    folder = vault.folder / "releases" / "r2"
    if lost is None:
        shutil.rmtree(folder)
    else:
        (folder / lost).unlink()
    said = rf"Expected releases/r2/{lost or 'manifest.json'} in the vault; it is missing"
    with pytest.raises(MesofedError, match=said):
        device.statistics()
    with pytest.raises(MesofedError, match="newer than 2, or the very same"):
        device.install(federation.release_files(1))
    other = federation.signed(replace(federation.release(2, base), top_k=1))
    if lost == "router.safetensors":  # the manifest still tells which release it was
        with pytest.raises(MesofedError, match="with other contents"):
            device.install(other)
    assert device.install(federation.release_files(2)) == 2
    assert vault.release_files() == federation.release_files(2)
    assert device.statistics().release == 2


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"{}", b'{"release": "x"}', b"\xff"])
def test_a_damaged_number_of_the_release_is_not_taken_for_none(vault: Vault, data: bytes) -> None:
    vault.install(2, FILES)
    path = vault.folder / "installed.json"
    sound = path.read_bytes()
    path.write_bytes(data)
    for ask in (vault.installed, vault.release_files):
        with pytest.raises(MesofedError, match=r"installed\.json; it is damaged"):
            ask()
    path.write_bytes(sound)
    assert vault.release_files() == FILES


@pytest.mark.parametrize("data", [None, b"", b"{", b"[1]", b"\xff\xfe", b"\0" * 40])
@pytest.mark.parametrize("name", ["meso.json", "meso.safetensors"])
def test_damaged_private_state_counts_as_not_trained(
    vault: Vault, name: str, data: bytes | None
) -> None:
    vault.save_private(1, "meso", {"weights": torch.ones(2)}, {"tokens": 1})
    path = vault.folder / "private" / "r1" / name
    path.unlink() if data is None else path.write_bytes(data)
    assert vault.load_private(1, "meso") is None
    vault.save_private(1, "meso", {"weights": torch.ones(2)}, {"tokens": 1})
    assert vault.load_private(1, "meso") is not None


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"{}"])
def test_what_else_is_damaged_counts_as_missing(vault: Vault, data: bytes) -> None:
    vault.save_embedding("abc", torch.ones(8))
    vault.save_statistics(1, {"release": 1})
    (vault.folder / "embedding" / "abc.safetensors").write_bytes(data)
    (vault.folder / "statistics" / "r1.json").write_bytes(data[:1])
    assert vault.load_embedding("abc") is None
    assert vault.statistics(1) is None


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"user_id": "ann"', "\n\n"])
def test_a_damaged_person_is_named_and_never_replaced(vault: Vault, line: str) -> None:
    vault.move_in(ANN)
    path = vault.folder / "person.jsonl"
    path.write_text(line)
    with pytest.raises(MesofedError, match=r"person\.jsonl"):
        vault.person()
    assert path.read_text() == line


def test_a_second_person_in_a_vault_is_not_passed_over(vault: Vault) -> None:
    vault.move_in(ANN)
    path = vault.folder / "person.jsonl"
    path.write_bytes(2 * path.read_bytes())
    said = r"person\.jsonl of the vault does not open"
    if vault.seal == OPEN:
        said = r"one person in .*person\.jsonl; got 2"
    with pytest.raises(MesofedError, match=said):
        vault.person()


def test_a_vault_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    vault = Vault(tmp_path / "file")
    for write in (
        lambda: vault.move_in(ANN),
        lambda: vault.install(1, FILES),
        lambda: vault.save_private(1, "meso", {"weights": torch.ones(1)}, {}),
        lambda: vault.save_embedding("abc", torch.ones(1)),
        lambda: vault.save_statistics(1, {}),
    ):
        with pytest.raises(MesofedError, match="Cannot write"):
            write()


def test_every_file_is_written_atomically(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    rename = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        named.append(str(Path(target).relative_to(vault.folder)))
        assert self.parent == Path(target).parent
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    vault.move_in(ANN)
    vault.trust(KEY)
    vault.install(1, FILES)
    vault.save_private(1, "oppu", {"weights": torch.ones(1)}, {})
    vault.save_embedding("f", torch.ones(1))
    vault.save_statistics(1, {})
    written = {
        str(Path(folder, name).relative_to(vault.folder))
        for folder, _, names in os.walk(vault.folder)
        for name in names
    }
    assert written == set(named)
    # What makes a release complete, and then the current one, goes last.
    order = [Path(name).name for name in named]
    assert order[:2] == ["journal.end", "person.jsonl"]  # and what makes it a vault
    assert order[3:6] == ["population.safetensors", "manifest.json", "installed.json"]
    assert len(written) == 10
    assert client.vault.write_bytes is atomic_file.write_bytes


def test_only_the_owner_may_read_a_vault(vault: Vault) -> None:
    before = os.umask(0)
    try:
        for _, write in WRITES:
            write(vault)
    finally:
        os.umask(before)
    found = [path for path in vault.folder.rglob("*") if path.is_file()]
    assert len(found) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_another_spelling_of_a_server_key_is_refused_before_it_is_pinned(vault: Vault) -> None:
    vault.trust(f"  {KEY}\n")
    assert vault.trusted() == KEY
    for text in (KEY[:-2] + "B=", KEY[:-1], "", "é"):
        with pytest.raises(MesofedError, match="public key"):
            vault.trust(text)
    assert vault.trusted() == KEY


# A file in the place of another


def test_sealed_files_in_each_others_place_are_refused(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "mine", SEALED)
    vault.save_statistics(1, {"release": 1})
    vault.save_statistics(2, {"release": 2})
    vault.save_private(1, "meso", {"weights": torch.ones(1)}, {"tokens": 1})
    vault.save_private(1, "oppu", {"weights": torch.zeros(1)}, {"tokens": 2})
    vault.install(1, FILES)
    folder = vault.folder
    shutil.copy(folder / "statistics" / "r1.json", folder / "statistics" / "r2.json")
    assert vault.statistics(2) is None
    for ending in ("safetensors", "json"):
        shutil.copy(folder / f"private/r1/oppu.{ending}", folder / f"private/r1/meso.{ending}")
    assert vault.load_private(1, "meso") is None
    before = (folder / "installed.json").read_bytes()
    vault.install(2, FILES)
    (folder / "releases" / "r2" / "manifest.json").write_bytes(
        (folder / "releases" / "r1" / "manifest.json").read_bytes()
    )
    assert "manifest.json" not in vault.release_files()
    # Going back to what the same file held before is what no seal can tell.
    (folder / "installed.json").write_bytes(before)
    assert vault.installed() == 1


def test_files_of_another_vault_are_refused(tmp_path: Path) -> None:
    mine, theirs = Vault(tmp_path / "a", SEALED), Vault(tmp_path / "b", Seal(bytes(32)))
    for vault in (mine, theirs):
        for _, write in WRITES:
            write(vault)
    shutil.copytree(theirs.folder, mine.folder, dirs_exist_ok=True)
    for ask in (mine.person, mine.trusted, mine.installed, mine.sent.entries):
        with pytest.raises(MesofedError):
            ask()
    assert mine.load_private(1, "oppu") is None
    assert mine.statistics(1) is None
    assert mine.load_embedding("f") is None


@pytest.mark.parametrize(("reader", "writer"), [(OPEN, SEALED), (SEALED, OPEN)])
def test_sealed_and_open_files_are_not_taken_for_each_other(
    tmp_path: Path, reader: Seal, writer: Seal
) -> None:
    for _, write in WRITES:
        write(Vault(tmp_path, writer))
    other = Vault(tmp_path, reader)
    for ask in (other.person, other.installed, other.sent.entries):
        with pytest.raises(MesofedError):
            ask()
    assert other.load_private(1, "oppu") is None
    assert other.statistics(1) is None
    assert other.load_embedding("f") is None


# A full disk, and a kill at every write

NEW = {"manifest.json": b'{"a": 2}', "population.safetensors": bytes(99)}
BOB = replace(ANN, user_id="bob")
OTHER_KEY = base64.b64encode(bytes(31) + b"\x01").decode()
Write = tuple[str, Callable[[Vault], None]]


def answered(number: int) -> dict[str, Any]:
    return {"time": "t", "request": "q", "release": number, "question": "", "content": "AA=="}


WRITES: list[Write] = [
    ("move in", lambda vault: vault.move_in(ANN)),
    ("trust", lambda vault: vault.trust(KEY)),
    ("install", lambda vault: vault.install(1, FILES)),
    ("private", lambda vault: vault.save_private(1, "oppu", {"w": torch.ones(9)}, {"n": 1})),
    ("embedding", lambda vault: vault.save_embedding("f", torch.ones(3))),
    ("statistics", lambda vault: vault.save_statistics(1, {"release": 1})),
    ("journal", lambda vault: vault.sent.add(answered(1))),
    ("session", lambda vault: vault.save_session(1, b"of a sum")),
    ("sockets", lambda vault: remember_socket(vault.folder, Path("/run/one.sock"))),
]
AGAIN: list[Write] = [
    ("move in", lambda vault: vault.move_in(BOB)),
    ("trust", lambda vault: vault.trust(OTHER_KEY)),
    ("install", lambda vault: vault.install(2, NEW)),
    ("private", lambda vault: vault.save_private(1, "oppu", {"w": torch.zeros(5)}, {"n": 2})),
    ("embedding", lambda vault: vault.save_embedding("f", torch.zeros(3))),
    ("statistics", lambda vault: vault.save_statistics(1, {"release": 1, "again": 1})),
    ("journal", lambda vault: vault.sent.add(answered(2))),
    ("repeat", lambda vault: vault.sent.add({**answered(1), "time": "later"})),
    ("session", lambda vault: vault.save_session(1, b"of the same sum, a stage on")),
    ("sockets", lambda vault: remember_socket(vault.folder, Path("/run/two.sock"))),
]


def state(vault: Vault) -> dict[str, Any]:
    """Everything that a vault says; it has to open."""
    private, embedding = vault.load_private(1, "oppu"), vault.load_embedding("f")
    return {
        "move in": vault.person(),
        "trust": vault.trusted(),
        "install": (vault.installed(), vault.release_files()),
        "private": private and ({n: t.tolist() for n, t in private[0].items()}, private[1]),
        "embedding": embedding is not None and embedding.tolist(),
        "statistics": vault.statistics(1),
        "journal": [entry["release"] for entry in vault.sent.entries()],
        "repeat": vault.sent.entries()[0]["times"],
        "session": vault.session(1),
        "sockets": remembered_sockets(vault.folder),
    }


@pytest.fixture
def lived_in(vault: Vault) -> Vault:
    for _, write in WRITES:
        write(vault)
    return vault


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let the kernel refuse to let any file grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", [name for name, _ in AGAIN])
def test_a_full_disk_leaves_the_former_state(lived_in: Vault, kind: str) -> None:
    before, write = state(lived_in), dict(AGAIN)[kind]
    room = lived_in.sent.journal.path.stat().st_size + 5 if kind == "journal" else 5
    with no_file_beyond(room), pytest.raises(MesofedError, match="Make room"):
        write(lived_in)
    assert state(lived_in) == before
    assert not list(lived_in.folder.rglob(".*.tmp"))  # a full disk is not filled further
    write(lived_in)
    after = state(lived_in)
    assert after[kind] != before[kind]
    assert {**after, kind: None} == {**before, kind: None}


@pytest.mark.parametrize("kind", [name for name, _ in AGAIN])
def test_an_error_when_the_bytes_reach_the_disk_is_told(
    lived_in: Vault, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(lived_in)

    def fails(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(MesofedError, match="Input/output error"):
            dict(AGAIN)[kind](lived_in)
    after = state(lived_in)
    if kind == "journal":  # it may tell of more than was sent
        after[kind] = after[kind][:1]
    assert after == before


CALLS = ("open", "write", "fsync", "replace", "rename", "link", "ftruncate", "unlink", "rmdir")


def dying(call: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def dies(*args: Any, **options: Any) -> Any:
        if next(left, 0) == 0:
            os._exit(9)
        return call(*args, **options)

    return dies


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Work in a process of its own that dies at a call of the system; return whether it died."""
    child = os.fork()
    if child == 0:
        try:
            left = iter(range(number, -1, -1))
            for name in CALLS:
                setattr(os, name, dying(getattr(os, name), left))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill cheaply")
@pytest.mark.parametrize("kind", [name for name, _ in AGAIN])
def test_a_kill_at_every_write_leaves_the_former_or_the_new_state(
    lived_in: Vault, tmp_path: Path, kind: str
) -> None:
    write, before = dict(AGAIN)[kind], state(lived_in)
    whole = tmp_path / "whole"
    shutil.copytree(lived_in.folder, whole)
    write(replace(lived_in, folder=whole))
    after = state(replace(lived_in, folder=whole))
    assert after[kind] != before[kind]
    seen, number = [], 0
    while True:
        copy = replace(lived_in, folder=tmp_path / f"copy{number}")
        shutil.copytree(lived_in.folder, copy.folder)
        died = killed_at(number, lambda home=copy: write(home))
        found = state(copy)
        if kind == "private" and found[kind] is None:  # it is trained again
            found[kind] = before[kind]
        assert found in (before, after)
        seen.append(found == after)
        if not died:
            break
        # A kill leaves nothing in the way of the same write.
        write(copy)
        again = state(copy)
        if kind == "repeat":  # it may tell of more than was sent
            assert again[kind] in (2, 3)
            again[kind] = 2
        assert again == after
        number += 1
    assert number >= 4  # the kills did hit the writes
    assert seen[0] is False
    assert seen[-1] is True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill cheaply")
@pytest.mark.usefixtures("quick_lock")
def test_a_kill_at_every_write_of_a_new_passphrase_leaves_one_of_the_two(tmp_path: Path) -> None:
    old, new, before = "four quiet old ducks", "six loud young geese", tmp_path / "before"
    seal = lock_with_passphrase(before, old)
    vault = Vault(before, seal)
    vault.move_in(ANN)
    opening, number = [], 0
    while True:
        copy = tmp_path / f"copy{number}"
        shutil.copytree(before, copy)
        died = killed_at(number, lambda home=copy: change_passphrase(home, seal, new))
        found = {words: opened for words in (old, new) if (opened := opens(copy, words))}
        assert len(found) == 1
        opening += found
        assert [Vault(copy, opened).person() for opened in found.values()] == [ANN]
        change_passphrase(copy, seal, new)  # nothing is in the way of the same again
        assert (opens(copy, old), opens(copy, new)) == (None, seal)
        if not died:
            break
        number += 1
    assert number >= 4
    assert (opening[0], opening[-1]) == (old, new)


def opens(folder: Path, passphrase: str) -> Seal | None:
    try:
        return unlock(folder, lambda: passphrase)
    except MesofedError:
        return None


# Releases that many vaults share


def inodes(vault: Vault, version: int) -> dict[str, int]:
    folder = vault.folder / "releases" / f"r{version}"
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_vaults_of_a_simulation_share_the_files_of_a_release(tmp_path: Path) -> None:
    a, b = (Vault(tmp_path / name, pool=tmp_path / "pool") for name in "ab")
    for vault in (a, b):
        vault.install(1, FILES)
        assert vault.release_files() == FILES
    assert inodes(a, 1) == inodes(b, 1)
    assert len(list((tmp_path / "pool").iterdir())) == len(FILES)


def test_installing_never_changes_the_file_of_another_vault(tmp_path: Path) -> None:
    a, b = (Vault(tmp_path / name, pool=tmp_path / "pool") for name in "ab")
    a.install(1, FILES)
    b.install(1, FILES)
    b.install(1, NEW)
    assert (a.release_files(), b.release_files()) == (FILES, NEW)
    b.install(2, FILES)
    b.install(3, NEW)
    assert (a.release_files(), b.release_files()) == (FILES, NEW)
    a.save_statistics(1, {"mine": 1})
    assert b.statistics(1) is None


def test_installing_the_same_again_leaves_nothing_behind(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "a", pool=tmp_path / "pool")
    for _ in range(3):
        vault.install(1, FILES)
    found = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert found == []
    assert vault.release_files() == FILES


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_without_links_a_vault_has_files_of_its_own(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fails)
    a, b = (Vault(tmp_path / name, pool=tmp_path / "pool") for name in "ab")
    a.install(1, FILES)
    b.install(1, FILES)
    assert a.release_files() == b.release_files() == FILES
    assert not set(inodes(a, 1).values()) & set(inodes(b, 1).values())


def test_a_damaged_file_is_mended_though_the_pool_has_a_link_to_it(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "a", pool=tmp_path / "pool")
    vault.install(1, FILES)
    with (vault.folder / "releases" / "r1" / "population.safetensors").open("r+b") as file:
        file.write(b"!")
    vault.install(1, FILES)
    assert vault.release_files() == FILES
