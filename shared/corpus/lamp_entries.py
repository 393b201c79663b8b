"""LaMP's profile entries and questions, turned into the one typed form of items and queries.

Each LaMP task names its profile fields differently and wraps the text of a query in an
instruction. Here both become plain (text, target), so that history and query share one short
prompt (``shared.tasks``).
"""

import re
from collections.abc import Iterable, Sequence

from shared.corpus.lamp_tasks import LampTask
from shared.corpus.problems import Findings, shown
from shared.corpus.user import ProfileItem, Query
from shared.tasks import SCORES


def identifier(value: object, where: str, findings: Findings) -> str | None:
    """Return an id as text, or None with a problem: a non-empty string or an integer."""
    if isinstance(value, str) and value.strip() and _is_unicode(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    findings.problem(where, "a non-empty string", shown(value))
    return None


def plain_text(value: object, where: str, findings: Findings) -> str | None:
    """Return a text with single spaces, or None with a problem if it is not a Unicode string."""
    if not isinstance(value, str):
        findings.problem(where, "a string", shown(value))
    elif not _is_unicode(value):
        findings.problem(where, "Unicode text", f"{shown(value)} with half a surrogate pair")
    else:
        return " ".join(value.split())
    return None


def _is_unicode(text: str) -> bool:
    # JSON can spell lone surrogates, which no tokenizer and no UTF-8 file can take.
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _answer(
    value: object, labels: tuple[str, ...] | None, where: str, findings: Findings
) -> str | None:
    """Return a target or gold: free text, or one of the labels. Empty text stays empty.

    Files write scores as 4, 4.0, "4" and "4.0"; all are the label "4".
    """
    scored = labels == SCORES
    if scored and isinstance(value, int | float) and not isinstance(value, bool):
        value = shown(value)
    text = plain_text(value, where, findings)
    if not text or labels is None:
        return text
    if scored:
        text = re.sub(r"\.0+$", "", text)
    if text not in labels:
        findings.problem(where, f"one of {', '.join(labels)}", shown(value))
        return None
    return text


def _unique(
    key: str | None, seen: set[str], where: str, unit: str, findings: Findings
) -> str | None:
    if key is not None and key in seen:
        findings.problem(f"{where}.id", f"an id that no other {unit} has", shown(key))
        return None
    return key


def _item(
    lamp: LampTask, entry: object, where: str, seen: set[str], findings: Findings
) -> ProfileItem | None:
    if not isinstance(entry, dict):
        findings.problem(where, "an object", shown(entry))
        return None
    key = identifier(entry.get("id"), f"{where}.id", findings)
    key = _unique(key, seen, where, "item of this user", findings)
    text: str | None = ""
    if lamp.text_field:
        field = lamp.text_field
        text = plain_text(entry.get(field), f"{where}.{field}", findings)
    field = lamp.target_field
    target = _answer(entry.get(field), lamp.task.history_labels, f"{where}.{field}", findings)
    if key is None or text is None or target is None:
        return None
    seen.add(key)
    if (lamp.text_field and not text) or not target:
        findings.skip(where, f"an item without {'target' if text else lamp.text_field or 'text'}")
        return None
    return ProfileItem(key, lamp.task.name, text, target)


def _age(entry: object) -> tuple[str, float, str] | None:
    """Return what orders an entry in time: a timestamp or an ISO date, and which of the two."""
    if isinstance(entry, dict):
        timestamp, date = entry.get("timestamp"), entry.get("date")
        if isinstance(timestamp, int | float) and abs(timestamp) < 1e18:
            return "timestamp", float(timestamp), ""
        if isinstance(date, str) and re.match(r"\d{4}-\d\d-\d\d", date):
            return "date", 0.0, date
    return None


def _oldest_first(entries: list[object]) -> list[int]:
    """Return places sorted by time if every entry tells its own; else the file's order holds."""
    ages = [age for age in map(_age, entries) if age is not None]
    if len(ages) < len(entries) or len({age[0] for age in ages}) != 1:
        return list(range(len(entries)))
    return sorted(range(len(entries)), key=ages.__getitem__)


def read_profile(
    lamp: LampTask, profile: object, where: str, findings: Findings
) -> list[ProfileItem] | None:
    """Return a user's items, oldest first; None with a problem if there is no usable one."""
    if not isinstance(profile, list):
        findings.problem(f"{where} profile", "a list of items", shown(profile))
        return None
    seen: set[str] = set()
    items: list[ProfileItem] = []
    for number in _oldest_first(profile):
        item = _item(lamp, profile[number], f"{where} profile[{number}]", seen, findings)
        if item is not None:
            items.append(item)
    if not items:
        got = "an empty profile" if not profile else f"none usable of {len(profile)}"
        findings.problem(f"{where} profile", "at least one item", got)
        return None
    return items


def read_query(
    lamp: LampTask,
    key: object,
    question: object,
    gold: object,
    where: str,
    seen: set[str],
    findings: Findings,
) -> Query | None:
    """Return one query, its text freed of LaMP's instruction; None if bad or empty.

    Parameters
    ----------
    lamp : LampTask
        The file's task.
    key, question, gold : object
        As they stand in the file: the id, the input and the answer.
    where : str
        ``file:line`` and the field, for messages.
    seen : set of str
        Ids of the other queries; grows.
    findings : Findings
        Problems and skips; grows.
    """
    query_id = identifier(key, f"{where}.id", findings)
    query_id = _unique(query_id, seen, where, "query", findings)
    answer = _answer(gold, lamp.task.labels, f"{where}.gold", findings)
    text = _question(lamp, question, f"{where}.input", findings)
    if query_id is None or answer is None or text is None:
        return None
    seen.add(query_id)
    if not text or not answer:
        findings.skip(where, f"a query without {'gold' if text else 'text'}")
        return None
    return Query(query_id, lamp.task.name, text, answer)


def _question(lamp: LampTask, question: object, where: str, findings: Findings) -> str | None:
    text = plain_text(question, where, findings)
    if text is None:
        return None
    match = lamp.wording.fullmatch(text)
    if match is None:
        findings.problem(where, f"the wording {lamp.example!r}", shown(text))
        return None
    parts = [part.strip() for part in match.groups()]
    if lamp.task.name == "citation":
        title, first, second = parts
        return f"{title}\n[1] {first}\n[2] {second}" if all(parts) else ""
    return parts[0]


def without_answers(
    items: Iterable[ProfileItem], queries: Sequence[Query], where: str, findings: Findings
) -> tuple[ProfileItem, ...]:
    """Leave out the items that give the gold of one of the user's own queries away.

    LaMP-7 has them (36 items in the dev split are their own user's gold tweet), and so has a user
    whose later question carries the earlier one in its profile.
    """
    answers = {(query.text, query.gold) for query in queries}
    golds = {query.gold for query in queries}
    kept = []
    for item in items:
        if (item.text, item.target) in answers or (not item.text and item.target in golds):
            findings.skip(f"{where} item {item.item_id}", "an item that is a query's answer")
        else:
            kept.append(item)
    return tuple(kept)
