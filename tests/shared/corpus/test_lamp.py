"""The official pair of files: joined by id, refused with the entry's place."""

import gzip
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import CorpusConfig
from shared.corpus.lamp import outputs_beside
from shared.corpus.load import Corpus, check_file, load_corpus
from shared.corpus.user import ProfileItem, Query
from shared.errors import MesofedError

ASK = (
    "Which tag does this movie relate to among the following tags? Just answer with the tag name "
    "without further explanation. tags: [comedy, classic] description: "
)


def question(key: str, **changes: Any) -> dict[str, Any]:
    profile = [{"id": f"{key}-p", "tag": "comedy", "description": f"A duck {key}."}]
    return {"id": key, "input": f"{ASK}Film {key}.", "profile": profile, **changes}


def write(
    folder: Path, questions: Any, golds: Any = None, task: str = "LaMP_2", packed: bool = False
) -> Path:
    if golds is None:
        golds = [{"id": entry["id"], "output": "classic"} for entry in questions]
    files = {"dev_questions.json": questions, "dev_outputs.json": {"task": task, "golds": golds}}
    for name, value in files.items():
        data = json.dumps(value).encode()
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder / ("dev_questions.json.gz" if packed else "dev_questions.json")


def load(path: Path, **settings: Any) -> Corpus:
    return load_corpus(CorpusConfig(source="lamp", path=str(path), **settings), seed=0)


@pytest.mark.parametrize("packed", [False, True])
def test_questions_and_outputs_are_joined_by_id(tmp_path: Path, packed: bool) -> None:
    golds = [{"id": "2", "output": "romance"}, {"id": "1", "output": "classic"}]
    corpus = load(write(tmp_path, [question("1"), question("2")], golds, packed=packed))
    assert [user.user_id for user in corpus.users] == ["1", "2"]
    assert corpus.users[0].history == (ProfileItem("1-p", "movie_tag", "A duck 1.", "comedy"),)
    assert corpus.users[0].queries == (Query("1", "movie_tag", "Film 1.", "classic"),)
    assert corpus.users[1].queries[0].gold == "romance"


def film(name: str, tag: str = "comedy", key: str = "") -> dict[str, str]:
    return {"id": key or name, "tag": tag, "description": f"{name}."}


def told(corpus: Corpus, user: int = 0) -> tuple[list[str], list[str]]:
    """Return the texts of a user's items and the ids of the queries."""
    history, queries = corpus.users[user].history, corpus.users[user].queries
    return [item.text for item in history], [query.query_id for query in queries]


def test_entries_of_one_user_come_together(tmp_path: Path) -> None:
    profile = [film("A"), film("B")]
    entries = [
        question("1", user_id="u", profile=profile),
        question("3", user_id=7),
        # The same items under the numbers of another question.
        question("2", user_id="u", profile=[film("A", key="20"), film("B", key="21")]),
    ]
    corpus = load(write(tmp_path, entries))
    assert [user.user_id for user in corpus.users] == ["u", "7"]
    assert told(corpus) == (["A.", "B."], ["1", "2"])
    assert corpus.skipped == ()


def test_of_a_profile_that_grew_only_the_newest_question_stays(tmp_path: Path) -> None:
    # The later profile holds the earlier question with its answer: an item like any other, as the
    # earlier question is left out.
    answered = {"id": "c", "tag": "classic", "description": "Film 1."}
    entries = [
        question("1", user_id="u", profile=[film("B")]),
        question("2", user_id="u", profile=[film("A"), answered, film("B")]),
    ]
    corpus = load(write(tmp_path, entries))
    assert told(corpus) == (["A.", "Film 1.", "B."], ["2"])
    (skip,) = corpus.skipped
    assert skip.where.endswith("entry 0")
    assert "may be older" in skip.reason


def test_profiles_that_lack_only_their_own_question_keep_every_question(tmp_path: Path) -> None:
    answers = {key: {"id": key, "tag": "classic", "description": f"Film {key}."} for key in "12"}
    entries = [
        question("1", user_id="u", profile=[film("A"), answers["2"], film("B")]),
        question("2", user_id="u", profile=[answers["1"], film("A"), film("B")]),
    ]
    corpus = load(write(tmp_path, entries))
    assert told(corpus) == (["A.", "B."], ["1", "2"])
    assert {skip.reason for skip in corpus.skipped} == {"an item that is a query's answer"}
    assert len(corpus.skipped) == 2


def test_items_outside_the_longest_profile_are_counted(tmp_path: Path) -> None:
    entries = [
        question("1", user_id="u", profile=[film("C"), film("A")]),
        question("2", user_id="u", profile=[film("C"), film("B")]),
    ]
    corpus = load(write(tmp_path, entries))
    assert told(corpus) == (["C.", "B."], ["2"])
    assert [skip.reason for skip in corpus.skipped] == [
        "a query that may be older than items of the history",
        "an item outside the longest profile",
    ]
    assert corpus.skipped[1].where.endswith("item A")


