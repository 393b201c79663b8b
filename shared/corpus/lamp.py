"""The official LaMP files: a questions file and an outputs file, both JSON, plain or gzip.

::

    questions  [{"id": "310", "input": "Which tag ...", "profile": [{"id": ..., ...}]}, ...]
    outputs    {"task": "LaMP_2", "golds": [{"id": "310", "output": "classic"}, ...]}

Entries are of one user if they carry the same ``user_id`` (as in some releases of the time split)
or, without it, if their profiles hold the same items. Contents tell which items are the same, not
ids: LaMP numbers the items of every question anew.

A question comes after the items of its own profile, and nothing says when it was asked otherwise.
A user's history is therefore the longest of the profiles, and a question stays if its own profile
holds all of that history: of a user whose profile grew from question to question only the newest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.corpus.lamp_entries import identifier, read_profile, read_query, without_answers
from shared.corpus.lamp_tasks import KNOWN_NAMES, LampTask, TaskOfFile, recognise
from shared.corpus.plain_file import read_json
from shared.corpus.problems import Findings, shown
from shared.corpus.user import ProfileItem, Query, User


@dataclass(frozen=True)
class _Entry:
    """One usable profile, oldest item first, and its question if that is usable too."""

    where: str
    items: tuple[ProfileItem, ...]
    query: Query | None


@dataclass(frozen=True)
class _Person:
    """The entries of one user so far, in the file's order; ``where`` is the first of them."""

    where: str
    entries: list[_Entry] = field(default_factory=list)


@dataclass(frozen=True)
class _Golds:
    """The outputs file: gold answers by question id, and the place of each."""

    path: Path
    task: object
    answers: dict[str, object]
    places: dict[str, int]


def outputs_beside(questions: Path) -> Path | None:
    """Return the outputs file that belongs to ``*_questions.json``, or None if the name differs.

    Of a plain and a gzip file beside it, the one that exists is meant.
    """
    if "questions" not in questions.name:
        return None
    head, _, tail = questions.name.rpartition("questions")
    name = f"{head}outputs{tail}"
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    if not questions.with_name(name).exists() and questions.with_name(other).exists():
        name = other
    return questions.with_name(name)


def read_lamp(
    questions: Path, outputs: Path | None, task: str, findings: Findings
) -> tuple[User, ...]:
    """Read the users of a pair of LaMP files; what is bad goes to ``findings``.

    Parameters
    ----------
    questions : Path
        The questions file.
    outputs : Path or None
        The outputs file; None for the one beside the questions.
    task : str
        The expected task under any of its names; empty for what the outputs file says.
    findings : Findings
        Problems and skips; grows.

    Raises
    ------
    MesofedError
        If ``task`` is not a task's name.
    """
    file_task = TaskOfFile(task)
    entries = read_json(questions, findings)
    if entries is None:
        return ()
    if not isinstance(entries, list) or not entries:
        findings.problem(str(questions), "a list of questions", shown(entries))
        return ()
    outputs = outputs or outputs_beside(questions)
    if outputs is None or not outputs.exists():
        got = f"no file {outputs}" if outputs else f"the name {questions.name}"
        expected = "an outputs file beside *_questions.json, or --set corpus.outputs=FILE"
        findings.problem(str(questions), expected, got)
        return ()
    golds = _read_golds(outputs, findings)
    if golds is None:
        return ()
    lamp = recognise(golds.task, *_first_profile_and_input(entries))
    if lamp is None:
        findings.problem(f"{outputs} task", KNOWN_NAMES, shown(golds.task))
        return ()
    if not file_task.admit(lamp, f"{outputs} task", findings):
        return ()
    return _join(lamp, entries, golds, questions, findings)


def _read_golds(path: Path, findings: Findings) -> _Golds | None:
    value = read_json(path, findings)
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("golds"), list):
        findings.problem(str(path), 'an object {"task": ..., "golds": [...]}', shown(value))
        return None
    golds = _Golds(path, value.get("task"), {}, {})
    for number, entry in enumerate(value["golds"]):
        where = f"{path}: golds[{number}]"
        if not isinstance(entry, dict):
            findings.problem(where, "an object", shown(entry))
            continue
        key = identifier(entry.get("id"), f"{where}.id", findings)
        if key is not None and key in golds.answers:
            findings.problem(f"{where}.id", "an id that no other gold has", shown(key))
        elif key is not None:
            golds.answers[key] = entry.get("output")
            golds.places[key] = number
    return golds


