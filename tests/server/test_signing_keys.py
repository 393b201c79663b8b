"""Signing keys on disk: a crash at any write leaves a server whose releases old devices take."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from server.signing_keys import PRIVATE, PUBLIC, ROTATIONS, rotate, signer
from shared.errors import MesofedError
from shared.signature import MANIFEST, MAX_ROTATIONS, sign_release, verify_signature

FILES = {MANIFEST: b'{"release": 1}'}
WRITES = [(number, moment) for number in range(3) for moment in ("before", "after")]


class CrashError(BaseException):
    """Nothing in the code catches it, as nothing catches a kill."""


@contextmanager
def crash(number: int, moment: str) -> Iterator[None]:
    """Stop at the write of that number, before or after the file has its name."""
    rename, seen = Path.replace, iter(range(100))

    def replace(self: Path, target: Path) -> Path:
        now = next(seen) == number
        if now and moment == "before":
            raise CrashError
        done = rename(self, target)
        if now:
            raise CrashError
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(CrashError):
            yield


def takes(folder: Path, pinned: str) -> bool:
    """Whether a device that has pinned a key takes what the folder signs."""
    server = signer(folder)
    try:
        return verify_signature(sign_release(FILES, server), pinned) == server.public
    except MesofedError:
        return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_gets_a_key_and_keeps_it(tmp_path: Path) -> None:
    first = signer(tmp_path / "some" / "keys")
    assert signer(tmp_path / "some" / "keys").public == first.public
    assert first.rotations == ()
    assert (tmp_path / "some" / "keys" / PUBLIC).read_text() == first.public + "\n"
    assert signer(tmp_path / "other").public != first.public


def test_devices_of_every_age_follow_rotations(tmp_path: Path) -> None:
    pinned = [signer(tmp_path).public] + [rotate(tmp_path).public for _ in range(3)]
    assert len(set(pinned)) == 4
    for key in pinned:
        assert takes(tmp_path, key)
    assert not takes(tmp_path, signer(tmp_path / "other").public)
    assert (tmp_path / PUBLIC).read_text().strip() == pinned[-1]


@pytest.mark.parametrize(("number", "moment"), WRITES)
def test_a_crash_while_the_first_key_is_made_leaves_a_folder_that_works(
    tmp_path: Path, number: int, moment: str
) -> None:
    folder = tmp_path / "keys"
    with crash(number, moment):
        signer(folder)
    public = signer(folder).public
    assert takes(folder, public)
    assert (folder / PUBLIC).read_text() == public + "\n"
    rotate(folder)
    assert takes(folder, public)


@pytest.mark.parametrize(("number", "moment"), WRITES)
@pytest.mark.parametrize("former", [0, 2])
def test_a_crash_while_rotating_leaves_a_signer_that_old_devices_take(
    tmp_path: Path, number: int, moment: str, former: int
) -> None:
    first = signer(tmp_path).public
    for _ in range(former):
        rotate(tmp_path)
    before = signer(tmp_path).public
    with crash(number, moment):
        rotate(tmp_path)
    for pinned in (first, before, (tmp_path / PUBLIC).read_text().strip()):
        assert takes(tmp_path, pinned)
    # And it goes on from there.
    after = signer(tmp_path).public
    assert (tmp_path / PUBLIC).read_text() == after + "\n"
    rotate(tmp_path)
    assert signer(tmp_path).public != after
    for pinned in (first, before, after):
        assert takes(tmp_path, pinned)


def test_only_the_owner_may_read_the_private_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == PRIVATE:
            seen.append(mode(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    before = os.umask(0)
    try:
        signer(tmp_path / "keys")
        rotate(tmp_path / "keys")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "keys"), mode(tmp_path / "keys" / PRIVATE)) == (0o700, 0o600)
    assert seen == [0o600, 0o600]  # before it had its name, too


def test_the_old_private_key_is_gone_after_a_rotation(tmp_path: Path) -> None:
    signer(tmp_path)
    before = (tmp_path / PRIVATE).read_bytes()
    rotate(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [PRIVATE, PUBLIC, ROTATIONS]
    assert all(before not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(("rotations", "also"), [(0, None), (1, None), (1, PUBLIC)])
def test_a_lost_private_key_is_told_and_never_replaced(
    tmp_path: Path, rotations: int, also: str | None
) -> None:
    signer(tmp_path)
    for _ in range(rotations):
        rotate(tmp_path)
    (tmp_path / PRIVATE).unlink()
    if also is not None:
        (tmp_path / also).unlink()
    with pytest.raises(MesofedError, match="it is gone"):
        signer(tmp_path)
    with pytest.raises(MesofedError, match="there is none"):
        rotate(tmp_path)
    assert not (tmp_path / PRIVATE).exists()


def pem(key: ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


WRONG_KEYS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "noise": lambda: bytes(range(256)),
    "public": lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "encrypted": lambda: pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
    "of another kind": lambda: pem(x25519.X25519PrivateKey.generate()),
}


@pytest.mark.parametrize("kind", WRONG_KEYS)
def test_a_wrong_private_key_is_named_and_kept(tmp_path: Path, kind: str) -> None:
    signer(tmp_path)
    data = WRONG_KEYS[kind]()
    (tmp_path / PRIVATE).write_bytes(data)
    for use in (signer, rotate):
        with pytest.raises(MesofedError, match=r"release\.pem"):
            use(tmp_path)
    assert (tmp_path / PRIVATE).read_bytes() == data


@pytest.mark.parametrize("data", [b"", b"{", b"5", b'[{"old": 1}]', b"[[]]", b"\xff", b'{"a": 1}'])
def test_damaged_rotations_are_named_and_kept(tmp_path: Path, data: bytes) -> None:
    signer(tmp_path)
    rotate(tmp_path)
    (tmp_path / ROTATIONS).write_bytes(data)
    for use in (signer, rotate):
        with pytest.raises(MesofedError, match=r"rotations\.json; it is damaged"):
            use(tmp_path)
    assert (tmp_path / ROTATIONS).read_bytes() == data


def test_rotations_of_another_key_are_not_carried(tmp_path: Path) -> None:
    signer(tmp_path / "a")
    rotate(tmp_path / "a")
    public = signer(tmp_path / "b").public
    (tmp_path / "b" / ROTATIONS).write_bytes((tmp_path / "a" / ROTATIONS).read_bytes())
    assert signer(tmp_path / "b").rotations == ()
    assert takes(tmp_path / "b", public)


def test_there_is_nothing_to_rotate_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match="there is none"):
        rotate(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rotations_are_counted_and_the_last_key_still_serves(tmp_path: Path) -> None:
    first = signer(tmp_path).public
    for _ in range(MAX_ROTATIONS):
        rotate(tmp_path)
    last = signer(tmp_path).public
    with pytest.raises(MesofedError, match="these are spent"):
        rotate(tmp_path)
    assert signer(tmp_path).public == last
    assert takes(tmp_path, first)


@pytest.mark.parametrize("use", [signer, lambda folder: signer(folder / "below")])
def test_a_file_in_the_place_of_the_folder_ends_in_a_sentence(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    (tmp_path / "keys").write_bytes(b"mine")
    with pytest.raises(MesofedError, match="keys"):
        use(tmp_path / "keys")
    assert (tmp_path / "keys").read_bytes() == b"mine"
