"""The server's signing keys on disk: one current key, and the chain that led to it.

release.pem      the private key (PKCS 8, not encrypted): keep it from everybody
release.pub      the public key, which devices pin
rotations.json   the old keys' words for the new ones
"""

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from shared.atomic_file import write_bytes, write_json
from shared.errors import MesofedError
from shared.program import command, command_elsewhere
from shared.signature import MAX_ROTATIONS, Rotation, Signer, rotation

PRIVATE, PUBLIC, ROTATIONS = "release.pem", "release.pub", "rotations.json"


def signer(folder: Path) -> Signer:
    """Return the folder's signer; a folder without keys gets a new one.

    Raises
    ------
    MesofedError
        If a file is damaged or of another kind, or the folder cannot be written.
    """
    if not (folder / PRIVATE).exists():
        # A crash while the very first key was made leaves an empty chain and nothing else.
        if (folder / PUBLIC).exists() or _read_rotations(folder / ROTATIONS):
            raise MesofedError(
                f"Expected the private key {folder / PRIVATE}; it is gone, while other key files "
                "are there. Restore it: devices take no releases signed with another key."
            )
        _write(folder, Signer(Ed25519PrivateKey.generate()))
    key, chain = _read_key(folder / PRIVATE), _read_rotations(folder / ROTATIONS)
    # A crash between the files of a rotation leaves the old key with the new chain.
    while chain and chain[-1].new != Signer(key).public:
        chain = chain[:-1]
    found = Signer(key, chain)
    _publish(folder, found)
    return found


def rotate(folder: Path) -> Signer:
    """Make a new key, vouched for by the old one, which is then deleted.

    Raises
    ------
    MesofedError
        If there is no key yet, or there were too many.
    """
    if not (folder / PRIVATE).exists():
        raise MesofedError(
            f"Expected a signing key in {folder} to rotate; there is none. "
            f"`{command('release', 'key', folder)}` makes one."
        )
    before = signer(folder)
    if len(before.rotations) >= MAX_ROTATIONS:
        raise MesofedError(
            f"Expected at most {MAX_ROTATIONS} rotations of a key; these are spent. Start a new "
            f"folder of keys, and let devices trust it: `{command_elsewhere('device', 'trust')}`."
        )
    key = Ed25519PrivateKey.generate()
    after = Signer(key, (*before.rotations, rotation(before.key, key.public_key())))
    _write(folder, after)
    return after


def _write(folder: Path, keys: Signer) -> None:
    """Write the chain, then the key that it ends with, then what is derived from it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise MesofedError(
            f"Expected {folder} to be a folder of this user's own for signing keys: "
            f"{error.strerror}. Name another."
        ) from error
    write_json(folder / ROTATIONS, [step.model_dump() for step in keys.rotations])
    pem = keys.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_bytes(folder / PRIVATE, pem, mode=0o600)
    _publish(folder, keys)


def _publish(folder: Path, keys: Signer) -> None:
    """Write the public key, unless it is there; a crash may have left none, or the former one."""
    path, text = folder / PUBLIC, (keys.public + "\n").encode()
    if not path.is_file() or path.read_bytes() != text:
        write_bytes(path, text)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise MesofedError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise MesofedError(
            f"Expected an unencrypted private key in PEM in {path}; it is damaged or another "
            "kind of file. Restore it."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise MesofedError(f"Expected an Ed25519 key in {path}; got {type(key).__name__}.")
    return key


def _read_rotations(path: Path) -> tuple[Rotation, ...]:
    if not path.exists():
        return ()
    try:
        return tuple(map(Rotation.model_validate, json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, ValidationError, TypeError) as error:
        raise MesofedError(
            f"Expected key rotations in {path}; it is damaged. Restore it."
        ) from error
