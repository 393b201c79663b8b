"""The lock of a vault: how its key is kept, and how a person opens it.

    lock.json   {"format": 1, "vault": id, "kind": "passphrase", "kdf": {...}, "wrapped": ...}

The vault's key is random and never stored as it is. It is wrapped (AES-256-GCM) with a key that
Argon2id makes of a passphrase, or lies in the keyring of the operating system. A passphrase can be
changed without touching the vault's files.
"""

import base64
import binascii
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from client.seal import (
    FORMAT,
    KEY_BYTES,
    MAGIC,
    OPEN,
    DamagedError,
    NewerError,
    Seal,
    sealed_format,
)
from shared.atomic_file import write_bytes
from shared.errors import MesofedError

LOCK, PERSON = "lock.json", "person.jsonl"
KEYRING_SERVICE = "mesofed vault"
AMPLE_PASSPHRASE = 12
"""Characters; a shorter passphrase is taken with a warning."""

# The second recommendation of RFC 9106: for machines without 2 GiB to spare.
_ITERATIONS, _LANES, _MEMORY_KIB = 3, 4, 64 * 1024
_LEAST_SALT_BYTES = 8


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Kdf(_Part):
    """Parameters of Argon2id; bounded, so that a changed file cannot stall the machine."""

    salt: str
    iterations: Annotated[int, Field(ge=1, le=16)] = _ITERATIONS
    lanes: Annotated[int, Field(ge=1, le=16)] = _LANES
    memory_kib: Annotated[int, Field(ge=8 * 1024, le=1 << 20)] = _MEMORY_KIB


class Lock(_Part):
    """The content of ``lock.json``.

    Attributes
    ----------
    vault : str
        Identifies the vault, in the keyring too.
    kdf, wrapped
        With a passphrase: how its key is made, and the vault's key sealed with it, in base64.
    """

    format: Literal[1] = 1
    vault: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    kind: Literal["passphrase", "keyring"]
    kdf: Kdf | None = None
    wrapped: str | None = None


def lock_with_passphrase(folder: Path, passphrase: str) -> Seal:
    """Give a new vault a key, wrapped with a passphrase.

    Raises
    ------
    MesofedError
        If the passphrase is empty, or the folder cannot be written.
    """
    return _wrap(folder, secrets.token_hex(16), secrets.token_bytes(KEY_BYTES), passphrase)


def change_passphrase(folder: Path, seal: Seal, passphrase: str) -> None:
    """Wrap the key of an opened vault with another passphrase; a keyring keeps it no more."""
    if seal.key is None:
        raise MesofedError(f"{folder} is the vault of a simulation: it has no lock to change.")
    before = read_lock(folder)
    _wrap(folder, before.vault, seal.key, passphrase)
    if before.kind == "keyring":
        _delete_from_keyring(before.vault)


def lock_with_keyring(folder: Path) -> Seal:
    """Give a new vault a key that the keyring of the operating system keeps.

    Raises
    ------
    MesofedError
        If there is no keyring that works, or the folder cannot be written.
    """
    vault, key = secrets.token_hex(16), secrets.token_bytes(KEY_BYTES)
    _keyring(lambda ring: ring.set_password(KEYRING_SERVICE, vault, _text(key)))
    _write(folder, Lock(vault=vault, kind="keyring"))
    return Seal(key)


def keyring_works() -> bool:
    """Return whether the operating system has a keyring to keep secrets in."""
    import keyring

    return bool(keyring.get_keyring().priority > 0)


def unlock(folder: Path, passphrase: Callable[[], str]) -> Seal:
    """Open a vault; the vault of a simulation has no lock.

    Parameters
    ----------
    passphrase : callable
        Asks for it, where one is needed.

    Raises
    ------
    MesofedError
        If the lock is damaged, the passphrase is wrong, or the keyring has no such key.
    """
    if not (folder / LOCK).exists() and not is_sealed(folder):
        return OPEN
    lock = read_lock(folder)
    if lock.kind == "keyring":
        kept = _keyring(lambda ring: ring.get_password(KEYRING_SERVICE, lock.vault))
        if kept is None:
            raise MesofedError(
                f"Expected the key of {folder} in this user's keyring; there is none. Open the "
                "vault as the user who made it, on the same machine."
            )
        key = _bytes(kept, folder)
        if len(key) != KEY_BYTES:
            raise MesofedError(
                f"Expected a key of {KEY_BYTES} bytes for {folder} in this user's keyring; it is "
                "damaged. Restore the keyring from a copy."
            )
        return Seal(key)
    assert lock.kdf is not None
    assert lock.wrapped is not None
    try:
        wrapping = _derive(passphrase(), lock.kdf, folder)
        return Seal(wrapping.open(_wrapped_name(lock.vault), _bytes(lock.wrapped, folder)))
    except DamagedError as error:
        raise MesofedError(
            f"The passphrase does not open {folder}: it is another one, or {LOCK} was damaged. Try "
            f"again, or restore {LOCK} from a copy; without both nobody can open the vault."
        ) from error


