"""One user a line, plain or gzip, in LaMP's fields and wording.

::

    {"user_id": "n1", "task": "LaMP_2N", "profile": [{"id": ..., "text": ..., "category": ...}],
     "query": [{"id": ..., "input": "Which category ...", "gold": "politics"}]}
"""

from pathlib import Path

from shared.corpus.lamp_entries import identifier, read_profile, read_query, without_answers
from shared.corpus.lamp_tasks import KNOWN_NAMES, TaskOfFile, recognise
from shared.corpus.plain_file import parse_json, read_plain
from shared.corpus.problems import Findings, shown
from shared.corpus.user import Query, User


def read_jsonl(path: Path, task: str, findings: Findings) -> tuple[User, ...]:
    """Read the users of a JSONL file; what is bad goes to ``findings`` and not to the users.

    Parameters
    ----------
    path : Path
        The file.
    task : str
        The expected task under any of its names; empty for that of the first user.
    findings : Findings
        Problems and skips; grows.

    Raises
    ------
    MesofedError
        If ``task`` is not a task's name.
    """
    file_task = TaskOfFile(task)
    users: dict[str, User] = {}
    for number, line in enumerate(read_plain(path, findings).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        user = _read_user(line, where, file_task, findings)
        if user is None:
            continue
        if user.user_id in users:
            got = f"{shown(user.user_id)} again"
            findings.problem(f"{where} user_id", "an id that no other user has", got)
            continue
        users[user.user_id] = user
    return tuple(users.values())


def _read_user(line: bytes, where: str, file_task: TaskOfFile, findings: Findings) -> User | None:
    record = parse_json(line, where, findings)
    if not isinstance(record, dict):
        if record is not None:
            findings.problem(where, "an object, one user a line", shown(record))
        return None
    user_id = identifier(record.get("user_id"), f"{where} user_id", findings)
    entries = record.get("query")
    if not isinstance(entries, list):
        findings.problem(f"{where} query", "a list of queries", shown(entries))
        return None
    first = entries[0].get("input") if entries and isinstance(entries[0], dict) else None
    lamp = recognise(record.get("task"), record.get("profile"), first)
    if lamp is None:
        findings.problem(f"{where} task", KNOWN_NAMES, shown(record.get("task")))
        return None
    if not file_task.admit(lamp, f"{where} task", findings):
        return None
    items = read_profile(lamp, record.get("profile"), where, findings)
    seen: set[str] = set()
    queries: list[Query] = []
    for index, entry in enumerate(entries):
        part = f"{where} query[{index}]"
        if not isinstance(entry, dict):
            findings.problem(part, "an object", shown(entry))
            continue
        key, question, gold = (entry.get(name) for name in ("id", "input", "gold"))
        query = read_query(lamp, key, question, gold, part, seen, findings)
        if query is not None:
            queries.append(query)
    if user_id is None or items is None:
        return None
    if not queries:
        got = "none" if not entries else f"none usable of {len(entries)}"
        findings.problem(f"{where} query", "at least one query", got)
        return None
    history = without_answers(items, queries, where, findings)
    if not history:
        findings.skip(where, "a user with no item but the queries' answers")
        return None
    return User(user_id, history, tuple(queries))
