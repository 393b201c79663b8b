"""Encryption at rest: every file of a vault is sealed with the vault's own key.

    sealed = "MSV1" | nonce (12 bytes) | AES-256-GCM(key, nonce, bytes), bound to the file's name

Binding the name keeps one file from being put in the place of another; another vault's file has
another key. A flipped bit anywhere makes the file unreadable, never wrong.
"""

import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import MesofedError

KEY_BYTES = 32
FORMAT = 1
_FAMILY, _NONCE_BYTES, _TAG_BYTES = b"MSV", 12, 16
MAGIC = _FAMILY + b"%d" % FORMAT


class DamagedError(MesofedError):
    """A sealed file that does not open: damaged, changed, moved, or sealed with another key."""


class NewerError(MesofedError):
    """Something that a newer Mesofed has written: sound, and not to be taken for missing."""

    def __init__(self, what: str, found: int) -> None:
        super().__init__(
            f"Expected {what} in format {FORMAT}; got format {found}: a vault made by a newer "
            "Mesofed. Update Mesofed; nothing was changed."
        )


def sealed_format(data: bytes) -> int | None:
    """Return the format that sealed data begins with, or None if it is not sealed."""
    number = data[len(_FAMILY) : len(MAGIC)]
    return int(number) if data.startswith(_FAMILY) and number.isdigit() else None


@dataclass(frozen=True)
class Seal:
    """What a vault's files are sealed with.

    Attributes
    ----------
    key : bytes or None
        32 bytes. None leaves files as they are: for the vaults of a simulation, whose people are
        the researcher's own data.
    """

    key: bytes | None = field(default=None, repr=False)

    def close(self, name: str, data: bytes) -> bytes | bytearray:
        """Return the bytes to be written under a name."""
        if self.key is None:
            return data
        nonce = os.urandom(_NONCE_BYTES)
        start = len(MAGIC) + _NONCE_BYTES
        # In its place at once: to put the parts together afterwards takes four times as long.
        sealed = bytearray(start + len(data) + _TAG_BYTES)
        sealed[:start] = MAGIC + nonce
        place = memoryview(sealed)[start:]
        AESGCM(self.key).encrypt_into(nonce, data, MAGIC + name.encode(), place)
        return sealed

    def open(self, name: str, data: bytes) -> bytes:
        """Return what was sealed under a name.

        Raises
        ------
        DamagedError
            If the data is not what was written there.
        NewerError
            If it was written in a later format.
        """
        if self.key is None:
            return data
        start, found = len(MAGIC) + _NONCE_BYTES, sealed_format(data)
        if found is None or len(data) < start + _TAG_BYTES:
            raise DamagedError(f"Expected {name} of the vault to be sealed; it is damaged.")
        nonce = data[len(MAGIC) : start]
        try:
            sealed = memoryview(data)[start:]
            opened = AESGCM(self.key).decrypt(nonce, sealed, MAGIC + name.encode())
        except InvalidTag as error:
            if found > FORMAT:
                raise NewerError(f"{name} of the vault", found) from error
            raise DamagedError(
                f"{name} of the vault does not open: it was damaged or changed."
            ) from error
        if found != FORMAT:  # the number alone is damaged, for the rest is of this format
            raise DamagedError(f"{name} of the vault begins with another format than it has.")
        return opened


OPEN = Seal()
"""Of the vaults of a simulation."""