def _first_profile_and_input(entries: list[object]) -> tuple[object, object]:
    for entry in entries:
        if isinstance(entry, dict) and entry.get("profile"):
            return entry["profile"], entry.get("input")
    return None, None


def _join(
    lamp: LampTask, entries: list[object], golds: _Golds, questions: Path, findings: Findings
) -> tuple[User, ...]:
    """Bring questions and golds together, and the questions of one user."""
    people: dict[str, _Person] = {}
    profiles: dict[tuple[tuple[str, str], ...], str] = {}
    asked: set[str] = set()
    for number, entry in enumerate(entries):
        where = f"{questions}: entry {number}"
        if not isinstance(entry, dict):
            findings.problem(where, "an object", shown(entry))
            continue
        key = identifier(entry.get("id"), f"{where} id", findings)
        user_id = key
        if "user_id" in entry:
            user_id = identifier(entry["user_id"], f"{where} user_id", findings)
        if key is None or user_id is None:
            continue
        if key not in golds.answers:
            findings.problem(f"{where} id", f"the id of a gold in {golds.path}", shown(key))
            continue
        items = read_profile(lamp, entry.get("profile"), where, findings)
        question, gold = entry.get("input"), golds.answers[key]
        query = read_query(lamp, key, question, gold, where, asked, findings)
        asked.add(key)
        if items is None:
            continue
        if "user_id" not in entry:
            user_id = profiles.setdefault(tuple(sorted(_contents(items))), user_id)
        person = people.setdefault(user_id, _Person(where))
        person.entries.append(_Entry(where, tuple(items), query))
    for key, number in golds.places.items():
        if key not in asked:
            where = f"{golds.path}: golds[{number}].id"
            findings.problem(where, f"the id of a question in {questions}", shown(key))
    users = (_close(user_id, person, findings) for user_id, person in people.items())
    return tuple(user for user in users if user is not None)


def _contents(items: Iterable[ProfileItem]) -> list[tuple[str, str]]:
    return [(item.text, item.target) for item in items]


def _asked_after(newest: _Entry, asked: list[tuple[_Entry, Query]]) -> list[tuple[_Entry, Query]]:
    """Return the questions that come after all of the history which they leave of a profile."""
    while True:
        queries = [query for _, query in asked]
        history = set(_contents(without_answers(newest.items, queries, "", Findings())))
        left = [
            (entry, query) for entry, query in asked if history.issubset(_contents(entry.items))
        ]
        if len(left) == len(asked):
            return asked
        # The answer to a question that goes is an item like any other, so the history may grow.
        asked = left


def _skip_other_items(
    person: _Person, newest: _Entry, queries: Sequence[Query], where: str, findings: Findings
) -> None:
    """Count the items that stand in other profiles of the user alone."""
    known = set(_contents(newest.items))
    for entry in person.entries:
        others = [item for item in entry.items if (item.text, item.target) not in known]
        known.update(_contents(others))
        for item in without_answers(others, queries, where, findings):
            findings.skip(f"{where} item {item.item_id}", "an item outside the longest profile")


def _close(user_id: str, person: _Person, findings: Findings) -> User | None:
    where = f"{person.where} user {shown(user_id)}"
    asked = [(entry, entry.query) for entry in person.entries if entry.query is not None]
    if not asked:
        findings.problem(where, "at least one query", "none usable")
        return None
    newest = max((entry for entry, _ in reversed(asked)), key=lambda entry: len(entry.items))
    kept = _asked_after(newest, asked)
    queries = tuple(query for _, query in kept)
    for entry, query in asked:
        if query not in queries:
            findings.skip(entry.where, "a query that may be older than items of the history")
    history = without_answers(newest.items, queries, where, findings)
    _skip_other_items(person, newest, queries, where, findings)
    if not history:
        findings.skip(where, "a user with no item but the queries' answers")
        return None
    return User(user_id, history, queries)
