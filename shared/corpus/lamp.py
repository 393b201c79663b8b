"""The official LaMP files: a questions file and an outputs file, both JSON, plain or gzip.

::

    questions  [{"id": "310", "input": "Which tag ...", "profile": [{"id": ..., ...}]}, ...]
    outputs    {"task": "LaMP_2", "golds": [{"id": "310", "output": "classic"}, ...]}

A question is a user of its own, unless the entries carry ``user_id`` (as in some releases of the
time split): then a user's questions and items come together.
"""

from dataclasses import dataclass, field
from pathlib import Path

from shared.corpus.lamp_entries import identifier, read_profile, read_query, without_answers
from shared.corpus.lamp_tasks import KNOWN_NAMES, LampTask, TaskOfFile, recognise
from shared.corpus.plain_file import read_json
from shared.corpus.problems import Findings, shown
from shared.corpus.user import ProfileItem, Query, User


@dataclass(frozen=True)
class _Person:
    """What the entries of one user have told so far; ``where`` is the first of them."""

    where: str
    items: dict[str, ProfileItem] = field(default_factory=dict)
    queries: list[Query] = field(default_factory=list)


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
        person = people.setdefault(user_id, _Person(where))
        if query is not None:
            person.queries.append(query)
        for item in items:
            if person.items.setdefault(item.item_id, item) != item:
                expected = f"item {item.item_id} as in the user's entries before"
                findings.problem(f"{where} profile", expected, "another text or target")
    for key, number in golds.places.items():
        if key not in asked:
            where = f"{golds.path}: golds[{number}].id"
            findings.problem(where, f"the id of a question in {questions}", shown(key))
    users = (_close(user_id, person, findings) for user_id, person in people.items())
    return tuple(user for user in users if user is not None)


def _close(user_id: str, person: _Person, findings: Findings) -> User | None:
    where = f"{person.where} user {shown(user_id)}"
    if not person.queries:
        findings.problem(where, "at least one query", "none usable")
        return None
    history = without_answers(person.items.values(), person.queries, where, findings)
    if not history:
        findings.skip(where, "a user with no item but the queries' answers")
        return None
    return User(user_id, history, tuple(person.queries))
