"""Locks: the key behind a passphrase or in a keyring, and no way around either."""

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

import client.lock
from client.lock import (
    KEYRING_SERVICE,
    LOCK,
    Kdf,
    change_passphrase,
    forget_key,
    keyring_works,
    lock_with_keyring,
    lock_with_passphrase,
    read_lock,
    unlock,
)
from client.seal import OPEN, NewerError, Seal
from client.vault import Vault
from shared.corpus.user import User
from shared.errors import MesofedError

pytestmark = pytest.mark.usefixtures("quick_lock")
WORDS = "four quiet old ducks"


def never() -> str:
    raise AssertionError("nobody may be asked for a passphrase")


def opened(folder: Path, words: str = WORDS) -> Seal:
    return unlock(folder, lambda: words)


# The key of a passphrase


def test_argon2id_is_that_of_rfc_9106() -> None:
    # Section 5.3: the test vector of Argon2id.
    tag = Argon2id(
        salt=b"\x02" * 16,
        length=32,
        iterations=3,
        lanes=4,
        memory_cost=32,
        ad=b"\x04" * 12,
        secret=b"\x03" * 8,
    ).derive(b"\x01" * 32)
    assert tag.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def test_a_key_is_derived_as_the_reference_implementation_does(tmp_path: Path) -> None:
    # test.c of the reference implementation, Argon2id, version 0x13.
    kdf = Kdf(salt=base64.b64encode(b"somesalt").decode(), iterations=2, lanes=1, memory_kib=65536)
    seal = client.lock._derive("password", kdf, tmp_path)
    assert seal.key is not None
    assert seal.key.hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"


def test_the_parameters_are_those_that_the_rfc_recommends() -> None:
    assert (client.lock._ITERATIONS, client.lock._LANES) == (3, 4)
    assert client.lock._MEMORY_KIB == 2**16


def test_the_right_passphrase_opens_and_others_do_not(tmp_path: Path) -> None:
    seal = lock_with_passphrase(tmp_path, WORDS)
    assert opened(tmp_path) == seal
    assert seal.key is not None
    assert len(seal.key) == 32
    for other in ("", WORDS + " ", WORDS.title(), WORDS[:-1], "four quiet old ducks\0"):
        with pytest.raises(MesofedError, match="The passphrase does not open"):
            opened(tmp_path, other)


def test_the_key_is_random_and_never_in_the_lock(tmp_path: Path) -> None:
    seals = [lock_with_passphrase(tmp_path / name, WORDS) for name in "ab"]
    locks = [read_lock(tmp_path / name) for name in "ab"]
    assert seals[0].key != seals[1].key
    assert locks[0].vault != locks[1].vault
    assert locks[0].kdf is not None
    assert locks[1].kdf is not None
    assert locks[0].kdf.salt != locks[1].kdf.salt
    for seal, name in zip(seals, "ab", strict=True):
        assert seal.key is not None
        data = (tmp_path / name / LOCK).read_bytes()
        for form in (seal.key, seal.key.hex().encode(), base64.b64encode(seal.key)[:-2]):
            assert form not in data
        assert WORDS.encode() not in data


def test_the_key_of_one_vault_does_not_open_another(tmp_path: Path, canary_user: User) -> None:
    seals = [lock_with_passphrase(tmp_path / name, WORDS) for name in "ab"]
    for seal, name in zip(seals, "ab", strict=True):
        Vault(tmp_path / name, seal).move_in(canary_user)
    (tmp_path / "a" / "person.jsonl").replace(tmp_path / "b" / "person.jsonl")
    with pytest.raises(MesofedError, match=r"person\.jsonl of the vault does not open"):
        Vault(tmp_path / "b", seals[1]).person()
    # A lock with another vault's wrapped key in it: its name belongs to that vault.
    mine, theirs = (json.loads((tmp_path / name / LOCK).read_text()) for name in "ab")
    mine["wrapped"], mine["kdf"] = theirs["wrapped"], theirs["kdf"]
    (tmp_path / "a" / LOCK).write_text(json.dumps(mine))
    with pytest.raises(MesofedError, match="The passphrase does not open"):
        opened(tmp_path / "a")


def test_only_the_owner_may_look_at_a_vault(tmp_path: Path, ring: Any) -> None:
    before = os.umask(0)
    try:
        lock_with_passphrase(tmp_path / "a", WORDS)
        lock_with_keyring(tmp_path / "b")
    finally:
        os.umask(before)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / name / LOCK).stat().st_mode) == 0o600


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match="empty one"):
        lock_with_passphrase(tmp_path / "a", "")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("words", ["\udcff", "a\ud800"])
