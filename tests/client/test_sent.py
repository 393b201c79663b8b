"""What has left: each answer once, however often it was given, and never fewer than were given."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.journal import MAX_RECORD, End, Journal
from client.seal import OPEN, DamagedError, Seal
from client.sent import Sent
from shared.errors import MesofedError

KEY = Seal(bytes(range(32)))
SEALS = [pytest.param(OPEN, id="open"), pytest.param(KEY, id="sealed")]


def begun(folder: Path, seal: Seal) -> Sent:
    """The record of a vault, which each begins when somebody moves in."""
    sent = Sent(folder, seal)
    sent.begin()
    return sent


def answer(release: int, content: str = "AA==", time: str = "t0", **more: Any) -> dict[str, Any]:
    asked = {"request": "query", "release": release, "question": f"q{release}"}
    return {"time": time, **asked, "content": content, **more}


def asked(release: int) -> tuple[str, int, str]:
    return "query", release, f"q{release}"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("seal", SEALS)
def test_an_answer_that_is_given_again_is_counted_and_takes_no_more_room(
    tmp_path: Path, seal: Seal
) -> None:
    sent = begun(tmp_path, seal)
    sent.add(answer(1))
    sent.add(answer(2))
    journal = sent.journal.path.read_bytes()
    sent.add(answer(1, time="t1"))
    room = size_of(tmp_path)
    for number in range(2, 50):
        sent.add(answer(1, time=f"t{number}"))
    assert sent.journal.path.read_bytes() == journal
    assert size_of(tmp_path) <= room + 2  # two digits more
    for reader in (sent, begun(tmp_path, seal)):
        assert [(e["release"], e["times"], e["last"]) for e in reader.entries()] == [
            (1, 50, "t49"),
            (2, 1, "t0"),
        ]


def test_another_answer_to_the_same_question_is_a_record_of_its_own(tmp_path: Path) -> None:
    """No device gives one; if it ever did, its owner would have to see both."""
    sent = begun(tmp_path, KEY)
    for content in ("AA==", "AQ==", "AQ=="):
        sent.add(answer(1, content))
    assert [(e["content"], e["times"]) for e in sent.entries()] == [("AA==", 1), ("AQ==", 2)]


def test_answers_are_found_again_in_this_process_and_the_next(tmp_path: Path) -> None:
    sent = begun(tmp_path, KEY)
    assert sent.find(asked(1)) is None
    for release in range(1, 6):
        sent.add(answer(release, f"A{release}==", ledger={"cost": release}))
    for reader in (sent, begun(tmp_path, KEY)):
        assert [(reader.find(asked(n)) or {})["content"] for n in (3, 1, 5)] == [
            "A3==",
            "A1==",
            "A5==",
        ]
        assert reader.find(("other", 1, "q1")) is None
        assert reader.costs() == [{"cost": n} for n in range(1, 6)]
        assert (reader.count("query", 2), reader.count("query", 9)) == (1, 0)


def test_answering_takes_no_longer_after_a_long_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    decrypt = Seal.open

    def counted(self: Seal, name: str, data: bytes) -> bytes:
        opened.append(len(data))
        return decrypt(self, name, data)

    monkeypatch.setattr(Seal, "open", counted)
    sent = begun(tmp_path, KEY)
    for _ in range(2):
        sent.add(answer(1))
    work: dict[int, list[tuple[int, int]]] = {}
    for release in range(2, 201):
        if release in (10, 200):
            work[release] = []
            for act in (
                lambda n=release: sent.add(answer(n)),
                lambda: sent.add(answer(1)),
                lambda: sent.find(asked(3)),
                lambda n=release: sent.find(asked(n + 1)),
            ):
                opened.clear()
                act()
                # Times and counts have a digit more; a record has hundreds of bytes.
                work[release].append((len(opened), sum(opened) // 100))
        else:
            sent.add(answer(release))
    assert work[10] == work[200]
    assert max(records for records, _ in work[200]) <= 3


# An older copy


@pytest.mark.parametrize("seal", SEALS)
def test_an_older_copy_of_the_journal_does_not_set_the_budget_back(
    tmp_path: Path, seal: Seal
) -> None:
    sent = begun(tmp_path, seal)
    sent.add(answer(1, ledger={"cost": 1}))
    copy = sent.journal.path.read_bytes()
    sent.add(answer(2, ledger={"cost": 2}))
    newest = sent.journal.path.read_bytes()
    for older in (copy, b""):
        sent.journal.path.write_bytes(older)
        for reader in (sent, begun(tmp_path, seal)):
            for ask in (
                reader.entries,
                reader.costs,
                lambda reader=reader: reader.find(asked(1)),
                lambda reader=reader: reader.add(answer(2)),
                lambda reader=reader: reader.add(answer(3)),
            ):
                with pytest.raises(DamagedError, match="an older copy"):
                    ask()
        assert sent.journal.path.read_bytes() == older
    sent.journal.path.unlink()
    with pytest.raises(DamagedError, match="ends after 0 records of the 2"):
        begun(tmp_path, seal).add(answer(2))
    # The newest copy is as good as the file.
    sent.journal.path.write_bytes(newest)
    assert sent.costs() == [{"cost": 1}, {"cost": 2}]
    sent.add(answer(3))


@pytest.mark.parametrize("name", ["journal.end", "repeats/0.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"records": "2"}', b"\xff", b"MSV1" * 20])
@pytest.mark.parametrize("seal", SEALS)
def test_a_damaged_count_stops_the_device(
    tmp_path: Path, seal: Seal, name: str, data: bytes
) -> None:
    sent = begun(tmp_path, seal)
    for _ in range(2):
        sent.add(answer(1))
    (tmp_path / name).write_bytes(data)
    reader = begun(tmp_path, seal)
    with pytest.raises(DamagedError, match="sends nothing more"):
        reader.entries()
    with pytest.raises(DamagedError, match="sends nothing more"):
        reader.add(answer(1))


def test_what_a_kill_left_between_the_record_and_its_count_is_caught_up(tmp_path: Path) -> None:
    sent = begun(tmp_path, KEY)
    sent.add(answer(1))
    sent.journal.append(answer(2, ledger={"cost": 2}))  # and killed
    restarted = begun(tmp_path, KEY)
    assert restarted.costs() == [{"cost": 2}]
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    whole = sent.journal.read()[0]
    (copy / "journal").write_bytes((copy / "journal").read_bytes()[: whole[1][1]])
    with pytest.raises(DamagedError, match="an older copy"):
        begun(copy, KEY).entries()
    restarted.add(answer(2))
    assert [e["times"] for e in restarted.entries()] == [1, 2]


def test_a_journal_that_others_have_written_to_is_read_again(tmp_path: Path) -> None:
    one, other = begun(tmp_path, KEY), begun(tmp_path, KEY)
    one.add(answer(1))
    other.add(answer(2))
    assert one.find(asked(2)) is not None
    one.add(answer(2))
    other.add(answer(1))
    one.add(answer(3))
    assert [(e["release"], e["times"]) for e in other.entries()] == [(1, 2), (2, 2), (3, 1)]


def test_an_answer_that_could_not_be_recorded_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = begun(tmp_path, KEY)
    sent.add(answer(1))
    with pytest.raises(MesofedError, match="at most"):
        sent.add(answer(2, "A" * MAX_RECORD))
    assert sent.find(asked(2)) is None

    def fails(*_: object) -> Any:
        raise MesofedError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fails)
        with pytest.raises(MesofedError, match="no room"):
            sent.add(answer(2))
    assert sent.find(asked(2)) is None
    assert sent.costs() == []
    sent.add(answer(2))
    assert [e["release"] for e in sent.entries()] == [1, 2]


def test_a_record_that_is_read_alone_is_checked_as_in_its_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", KEY)
    end = None
    for number in range(3):
        end = journal.append({"n": number}, end)
    places = [start for _, start in journal.read()[0]]
    assert [journal.read_one(n, start) for n, start in enumerate(places)] == [
        {"n": 0},
        {"n": 1},
        {"n": 2},
    ]
    for place, start in ((0, places[1]), (1, places[1] + 1), (3, journal.path.stat().st_size)):
        with pytest.raises(DamagedError):
            journal.read_one(place, start)
    with pytest.raises(DamagedError):
        replace(journal, seal=Seal(bytes(32))).read_one(0, 0)


def test_a_wrong_end_never_cuts_off_what_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", KEY)
    first = journal.append({"n": 0})
    journal.append({"n": 1}, first)
    journal.append({"n": 2}, first)  # of before the record in between
    assert journal.entries() == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_record_that_is_gone_as_a_whole_is_not_begun_anew(tmp_path: Path) -> None:
    """Else whoever removes it would set the budget back."""
    begun(tmp_path, KEY).add(answer(1, ledger={"cost": 1}))
    for path in tmp_path.iterdir():
        path.unlink()
    sent = Sent(tmp_path, KEY)
    for ask in (sent.entries, sent.costs, lambda: sent.add(answer(1))):
        with pytest.raises(DamagedError, match=r"is missing\. This device sends nothing more"):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [False, True])
def test_a_journal_whose_count_was_taken_away_is_refused(tmp_path: Path, old: bool) -> None:
    """Whoever puts an older copy back cannot hide it by removing what counts the records."""
    sent = begun(tmp_path, KEY)
    for release in (1, 2, 3):
        sent.add(answer(release, ledger={"cost": release}))
        if release == 2:
            shutil.copy(sent.journal.path, tmp_path / "older")
    if old:
        shutil.copy(tmp_path / "older", sent.journal.path)
    (tmp_path / "journal.end").unlink()
    with pytest.raises(DamagedError, match=r"journal\.end, which says how many .* is missing"):
        begun(tmp_path, KEY).costs()


def test_what_another_process_writes_in_between_is_read_anew(tmp_path: Path) -> None:
    first, second = begun(tmp_path, KEY), begun(tmp_path, KEY)
    first.add(answer(1, ledger={"cost": 1}))
    append = first.journal.append

    def late(entry: dict[str, Any], end: End) -> End:
        second.add(answer(2, "Ag==", ledger={"cost": 2}))
        return append(entry, end)

    object.__setattr__(first.journal, "append", late)
    first.add(answer(3, "Aw==", ledger={"cost": 3}))
    assert [cost["cost"] for cost in first.costs()] == [1, 2, 3]
    assert (first.find(asked(3)) or {})["content"] == "Aw=="
    assert (first.find(asked(2)) or {})["content"] == "Ag=="
