"""The journal of a vault: everything that has left the device, byte for byte, in order.

    record = length, checksums of length and JSON (4 bytes each) | sealed JSON, bound to its place

A record reaches the disk before what it tells of leaves the device. So a device that is killed at
any moment knows afterwards what it may have sent; a record that a kill cut short tells of
something that was not sent, and is dropped.
"""

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.seal import DamagedError, Seal
from shared.errors import MesofedError

_HEADER = struct.Struct(">III")
MAX_RECORD = 1 << 20

Entry = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """An append-only file of a vault."""

    path: Path
    seal: Seal

    def entries(self) -> list[Entry]:
        """Return all records, oldest first.

        Raises
        ------
        DamagedError
            If a record is damaged, changed, missing between others or in another place.
        """
        return self._read()[0]

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a record; it is on the disk when this returns.

        Raises
        ------
        MesofedError
            If the journal is damaged, cannot be written or could not be read with this record in
            it. Nothing may be sent then.
        """
        try:
            with self._locked() as file:
                entries, length = self._read()
                # What a kill cut short goes; what follows would be unreadable behind it.
                os.ftruncate(file, length)
                # In ASCII, for a hostile request may hold what no encoding writes.
                data = json.dumps(entry, allow_nan=False).encode()
                sealed = self.seal.close(_name(len(entries)), data)
                if len(sealed) > MAX_RECORD:
                    raise MesofedError(
                        f"Expected a record of at most {MAX_RECORD:,} bytes for {self.path}; got "
                        f"{len(sealed):,}. Nothing is sent that the journal does not hold."
                    )
                _write_all(file, _header(sealed) + sealed)
                os.fsync(file)
        except OSError as error:
            raise MesofedError(
                f"Cannot write {self.path}: {error.strerror or error}. Nothing is sent that the "
                "journal does not hold. Make room."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _read(self) -> tuple[list[Entry], int]:
        """Return the records, and how many bytes they take."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise MesofedError(f"Cannot read {self.path}: {error.strerror}.") from error
        entries: list[Entry] = []
        start = 0
        while start + _HEADER.size <= len(data):
            length, check, _ = _HEADER.unpack_from(data, start)
            begin, end = start + _HEADER.size, start + _HEADER.size + length
            # A wrong length must not be taken for a record that was cut short.
            if check != _checksum(length) or length > MAX_RECORD:
                raise self._damaged(len(entries))
            if end > len(data):
                break
            if data[start:begin] != _header(data[begin:end]):
                raise self._damaged(len(entries))
            entries.append(self._entry(len(entries), data[begin:end]))
            start = end
        return entries, start

    def _entry(self, place: int, sealed: bytes) -> Entry:
        try:
            entry = json.loads(self.seal.open(_name(place), sealed))
        except (DamagedError, ValueError) as error:
            raise self._damaged(place) from error
        if not isinstance(entry, dict):
            raise self._damaged(place)
        return entry

    def _damaged(self, place: int) -> DamagedError:
        return DamagedError(
            f"Record {place + 1} of {self.path} is damaged or was changed. This device sends "
            "nothing more, since it cannot tell what it has sent. Restore the file from a copy, or "
            "begin anew with `mesofed device forget`."
        )


def _header(sealed: bytes | bytearray) -> bytes:
    return _HEADER.pack(len(sealed), _checksum(len(sealed)), zlib.crc32(sealed))


def _checksum(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "big"))


def _name(place: int) -> str:
    return f"journal/{place}"


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
