"""One user a line: good files load, bad ones are told by file, line and field."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import CorpusConfig
from shared.corpus.load import Corpus, check_file, load_corpus
from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError

ASK = "Generate a headline for the following article: "


def record(user_id: str = "u1", **changes: Any) -> dict[str, Any]:
    """Return a good user with two items and two queries, changed where wanted."""
    good = {
        "user_id": user_id,
        "task": "LaMP_4",
        "profile": [
            {"id": "a", "text": "It rained.", "title": "Rain"},
            {"id": "b", "text": "Snow — fell.", "title": "Snow ☃"},
        ],
        "query": [
            {"id": "q0", "input": f"{ASK}Hail hit.", "gold": "Hail"},
            {"id": "q1", "input": f"{ASK}Fog came.", "gold": "Fog"},
        ],
    }
    return {**good, **changes}


def item(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "text": "Wind blew.", "title": "Wind", **changes}


def ask(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "input": f"{ASK}Wind blew.", "gold": "Wind!", **changes}


def write(path: Path, *records: Any) -> Path:
    lines = (line if isinstance(line, str) else json.dumps(line) for line in records)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path: Path, **settings: Any) -> Corpus:
    return load_corpus(CorpusConfig(source="jsonl", path=str(path), **settings), seed=0)


def test_a_good_file_plain_and_gzip_by_content(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.gz", record(), "", record("ü2"))
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    expected = User(
        "u1",
        (
            ProfileItem("a", "news_headline", "It rained.", "Rain"),
            ProfileItem("b", "news_headline", "Snow — fell.", "Snow ☃"),
        ),
        (
            Query("q0", "news_headline", "Hail hit.", "Hail"),
            Query("q1", "news_headline", "Fog came.", "Fog"),
        ),
    )
    for file in (path, packed):
        corpus = load(file)
        assert corpus.users[0] == expected
        assert [user.user_id for user in corpus.users] == ["u1", "ü2"]
        assert corpus.skipped == ()


BAD_USERS = {
    "broken json": ('{"user_id": "u9", ', "JSON", ":2"),
    "not an object": ([1, 2], "an object", "a list of 2"),
    "null": ("null", "object", "null"),
    "no user id": (record(user_id=None), "user_id: expected a non-empty string", "nothing"),
    "user id of the wrong type": (record(user_id=["u"]), "user_id", "a list of 1"),
    "unknown task": (record("u9", task="LaMP_6"), "LaMP_2N", "'LaMP_6'"),
    "another task": (record("u9", task="LaMP_7"), "news_headline", "tweet_paraphrase"),
    "duplicate user": (record("u1"), "no other user", "'u1' again"),
    "empty profile": (record("u9", profile=[]), "at least one item", "an empty profile"),
    "profile of the wrong type": (record("u9", profile="text"), "a list of items", "'text'"),
    "profile without text": (
        record("u9", profile=[item(text=" "), item(id="y", title="")]),
        "at least one item",
        "none usable of 2",
    ),
    "no query": (record("u9", query=None), "a list of queries", "nothing"),
    "empty query list": (record("u9", query=[]), "at least one query", "none"),
    "half a surrogate pair in the id": (record("\ud800"), "user_id", r"'\ud800'"),
}


@pytest.mark.parametrize(("bad", "expected", "got"), BAD_USERS.values(), ids=BAD_USERS.keys())
def test_a_bad_user_is_told_or_left_out(tmp_path: Path, bad: Any, expected: str, got: str) -> None:
    path = write(tmp_path / "bad.jsonl", record("u1"), bad, record("u3"))
    with pytest.raises(MesofedError) as error:
        load(path)
    message = str(error.value)
    assert f"{path}:2" in message
    assert expected in message
    assert got in message
    assert "--set corpus.bad_input=skip" in message
    corpus = load(path, bad_input="skip")
    assert [user.user_id for user in corpus.users] == ["u1", "u3"]
    assert all(skip.where.startswith(f"{path}:2") for skip in corpus.skipped)
    assert corpus.skipped


BAD_PARTS = {
    "item without a field": ("profile", {"id": "x", "text": "t"}, "title: expected a string"),
    "item with a wrong type": ("profile", item(text=3), "text: expected a string; got 3"),
    "item that is no object": ("profile", "x", "expected an object; got 'x'"),
    "item id twice": ("profile", item(id="a"), "no other item of this user has; got 'a'"),
    "item without id": ("profile", item(id=""), "id: expected a non-empty string"),
    "half a surrogate pair": ("profile", item(text="\udc00"), "half a surrogate"),
    "query id twice": ("query", ask(id="q0"), "no other query has; got 'q0'"),
    "query in other words": ("query", ask(input="Headline?"), "Generate a headline"),
    "query without gold": ("query", {"id": "x", "input": f"{ASK}T"}, "gold: expected a string"),
    "query that is no object": ("query", 7, "expected an object; got 7"),
}


@pytest.mark.parametrize(("part", "bad", "told"), BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_bad_part_costs_only_itself(tmp_path: Path, part: str, bad: Any, told: str) -> None:
    good = record()
    path = write(tmp_path / "bad.jsonl", {**good, part: [*good[part], bad]})
    with pytest.raises(MesofedError) as error:
        load(path)
    assert told in str(error.value)
    assert f"{path}:1 {part}[2]" in str(error.value)
    corpus = load(path, bad_input="skip")
    assert corpus.users == load(write(tmp_path / "good.jsonl", good)).users
    assert [skip.where.startswith(f"{path}:1 {part}[2]") for skip in corpus.skipped] == [True]


def test_unknown_label_names_all_labels(tmp_path: Path) -> None:
    wording = "Which category does this article relate to ... categories: [] article: Text"
    profile = [{"id": "1", "text": "t", "category": "gossip"}]
    query = [{"id": "1", "input": wording, "gold": "travel"}]
    bad = {"user_id": "u", "task": "LaMP_2_news", "profile": profile, "query": query}
    with pytest.raises(MesofedError, match=r"one of women, .*food & drink; got 'gossip'"):
        load(write(tmp_path / "f.jsonl", bad))


@pytest.mark.parametrize(
    ("part", "gap"),
    [("profile", item(text=" \n")), ("profile", item(title="")), ("query", ask(input=ASK))],
)
def test_an_empty_part_is_skipped_and_counted_never_an_error(
    tmp_path: Path, part: str, gap: Any
) -> None:
    good = record()
    corpus = load(write(tmp_path / "f.jsonl", {**good, part: [gap, *good[part]]}))
    assert (len(corpus.users[0].history), len(corpus.users[0].queries)) == (2, 2)
    assert [f" {part}[0]" in skip.where for skip in corpus.skipped] == [True]


def test_expected_task_is_enforced(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", record())
    assert load(path, task="LaMP-4").users
    assert load(path, task="news_headline").users
    with pytest.raises(MesofedError, match=r"f.jsonl:1 task: expected the task product_rating"):
        load(path, task="LaMP_3")
    with pytest.raises(MesofedError, match=r"corpus\.task"):
        load(path, task="poetry")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (gzip.compress(b""), "an empty gzip file"),
        (gzip.compress(json.dumps(record()).encode())[:-30], "a whole gzip file"),
        (b"\x1f\x8bnonsense", "a whole gzip file"),
        (b'{"user_id": "\xff"}', "UTF-8 text"),
        (b"[" * 100_000, "JSON"),
        (b'{"user_id": ' + b"9" * 10_000 + b"}", "JSON"),
    ],
)
def test_a_file_without_any_user_is_refused_even_when_skipping(
    tmp_path: Path, data: bytes, told: str
) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(data)
    with pytest.raises(MesofedError, match=told):
        load(path)
    with pytest.raises(MesofedError, match="No usable user is left"):
        load(path, bad_input="skip")


def test_missing_file_and_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        MesofedError, match=r"nowhere\.jsonl: expected a readable file; got No such"
    ):
        load(tmp_path / "nowhere.jsonl")
    with pytest.raises(MesofedError, match="Is a directory"):
        load(tmp_path)


def test_users_before_the_damage_of_a_gzip_file_are_kept_when_skipping(tmp_path: Path) -> None:
    # Random ids do not compress, so the cut falls into a late line.
    records = [record(f"u{n}", note=f"{n * 7919**9:x}" * 20) for n in range(50)]
    data = gzip.compress("\n".join(map(json.dumps, records)).encode())
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(data[: len(data) * 3 // 4])
    corpus = load(path, bad_input="skip")
    assert 0 < len(corpus.users) < 50
    assert corpus.users[0] == load(write(tmp_path / "one.jsonl", records[0])).users[0]
    assert any("whole gzip" in skip.reason for skip in corpus.skipped)


def test_message_lists_ten_problems_and_their_number(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", record(), *(["{"] * 25))
    with pytest.raises(MesofedError, match="25 problems, the first 10") as error:
        load(path)
    assert str(error.value).count("expected JSON") == 10


def test_check_reports_everything(tmp_path: Path) -> None:
    short = record("u2", profile=[item(), item(id="y", text="")])
    path = write(tmp_path / "f.jsonl", record(), short, "{", record("u3", query=[]))
    report = check_file(path)
    assert (report.source, report.users, report.items) == ("jsonl", 2, 3)
    assert report.queries == {"news_headline": 4}
    assert report.history_length == (1, 1.5, 2)
    assert [problem.where for problem in report.problems] == [f"{path}:3", f"{path}:4 query"]
    assert [skip.where for skip in report.skipped] == [f"{path}:2 profile[1]"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300), packed=st.booleans())
def test_any_bytes_load_or_raise_the_one_error(tmp_path: Path, data: bytes, packed: bool) -> None:
    path = tmp_path / "any"
    path.write_bytes(gzip.compress(data)[: len(data) + 20] if packed else data)
    for source in ("jsonl", "lamp"):
        config = CorpusConfig(source=source, path=str(path), bad_input="skip")  # type: ignore[arg-type]
        with pytest.raises(MesofedError):
            load_corpus(config, 0)
    report = check_file(path)
    assert report.problems
    assert report.users == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_never_crashes(tmp_path: Path, place: int, byte: int) -> None:
    data = bytearray("\n".join(json.dumps(record(f"u{n}")) for n in range(3)).encode())
    place %= len(data)
    # The end of a line stands between two people.
    hit = 2 if data[place] == ord("\n") else 1
    data[place] = byte
    path = tmp_path / "any"
    path.write_bytes(data)
    corpus = load(path, bad_input="skip")
    assert 3 - hit <= len(corpus.users) <= 3
    assert len({user.user_id for user in corpus.users}) == len(corpus.users)
