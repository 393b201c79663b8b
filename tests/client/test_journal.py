"""The journal loses at most a record that was cut short, and is never silently another."""

import contextlib
import errno
import json
import os
import resource
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from client.journal import MAX_RECORD, Journal
from client.seal import OPEN, DamagedError, Seal
from shared.errors import MesofedError

SEALS = [pytest.param(OPEN, id="open"), pytest.param(Seal(bytes(range(32))), id="sealed")]
ENTRIES = [{"n": 0}, {"request": "x", "text": "ü \u2028 😀"}, {}, {"n": [1.5, None]}]


def journal_of(path: Path, seal: Seal, entries: list[dict[str, Any]]) -> tuple[Journal, list[int]]:
    """Write entries; return the journal and where each ends."""
    journal, ends = Journal(path, seal), []
    for entry in entries:
        journal.append(entry)
        ends.append(path.stat().st_size)
    return journal, ends


@pytest.mark.parametrize("seal", SEALS)
def test_records_are_read_back_in_order(tmp_path: Path, seal: Seal) -> None:
    journal, _ = journal_of(tmp_path / "some" / "journal", seal, ENTRIES)
    assert Journal(journal.path, seal).entries() == ENTRIES
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert Journal(tmp_path / "none", seal).entries() == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("seal", SEALS)
def test_a_journal_only_grows(tmp_path: Path, seal: Seal) -> None:
    journal, _ = journal_of(tmp_path / "journal", seal, ENTRIES[:2])
    before, inode = journal.path.read_bytes(), journal.path.stat().st_ino
    journal.append({"n": 9})
    assert journal.path.read_bytes()[: len(before)] == before
    assert journal.path.stat().st_ino == inode


def test_a_sealed_journal_shows_nothing(tmp_path: Path) -> None:
    journal, _ = journal_of(tmp_path / "journal", Seal(bytes(32)), [{"secret": "heliotrope"}] * 3)
    assert b"heliotrope" not in journal.path.read_bytes()
    assert b"secret" not in journal.path.read_bytes()


@pytest.mark.parametrize("seal", SEALS)
def test_truncation_at_every_byte_drops_what_was_cut_and_nothing_before(
    tmp_path: Path, seal: Seal
) -> None:
    journal, ends = journal_of(tmp_path / "journal", seal, ENTRIES)
    whole = journal.path.read_bytes()
    for length in range(len(whole) + 1):
        journal.path.write_bytes(whole[:length])
        left = ENTRIES[: sum(end <= length for end in ends)]
        assert journal.entries() == left
        journal.append({"after": length})
        assert journal.entries() == [*left, {"after": length}]


@pytest.mark.parametrize("seal", SEALS)
def test_a_flipped_bit_anywhere_is_told_and_stops_the_writing(tmp_path: Path, seal: Seal) -> None:
    journal, _ = journal_of(tmp_path / "journal", seal, ENTRIES[::2])
    whole = journal.path.read_bytes()
    for where in range(8 * len(whole)):
        data = bytearray(whole)
        data[where // 8] ^= 1 << where % 8
        journal.path.write_bytes(bytes(data))
        with pytest.raises(DamagedError, match=r"Record \d of .*journal is damaged"):
            journal.entries()
        if where % 8 == 0:
            with pytest.raises(DamagedError, match="sends nothing more"):
                journal.append({"n": 1})
            assert journal.path.read_bytes() == bytes(data)


@pytest.mark.parametrize("seal", SEALS)
def test_a_record_that_was_taken_out_of_the_middle_is_told(tmp_path: Path, seal: Seal) -> None:
    """By the binding to its place; the journal of a simulation is not sealed and has none."""
    journal, ends = journal_of(tmp_path / "journal", seal, ENTRIES)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[: ends[0]] + whole[ends[1] :])
    if seal is OPEN:
        assert journal.entries() == [ENTRIES[0], *ENTRIES[2:]]
    else:
        with pytest.raises(DamagedError):
            journal.entries()
    swapped = whole[ends[0] : ends[1]] + whole[: ends[0]] + whole[ends[1] :]
    journal.path.write_bytes(swapped)
    if seal is not OPEN:
        with pytest.raises(DamagedError):
            journal.entries()


def test_the_journal_of_another_vault_is_told(tmp_path: Path) -> None:
    journal, _ = journal_of(tmp_path / "journal", Seal(bytes(32)), ENTRIES)
    for other in (Seal(bytes(31) + b"\x01"), OPEN):
        with pytest.raises(DamagedError):
            Journal(journal.path, other).entries()


@pytest.mark.parametrize("data", [b"5", b"[]", b"null", b'"x"', b"{", b"", b"\xff"])
@pytest.mark.parametrize("seal", SEALS)
def test_a_record_that_is_no_object_is_told(tmp_path: Path, seal: Seal, data: bytes) -> None:
    from client.journal import _header

    sealed = seal.close("journal/0", data)
    (tmp_path / "journal").write_bytes(_header(sealed) + sealed)
    with pytest.raises(DamagedError):
        Journal(tmp_path / "journal", seal).entries()


