"""What has left a device: every answer byte for byte, once, and how often it was given.

    journal         an answer a record, and what it costs: only ever added to
    journal.end     how many records there are: a copy of the journal with fewer is an older one
    repeats/7.json  how often the answer in record 7 was given, if more than once, and when last

An answer that is given again adds nothing to the journal: nobody makes it grow by asking again.
Where an answer lies is remembered, so that answering takes as long after years as on the first
day. All three are on the disk before an answer leaves.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.journal import End, Entry, Journal, stopped
from client.seal import DamagedError, Seal
from shared.atomic_file import write_bytes

JOURNAL, END, REPEATS = "journal", "journal.end", "repeats"

Asked = tuple[str, int, str]
"""A request, the release that it is about, and a digest of all that it asks."""


@dataclass
class _Known:
    """What is remembered of a journal."""

    end: End
    places: dict[Asked, tuple[int, int]]  # the record's number, and the byte that it begins at
    kinds: Counter[tuple[str, int]]
    costs: list[object]

    def add(self, entry: Entry, place: int, start: int) -> None:
        asked = asked_of(entry)
        self.places[asked] = place, start
        self.kinds[asked[:2]] += 1
        if "ledger" in entry:
            self.costs.append(entry["ledger"])


class Sent:
    """The record of what has left a device, in its vault's folder."""

    def __init__(self, folder: Path, seal: Seal) -> None:
        self.journal = Journal(folder / JOURNAL, seal)
        self._folder, self._seal = folder, seal
        self._memory: _Known | None = None

    def begin(self) -> None:
        """Begin the record of a new vault; from then on, one that is gone is known to be.

        Raises
        ------
        MesofedError
            If it cannot be written.
        """
        if not (self._folder / END).exists() and not self.journal.path.exists():
            self._write(END, {"records": 0})

    def entries(self) -> list[Entry]:
        """Return every answer, oldest first, with how often it was given and when last.

        Raises
        ------
        DamagedError
            If a record is damaged, or the journal is an older copy.
        """
        found, _, _ = self._checked()
        counts = [self._times(place) for place in range(len(found))]
        return [
            {**entry, "times": times, "last": last or entry["time"]}
            for (entry, _), (times, last) in zip(found, counts, strict=True)
        ]

    def find(self, asked: Asked) -> Entry | None:
        """Return the record of the answer to the very same question, or None.

        Raises
        ------
        DamagedError
            As :meth:`entries` does.
        """
        where = self._known().places.get(asked)
        return None if where is None else self.journal.read_one(*where)

    def count(self, request: str, release: int) -> int:
        """Return how many different answers to a kind of request about a release there are."""
        return self._known().kinds[request, release]

    def costs(self) -> list[object]:
        """Return what the answers have cost, oldest first, as JSON keeps ledger entries."""
        return list(self._known().costs)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record an answer that is about to leave: as a new one, or as given once more.

        Parameters
        ----------
        entry : mapping
            ``time``, ``request``, ``release``, ``question``, ``content`` and, if it costs
            anything, ``ledger``.

        Raises
        ------
        MesofedError
            If the record is damaged or cannot be written. Nothing may be sent then.
        """
        known, asked = self._known(), asked_of(entry)
        before = self.find(asked)
        if before is not None and before["content"] == entry["content"]:
            place, _ = known.places[asked]
            times, _ = self._times(place)
            self._write(_repeats(place), {"times": times + 1, "last": entry["time"]})
            return
        self._memory = None  # until it is certain what the disk has
        end = self.journal.append(entry, known.end)
        self._write(END, {"records": end.records})
        if end.records == known.end.records + 1:  # nobody else has written in between
            known.add(dict(entry), known.end.records, known.end.bytes)
            known.end = end
            self._memory = known

    def _known(self) -> _Known:
        """Return what is remembered; the journal is read where it was changed by others."""
        if self._memory is None or not self.journal.ends_at(self._memory.end):
            self._memory = None
            found, end, written = self._checked()
            if written < end.records:  # a kill came between the two
                self._write(END, {"records": end.records})
            known = _Known(end, {}, Counter(), [])
            for place, (entry, start) in enumerate(found):
                known.add(entry, place, start)
            self._memory = known
        return self._memory

    def _checked(self) -> tuple[list[tuple[Entry, int]], End, int]:
        """Read the journal, and how many records it has to have; refuse one that has fewer."""
        # In this order, for an agent may be adding to both.
        written: int = self._read(END, {"records": 0})["records"]
        found, end = self.journal.read()
        if not (self._folder / END).exists():
            raise DamagedError(
                f"{self.journal.path} has {end.records} records, but {END}, which says how many "
                f"there have to be, is missing. {stopped()}"
            )
        if written > end.records:
            raise DamagedError(
                f"{self.journal.path} ends after {end.records} records of the {written} that this "
                f"vault has written: it is an older copy, or was cut. {stopped()}"
            )
        return found, end, written

    def _times(self, place: int) -> tuple[int, str]:
        found = self._read(_repeats(place), {"times": 1, "last": ""})
        return found["times"], found["last"]

    def _read(self, name: str, missing: dict[str, Any]) -> dict[str, Any]:
        """Return a small file's content, which has the fields, and types, of ``missing``."""
        path = self._folder / name
        if not path.exists():
            return missing
        try:
            found = json.loads(self._seal.open(name, path.read_bytes()))
        except (OSError, ValueError, DamagedError) as error:
            raise self._damaged(path) from error
        if not isinstance(found, dict) or {key: type(value) for key, value in found.items()} != {
            key: type(value) for key, value in missing.items()
        }:
            raise self._damaged(path)
        return found

    def _write(self, name: str, value: dict[str, Any]) -> None:
        sealed = self._seal.close(name, json.dumps(value).encode())
        write_bytes(self._folder / name, sealed, mode=0o600)

    def _damaged(self, path: Path) -> DamagedError:
        return DamagedError(f"{path} is damaged or was changed. {stopped()}")


def asked_of(entry: Mapping[str, Any]) -> Asked:
    """Return what an answer was asked by."""
    return entry["request"], entry["release"], entry["question"]


def _repeats(place: int) -> str:
    return f"{REPEATS}/{place}.json"