@settings(deadline=None)
@given(
    # What a person did in order of time: saw films or answered questions, which are films too.
    life=st.lists(st.booleans(), min_size=1, max_size=8).map(lambda more: [False, *more, True]),
    mix=st.randoms(),
    answers_are_items=st.booleans(),
)
def test_no_item_is_younger_than_a_query(
    life: list[bool], mix: random.Random, answers_are_items: bool
) -> None:
    films = [
        {"id": str(time), "tag": "classic", "description": f"Film {time}."}
        for time in range(len(life))
    ]
    entries = [
        question(
            str(time),
            user_id="u",
            profile=[films[t] for t in range(time) if answers_are_items or not life[t]],
        )
        for time, asked in enumerate(life)
        if asked
    ]
    mix.shuffle(entries)
    with TemporaryDirectory() as folder:
        (user,) = load(write(Path(folder), entries)).users
    items = [int(item.item_id) for item in user.history]
    queries = [int(query.query_id) for query in user.queries]
    assert max(items) < min(queries)
    assert items == sorted(items)
    # The last question is always among them, and with it everything that was done before.
    assert len(life) - 1 in queries
    if answers_are_items:
        assert items == [time for time in range(len(life) - 1) if time not in queries]


def test_equal_profiles_without_user_id_are_one_user(tmp_path: Path) -> None:
    entries = [
        question("1", profile=[film("A"), film("B")]),
        question("2", profile=[film("B", key="20"), film("A", key="21")]),
        question("3", profile=[film("A"), film("B", tag="action")]),
        question("4", profile=[film("A")]),
    ]
    corpus = load(write(tmp_path, entries))
    assert [user.user_id for user in corpus.users] == ["1", "3", "4"]
    assert [query.query_id for query in corpus.users[0].queries] == ["1", "2"]
    assert corpus.skipped == ()


def test_outputs_are_found_beside_or_given(tmp_path: Path) -> None:
    assert outputs_beside(Path("x/LaMP_2_dev_questions.json")) == Path("x/LaMP_2_dev_outputs.json")
    path = write(tmp_path, [question("1")])
    renamed = path.rename(tmp_path / "asked.json")
    with pytest.raises(MesofedError, match=r"corpus\.outputs=FILE"):
        load(renamed)
    assert load(renamed, outputs=str(tmp_path / "dev_outputs.json")).users


def test_missing_outputs_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, [question("1")])
    (tmp_path / "dev_outputs.json").unlink()
    with pytest.raises(MesofedError, match=r"an outputs file beside.*no file .*dev_outputs\.json"):
        load(path)


BAD = {
    "question twice": ([question("1"), question("1")], None, "entry 1.id: expected an id"),
    "no gold": ([question("1"), question("2")], [{"id": "1", "output": "classic"}], "entry 1 id"),
    "no question": (
        [question("1")],
        [{"id": "1", "output": "classic"}, {"id": "9", "output": "classic"}],
        "golds[1].id: expected the id of a question",
    ),
    "unknown label": ([question("1")], [{"id": "1", "output": "meh"}], "gold: expected one of"),
    "empty profile": ([question("1", profile=[])], None, "entry 0 profile: expected at least one"),
    "other words": ([question("1", input="Tag?")], None, "entry 0.input: expected the wording"),
    "entry that is no object": ([question("1"), 5], [{"id": "1", "output": "classic"}], "entry 1"),
    "gold that is no object": ([question("1")], [{"id": "1", "output": "classic"}, 5], "golds[1]"),
}


@pytest.mark.parametrize(("entries", "golds", "told"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_told_with_its_place(
    tmp_path: Path, entries: Any, golds: Any, told: str
) -> None:
    path = write(tmp_path, entries, golds)
    with pytest.raises(MesofedError) as error:
        load(path)
    assert told in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_skipping_leaves_out_and_counts(tmp_path: Path) -> None:
    entries = [question("1"), question("2", profile=[]), question("3")]
    corpus = load(write(tmp_path, entries), bad_input="skip")
    assert [user.user_id for user in corpus.users] == ["1", "3"]
    assert len(corpus.skipped) == 1


@pytest.mark.parametrize("task", ["LaMP_3", "citation"])
def test_a_file_of_the_wrong_task_is_refused(tmp_path: Path, task: str) -> None:
    path = write(tmp_path, [question("1")])
    with pytest.raises(MesofedError, match=r"outputs\.json task: expected .* got movie_tag"):
        load(path, task=task)
    assert load(path, task="LaMP_2").users


def test_unknown_task_and_swapped_files_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, [question("1")], task="LaMP_9")
    with pytest.raises(MesofedError, match=r"task: expected LaMP_1.*got 'LaMP_9'"):
        load(path)
    with pytest.raises(MesofedError, match=r"a list of questions; got an object"):
        load(tmp_path / "dev_outputs.json")
    with pytest.raises(MesofedError, match=r'"golds".*got a list'):
        load(path, outputs=str(path))


def test_check_knows_the_pair(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, [question("1"), question("2", profile=[])]))
    assert (report.source, report.users, report.queries) == ("lamp", 1, {"movie_tag": 1})
    assert [problem.where for problem in report.problems] == [
        f"{tmp_path / 'dev_questions.json'}: entry 1 profile"
    ]
