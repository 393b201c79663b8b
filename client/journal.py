"""A journal: an append-only file of records, each on the disk before anything follows from it.

    record = length, checksums of length and JSON (4 bytes each) | sealed JSON, bound to its place

A record that a kill cut short tells of something that did not happen yet, and is dropped. Whoever
has read a journal, or has written to it, knows its end, and need not read it again to go on there.
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
from typing import Any, BinaryIO

from client.seal import DamagedError, Seal
from shared.errors import MesofedError
from shared.program import command

_HEADER = struct.Struct(">III")
MAX_RECORD = 1 << 20

Entry = dict[str, Any]


def stopped() -> str:
    """Return what to say where it cannot be told what was sent."""
    return (
        "This device sends nothing more, since it cannot tell what it has sent. Only a copy that "
        "has every answer until the last can take the place of the file; an older one is refused, "
        "for it has forgotten what was spent of the privacy budget. Without such a copy, begin "
        f"anew with `{command('device', 'forget')}`; the new vault's budget then comes on top of "
        f"the old one's. `{command('device', 'ask')}` and `{command('device', 'export')}` work as "
        "before."
    )


@dataclass(frozen=True)
class End:
    """Where the records of a journal end.

    Attributes
    ----------
    records, bytes : int
        How many there are, and how much of the file they take.
    file : tuple of int
        The file then: device, inode, size, time of its last change in ns. Another journal, or one
        that somebody has changed since, differs. Empty if there was none.
    """

    records: int
    bytes: int
    file: tuple[int, ...]


@dataclass(frozen=True)
class Journal:
    """An append-only file of a vault.

    Attributes
    ----------
    remedy : str
        What to say of a damaged one; without it, what the record of what was sent needs.
    """

    path: Path
    seal: Seal
    remedy: str = ""

    def entries(self) -> list[Entry]:
        """Return all records, oldest first.

        Raises
        ------
        DamagedError
            If a record is damaged, changed, missing between others or in another place.
        """
        return [entry for entry, _ in self.read()[0]]

    def read(self) -> tuple[list[tuple[Entry, int]], End]:
        """Return all records, oldest first, each with the byte that it begins at; and their end.

        Raises
        ------
        DamagedError
            As :meth:`entries` does.
        """
        found: list[tuple[Entry, int]] = []
        start = 0
        try:
            with self.path.open("rb") as file:
                state = _state(os.fstat(file.fileno()))
                while (sealed := self._next(file, len(found))) is not None:
                    found.append((self._entry(len(found), sealed), start))
                    start += _HEADER.size + len(sealed)
        except FileNotFoundError:
            return [], End(0, 0, ())
        except OSError as error:
            raise MesofedError(f"Cannot read {self.path}: {error.strerror}.") from error
        return found, End(len(found), start, state)

    def read_one(self, place: int, start: int) -> Entry:
        """Return one record, by its place and the byte that it begins at.

        Raises
        ------
        DamagedError
            If it is not there as it was written.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                sealed = self._next(file, place)
        except OSError as error:
            raise MesofedError(f"Cannot read {self.path}: {error.strerror}.") from error
        if sealed is None:
            raise self._damaged(place)
        return self._entry(place, sealed)

    def ends_at(self, end: End) -> bool:
        """Return whether the file is still as it was when its records ended there."""
        try:
            return _state(self.path.stat()) == end.file
        except OSError:
            return not end.file

    def append(self, entry: Mapping[str, Any], end: End | None = None) -> End:
        """Add a record; it is on the disk when this returns.

        Parameters
        ----------
        end : End, optional
            Where the records end, for who knows; the journal is read where it is not, or not any
            more, as it was then.

        Raises
        ------
        MesofedError
            If the journal is damaged, cannot be written or could not be read with this record in
            it. Nothing may be sent then.
        """
        try:
            with self._locked() as file:
                if end is None or not self.ends_at(end):
                    _, end = self.read()
                # What a kill cut short goes; what follows would be unreadable behind it.
                os.ftruncate(file, end.bytes)
                # In ASCII, for a hostile request may hold what no encoding writes.
                data = json.dumps(entry, allow_nan=False).encode()
                sealed = self.seal.close(_name(end.records), data)
                if len(sealed) > MAX_RECORD:
                    raise MesofedError(
                        f"Expected a record of at most {MAX_RECORD:,} bytes for {self.path}; got "
                        f"{len(sealed):,}. Nothing is sent that the journal does not hold."
                    )
                _write_all(file, _header(sealed) + sealed)
                os.fsync(file)
                return End(
                    end.records + 1, end.bytes + _HEADER.size + len(sealed), _state(os.fstat(file))
                )
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

    def _next(self, file: BinaryIO, place: int) -> bytes | None:
        """Return the next sealed record of a file, or None where it ends or was cut short."""
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        length, check, _ = _HEADER.unpack(header)
        # A wrong length must not be taken for a record that was cut short.
        if check != _checksum(length) or length > MAX_RECORD:
            raise self._damaged(place)
        sealed = file.read(length)
        if len(sealed) < length:
            return None
        if header != _header(sealed):
            raise self._damaged(place)
        return sealed

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
            f"Record {place + 1} of {self.path} is damaged or was changed. "
            f"{self.remedy or stopped()}"
        )


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _header(sealed: bytes | bytearray) -> bytes:
    return _HEADER.pack(len(sealed), _checksum(len(sealed)), zlib.crc32(sealed))


def _checksum(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "big"))


def _name(place: int) -> str:
    return f"journal/{place}"


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