@pytest.mark.parametrize(
    "entry", [{"text": "x" * MAX_RECORD}, {"text": "\ud800 alone"}, {"n": float("nan")}]
)
def test_what_could_not_be_read_back_is_never_written(
    tmp_path: Path, entry: dict[str, Any]
) -> None:
    journal, _ = journal_of(tmp_path / "journal", Seal(bytes(32)), ENTRIES)
    with contextlib.suppress(MesofedError, ValueError):
        journal.append(entry)
        assert journal.entries()[-1] == entry
    assert journal.entries()[: len(ENTRIES)] == ENTRIES
    journal.append({"n": 1})
    assert journal.entries()[-1] == {"n": 1}


def test_a_lone_surrogate_is_recorded(tmp_path: Path) -> None:
    """A request of a hostile app may hold one; what it did has to be in the record all the same."""
    journal, _ = journal_of(tmp_path / "journal", OPEN, [{"request": "\ud800"}])
    assert journal.entries() == [{"request": "\ud800"}]


# A full disk


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let the kernel refuse to let any file grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("seal", SEALS)
def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path, seal: Seal) -> None:
    journal, ends = journal_of(tmp_path / "journal", seal, ENTRIES)
    for room in (0, 1, 11, 12, 13, 20):
        with no_file_beyond(ends[-1] + room), pytest.raises(MesofedError, match="Make room"):
            journal.append({"lost": "this one is told to be lost"})
        assert journal.path.stat().st_size == ends[-1] + room  # the kernel did cut it short
        assert journal.entries() == ENTRIES
    journal.append({"n": "there is room again"})
    assert journal.entries() == [*ENTRIES, {"n": "there is room again"}]


@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate", "open"])
def test_an_error_of_the_disk_is_told(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = journal_of(tmp_path / "journal", Seal(bytes(32)), ENTRIES)
    with monkeypatch.context() as patch:

        def fails(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, call, fails)
        with pytest.raises(MesofedError, match="No space left on device"):
            journal.append({"n": 1})
    # After a failing fsync the record may be there: it tells of more than was sent, never of less.
    assert journal.entries()[: len(ENTRIES)] == ENTRIES
    assert len(journal.entries()) <= len(ENTRIES) + (call == "fsync")
    journal.append({"n": 2})
    assert journal.entries()[-1] == {"n": 2}


def test_writes_that_take_a_byte_at_a_time_make_whole_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:1])))
    journal, _ = journal_of(tmp_path / "journal", OPEN, ENTRIES)
    assert journal.entries() == ENTRIES


def test_a_record_is_on_the_disk_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def seen(file: int) -> None:
        fsync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", seen)
    _, ends = journal_of(tmp_path / "journal", OPEN, ENTRIES)
    assert set(ends) <= set(synced)


# Two at once


def slowly(read: Callable[[Journal], Any]) -> Callable[[Journal], Any]:
    """Leave time between reading and writing, so that two without a lock do meet there."""

    def reads(self: Journal) -> Any:
        found = read(self)
        time.sleep(0.002)
        return found

    return reads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    journal, count = Journal(tmp_path / "journal", Seal(bytes(32))), 30
    children = []
    for name in "abc":
        child = os.fork()
        if child == 0:
            try:
                Journal.read = slowly(Journal.read)  # type: ignore[method-assign]
                for number in range(count):
                    journal.append({"by": name, "n": number})
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    while any(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children[:1]):
        journal.entries()  # reading meanwhile finds whole records or none
    for child in children[1:]:
        assert os.waitpid(child, 0)[1] == 0
    entries = journal.entries()
    assert len(entries) == 3 * count
    for name in "abc":
        assert [e["n"] for e in entries if e["by"] == name] == list(range(count))


# Any history of writes, kills and full disks

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ENTRY = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


class Histories(RuleBasedStateMachine):
    """Whatever happens, the journal holds exactly what append has returned for."""

    @initialize(sealed=st.booleans())
    def begin(self, sealed: bool) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.seal = Seal(os.urandom(32)) if sealed else OPEN
        self.path = Path(self.folder.name) / "journal"
        self.kept: list[dict[str, Any]] = []

    @property
    def journal(self) -> Journal:
        return Journal(self.path, self.seal)

    @rule(entry=ENTRY)
    def append(self, entry: dict[str, Any]) -> None:
        self.journal.append(entry)
        self.kept.append(json.loads(json.dumps(entry)))

    @rule(entry=ENTRY, share=st.floats(0, 1, exclude_max=True))
    def killed(self, entry: dict[str, Any], share: float) -> None:
        """A kill in the middle of a write, or a power cut before its end reached the disk."""
        begin = self.journal.read()[1].bytes  # an append takes away what a former kill has left
        self.journal.append(entry)
        os.truncate(self.path, begin + int(share * (self.path.stat().st_size - begin)))

    @precondition(lambda self: self.path.exists())
    @rule(entry=ENTRY, room=st.integers(0, 20))
    def full(self, entry: dict[str, Any], room: int) -> None:
        size = self.journal.read()[1].bytes
        with no_file_beyond(size + room), contextlib.suppress(MesofedError):
            self.journal.append(entry)
            self.kept.append(json.loads(json.dumps(entry)))

    @invariant()
    def holds_what_was_written(self) -> None:
        if hasattr(self, "path"):
            assert self.journal.entries() == self.kept

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_whatever_lies_there_is_read_as_cut_short_or_told(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-journal"
    path.write_bytes(data)
    with contextlib.suppress(DamagedError):
        # Fewer bytes than a header may be the beginning of one; all else needs two checksums.
        assert Journal(path, OPEN).entries() == []
        assert len(data) < 12