def test_a_passphrase_that_is_no_text_ends_in_a_sentence(tmp_path: Path, words: str) -> None:
    """As a variable of the environment with a stray byte comes to Python."""
    with pytest.raises(MesofedError, match="passphrase"):
        lock_with_passphrase(tmp_path / "a", words)
    lock_with_passphrase(tmp_path, WORDS)
    with pytest.raises(MesofedError, match="passphrase"):
        opened(tmp_path, words)


# Another passphrase


def test_a_changed_passphrase_opens_the_same_files_and_the_old_one_nothing(
    tmp_path: Path, canary_user: User
) -> None:
    seal = lock_with_passphrase(tmp_path, WORDS)
    Vault(tmp_path, seal).move_in(canary_user)
    change_passphrase(tmp_path, seal, "three loud young geese")
    again = opened(tmp_path, "three loud young geese")
    assert Vault(tmp_path, again).person() == canary_user
    with pytest.raises(MesofedError, match="does not open"):
        opened(tmp_path)
    with pytest.raises(MesofedError, match="empty one"):
        change_passphrase(tmp_path, seal, "")
    assert opened(tmp_path, "three loud young geese") == seal


def test_a_passphrase_takes_the_key_out_of_the_keyring(tmp_path: Path, ring: Any) -> None:
    seal = lock_with_keyring(tmp_path)
    change_passphrase(tmp_path, seal, WORDS)
    assert opened(tmp_path) == seal
    assert ring.kept == {}


def test_the_vault_of_a_simulation_has_no_lock_to_change(tmp_path: Path, canary_user: User) -> None:
    Vault(tmp_path).move_in(canary_user)
    with pytest.raises(MesofedError, match="no lock to change"):
        change_passphrase(tmp_path, unlock(tmp_path, never), WORDS)
    assert not (tmp_path / LOCK).exists()


# Damage


def test_a_flipped_bit_in_the_lock_never_gives_another_key(tmp_path: Path) -> None:
    seal = lock_with_passphrase(tmp_path, WORDS)
    whole, opens = (tmp_path / LOCK).read_bytes(), 0
    for where in range(len(whole)):
        data = bytearray(whole)
        data[where] ^= 1
        (tmp_path / LOCK).write_bytes(bytes(data))
        try:
            assert opened(tmp_path) == seal
            opens += 1
        except MesofedError:
            continue
    # Spare bits of base64, and spaces between the fields.
    assert opens < 40


BROKEN = [
    "",
    "{}",
    "null",
    "\0",
    '{"format": 1, "vault": "%s", "kind": "passphrase"}' % ("0" * 32),
    '{"format": 0, "vault": "%s", "kind": "keyring"}' % ("0" * 32),
    '{"format": 1, "vault": "../..", "kind": "keyring"}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_damaged_lock_is_named_before_anybody_is_asked(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(MesofedError, match=r"lock\.json"):
        unlock(tmp_path, never)


@pytest.mark.parametrize("more", [{}, {"kind": "passkey", "rounds": [1]}])
def test_the_lock_of_a_newer_mesofed_says_to_update_and_is_not_destroyed(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    lock_with_passphrase(tmp_path, WORDS)
    content = json.loads((tmp_path / LOCK).read_text())
    later = json.dumps({**content, **more, "format": 2})
    (tmp_path / LOCK).write_text(later)
    for use in (lambda: unlock(tmp_path, never), lambda: forget_key(tmp_path)):
        with pytest.raises(
            NewerError, match=r"lock\.json in format 1; got format 2.*Update Mesofed"
        ):
            use()
    assert (tmp_path / LOCK).read_text() == later


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("salt", ""),
        ("salt", "AAAA"),
        ("salt", "!"),
        ("iterations", 0),
        ("iterations", 10**9),
        ("lanes", 0),
        ("memory_kib", 1),
        ("memory_kib", 1 << 40),
    ],
)
def test_impossible_parameters_end_in_a_sentence(
    tmp_path: Path, part: str, value: str | int
) -> None:
    lock_with_passphrase(tmp_path, WORDS)
    content = json.loads((tmp_path / LOCK).read_text())
    content["kdf"][part] = value
    (tmp_path / LOCK).write_text(json.dumps(content))
    with pytest.raises(MesofedError, match=r"lock\.json"):
        opened(tmp_path)


