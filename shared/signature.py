"""Signed releases: one Ed25519 signature over the manifest, which names every other file's hash.

    manifest.json   hashes, ranks, version, base model      what is signed
    manifest.sig    key, signature, rotations               how a device knows who made it

A device pins the server's public key. A server that changes its key carries the old key's word
for the new one, a *rotation*, in every release; a device that verifies such a release pins the
new key and takes the old one no more.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.errors import MesofedError
from shared.program import command, command_elsewhere
from shared.release_files import MANIFEST, SIGNATURE

MAX_ROTATIONS = 64
_MOST_BYTES = 1 << 16
"""Of ``manifest.sig``; three times what the most rotations take."""

# What is signed begins with its purpose, so that no signature can be shown as another's.
_RELEASE = b"mesofed release v1\n"
_ROTATION = b"mesofed key rotation v1\n"

# The last letter before the padding has spare bits. They have to be 0: a key of two spellings
# would be two keys to a device.
KeyText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$")]
"""A public key: 32 bytes in base64."""
_SignatureText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{85}[AQgw]==$")]


class _Signed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Rotation(_Signed):
    """The word of one key for the next."""

    old: KeyText
    new: KeyText
    signature: _SignatureText


class ReleaseSignature(_Signed):
    """The content of ``manifest.sig``."""

    format: Literal[1]
    key: KeyText
    signature: _SignatureText
    rotations: Annotated[tuple[Rotation, ...], Field(max_length=MAX_ROTATIONS, strict=False)] = ()


@dataclass(frozen=True)
class Signer:
    """What a server signs with.

    Attributes
    ----------
    key : Ed25519PrivateKey
        The current key.
    rotations : tuple of Rotation
        From the server's first key to the current one.
    """

    key: Ed25519PrivateKey
    rotations: tuple[Rotation, ...] = ()

    @property
    def public(self) -> str:
        """The public key that devices pin."""
        return key_text(self.key.public_key())


def key_text(key: Ed25519PublicKey) -> str:
    """Return a public key as text: base64 of its 32 bytes."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def read_key_text(text: str) -> Ed25519PublicKey:
    """Return the public key of a text.

    Raises
    ------
    MesofedError
        If the text is no public key.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text.strip(), validate=True))
        if key_text(key) != text.strip():
            raise ValueError("another spelling of a key")
        return key
    except (binascii.Error, ValueError) as error:
        raise MesofedError(
            f"Expected a server's public key, 44 characters that end with '='; got {text[:60]!r}. "
            f"Ask the server's operator for it (`{command_elsewhere('release', 'key')}`)."
        ) from error


def sign_release(files: Mapping[str, bytes], signer: Signer) -> dict[str, bytes]:
    """Return the files of a release with their signature."""
    signature = ReleaseSignature(
        format=1,
        key=signer.public,
        signature=_text(signer.key.sign(_RELEASE + files[MANIFEST])),
        rotations=signer.rotations,
    )
    return {**files, SIGNATURE: signature.model_dump_json(indent=1).encode()}


def rotation(old: Ed25519PrivateKey, new: Ed25519PublicKey) -> Rotation:
    """Return the word of an old key for a new one."""
    before = old.public_key()
    signature = old.sign(_rotation_bytes(before, new))
    return Rotation(old=key_text(before), new=key_text(new), signature=_text(signature))


def read_signature(files: Mapping[str, bytes]) -> ReleaseSignature:
    """Return what a release's signature file says; nothing is verified yet.

    Raises
    ------
    MesofedError
        If there is none, or it is malformed.
    """
    data = files.get(SIGNATURE, b"")
    try:
        return ReleaseSignature.model_validate_json(data if len(data) <= _MOST_BYTES else b"")
    except ValidationError as error:
        raise MesofedError(
            f"Expected a signed release, with its {SIGNATURE}; "
            f"got {'none' if SIGNATURE not in files else 'a malformed one'}. Do not use it."
        ) from error


def verify_signature(files: Mapping[str, bytes], pinned: str) -> str:
    """Return the key that a release is signed with, once it is sure that ``pinned`` vouches for it.

    Hashes are not looked at here; :func:`shared.release_files.verify_files` does.

    Parameters
    ----------
    pinned : str
        The public key that the device trusts.

    Returns
    -------
    str
        ``pinned``, or the key that it, or a key in between, has named as the next.

    Raises
    ------
    MesofedError
        If there is no signature, it is not the manifest's, or its key is not vouched for.
    """
    signed = read_signature(files)
    trusted = _vouched(signed.rotations, pinned)
    if signed.key != trusted:
        raise MesofedError(
            f"Expected a release signed with the key {trusted}; got one of {signed.key}. If the "
            "server's operator confirms the new key, trust it with "
            f"`{command('device', 'trust')}`."
        )
    _verify(signed.key, signed.signature, _RELEASE + files.get(MANIFEST, b""))
    return trusted


def _vouched(rotations: Sequence[Rotation], pinned: str) -> str:
    """Follow the rotations from the pinned key on; each has to be signed by the key before."""
    trusted = pinned
    for step in rotations:
        if step.old == trusted:
            _verify(step.old, step.signature, _rotation_bytes(_key(step.old), _key(step.new)))
            trusted = step.new
    return trusted


def _verify(key: str, signature: str, data: bytes) -> None:
    try:
        _key(key).verify(base64.b64decode(signature), data)
    except InvalidSignature as error:
        raise MesofedError(
            f"The signature of the release is not that of the key {key}: the release was changed "
            "after it was signed, or the key is not its own. Do not use it."
        ) from error


def _rotation_bytes(old: Ed25519PublicKey, new: Ed25519PublicKey) -> bytes:
    return _ROTATION + old.public_bytes_raw() + new.public_bytes_raw()


def _key(text: str) -> Ed25519PublicKey:
    return read_key_text(text)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