def read_lock(folder: Path) -> Lock:
    """Return the lock of a vault.

    Raises
    ------
    MesofedError
        If it is missing or damaged.
    NewerError
        If it is of a later format.
    """
    path = folder / LOCK
    try:
        data = path.read_bytes()
        _check_format(path, data)
        lock = Lock.model_validate_json(data)
    except (OSError, ValidationError) as error:
        raise MesofedError(
            f"Expected the lock of a vault in {path}; it is missing or damaged. Restore it from a "
            "copy: without it the vault's key is lost."
        ) from error
    if lock.kind == "passphrase" and (lock.kdf is None or lock.wrapped is None):
        raise MesofedError(f"Expected a wrapped key in {path}; it is damaged. Restore it.")
    return lock


def is_sealed(folder: Path) -> bool:
    """Return whether a vault's files are sealed, whatever its lock says."""
    if not folder.is_dir():
        return False
    # One that is missing or damaged must not make the others look open.
    return any(_begins_sealed(path) for path in folder.iterdir() if path.is_file())


def forget_key(folder: Path) -> None:
    """Destroy the key of a vault: from then on nobody can read its files."""
    if not (folder / LOCK).exists():
        return
    try:
        lock = read_lock(folder)
    except NewerError:  # where its key is kept, only a newer Mesofed knows
        raise
    except MesofedError:
        lock = None
    if lock is not None and lock.kind == "keyring":
        _delete_from_keyring(lock.vault)
    path = folder / LOCK
    with path.open("r+b") as file:  # the wrapped key itself, before its name goes
        file.write(b"\0" * path.stat().st_size)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _wrap(folder: Path, vault: str, key: bytes, passphrase: str) -> Seal:
    if not passphrase:
        raise MesofedError("Expected a passphrase; got an empty one. Several words are best.")
    kdf = Kdf(salt=_text(secrets.token_bytes(16)))
    wrapped = _derive(passphrase, kdf, folder).close(_wrapped_name(vault), key)
    _write(folder, Lock(vault=vault, kind="passphrase", kdf=kdf, wrapped=_text(wrapped)))
    return Seal(key)


def _check_format(path: Path, data: bytes) -> None:
    """Refuse a lock of a later format, whatever else is in it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # no lock at all
        return
    number = found.get("format") if isinstance(found, dict) else None
    if type(number) is int and number > FORMAT:
        raise NewerError(str(path), number)


def _begins_sealed(path: Path) -> bool:
    with path.open("rb") as file:
        return sealed_format(file.read(len(MAGIC))) is not None


def _wrapped_name(vault: str) -> str:
    return f"{LOCK}/{vault}"


def _derive(passphrase: str, kdf: Kdf, folder: Path) -> Seal:
    salt = _bytes(kdf.salt, folder)
    if len(salt) < _LEAST_SALT_BYTES:
        raise MesofedError(f"{folder / LOCK} is damaged: its salt is too short. Restore it.")
    try:
        words = passphrase.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MesofedError("Expected a passphrase in UTF-8; got other bytes.") from error
    argon = Argon2id(
        salt=salt,
        length=KEY_BYTES,
        iterations=kdf.iterations,
        lanes=kdf.lanes,
        memory_cost=kdf.memory_kib,
    )
    return Seal(argon.derive(words))


def _write(folder: Path, lock: Lock) -> None:
    text = lock.model_dump_json(indent=1, exclude_none=True) + "\n"
    write_bytes(folder / LOCK, text.encode(), mode=0o600)
    folder.chmod(0o700)


def _delete_from_keyring(vault: str) -> None:
    def delete(ring: Any) -> None:
        if ring.get_password(KEYRING_SERVICE, vault) is not None:
            ring.delete_password(KEYRING_SERVICE, vault)

    _keyring(delete)


def _keyring(use: Callable[..., str | None]) -> str | None:
    import keyring
    from keyring.errors import KeyringError

    try:
        return use(keyring)
    except KeyringError as error:
        raise MesofedError(
            f"The operating system's keyring does not work here ({error}). Unlock it, or make the "
            "vault with --lock passphrase."
        ) from error


def _text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str, folder: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MesofedError(f"{folder / LOCK} is damaged: a key in it is no base64.") from error