@pytest.mark.parametrize("wrapped", ["", "AAAA", "!", "A" * 88])
def test_a_damaged_key_ends_in_a_sentence(tmp_path: Path, wrapped: str) -> None:
    lock_with_passphrase(tmp_path, WORDS)
    content = json.loads((tmp_path / LOCK).read_text())
    content["wrapped"] = wrapped
    (tmp_path / LOCK).write_text(json.dumps(content))
    with pytest.raises(MesofedError):
        opened(tmp_path)


@pytest.mark.parametrize("also", [None, "person.jsonl", "installed.json", "server.pub"])
def test_a_vault_without_its_lock_is_never_taken_for_an_open_one(
    tmp_path: Path, canary_user: User, also: str | None
) -> None:
    vault = Vault(tmp_path, lock_with_passphrase(tmp_path, WORDS))
    vault.move_in(canary_user)
    vault.trust(base64.b64encode(bytes(32)).decode())
    vault.install(1, {"manifest.json": b"{}"})
    (tmp_path / LOCK).unlink()
    if also is not None:
        (tmp_path / also).write_bytes(b"")  # damaged, or written anew by somebody
    with pytest.raises(MesofedError, match="Expected the lock of a vault"):
        unlock(tmp_path, never)


def test_a_vault_that_was_never_locked_is_open(tmp_path: Path, canary_user: User) -> None:
    assert unlock(tmp_path / "none", never) == OPEN
    Vault(tmp_path).move_in(canary_user)
    assert unlock(tmp_path, never) == OPEN


# The keyring


def test_the_keyring_keeps_the_key_and_the_vault_none(tmp_path: Path, ring: Any) -> None:
    assert keyring_works()
    seal = lock_with_keyring(tmp_path)
    assert unlock(tmp_path, never) == seal
    assert seal.key is not None
    kept = ring.kept[KEYRING_SERVICE, read_lock(tmp_path).vault]
    assert base64.b64decode(kept) == seal.key
    assert kept.encode() not in (tmp_path / LOCK).read_bytes()
    assert read_lock(tmp_path).wrapped is None


def test_a_key_that_the_keyring_lost_or_spoilt_is_told(tmp_path: Path, ring: Any) -> None:
    lock_with_keyring(tmp_path)
    (place,) = ring.kept
    for spoilt in ("!", "", base64.b64encode(bytes(5)).decode()):
        ring.kept[place] = spoilt
        with pytest.raises(MesofedError):
            unlock(tmp_path, never)
    del ring.kept[place]
    with pytest.raises(MesofedError, match="in this user's keyring; there is none"):
        unlock(tmp_path, never)


def test_a_keyring_that_is_locked_or_missing_ends_in_a_sentence(tmp_path: Path, ring: Any) -> None:
    lock_with_keyring(tmp_path / "a")
    ring.locked = True
    for use in (
        lambda: lock_with_keyring(tmp_path / "b"),
        lambda: unlock(tmp_path / "a", never),
        lambda: forget_key(tmp_path / "a"),
    ):
        with pytest.raises(MesofedError, match="keyring does not work here"):
            use()
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "a" / LOCK).exists()


# Forgetting


def test_a_forgotten_passphrase_lock_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_with_passphrase(tmp_path, WORDS)
    os.link(tmp_path / LOCK, tmp_path / "copy")  # to see what the blocks on the disk hold
    size = (tmp_path / "copy").stat().st_size
    forget_key(tmp_path)
    assert not (tmp_path / LOCK).exists()
    assert (tmp_path / "copy").read_bytes() == bytes(size)
    forget_key(tmp_path)


def test_a_forgotten_key_leaves_the_keyring(tmp_path: Path, ring: Any) -> None:
    lock_with_keyring(tmp_path / "a")
    lock_with_keyring(tmp_path / "b")
    forget_key(tmp_path / "a")
    assert [user for _, user in ring.kept] == [read_lock(tmp_path / "b").vault]


def test_forgetting_that_was_cut_short_is_finished(tmp_path: Path, ring: Any) -> None:
    lock_with_keyring(tmp_path)
    ring.kept.clear()
    forget_key(tmp_path)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("data", [b"", b"{", b"\0" * 30])
def test_a_damaged_lock_can_be_forgotten(tmp_path: Path, data: bytes) -> None:
    (tmp_path / LOCK).write_bytes(data)
    forget_key(tmp_path)
    assert not (tmp_path / LOCK).exists()
