"""LaMP's fields and wording, turned into the one typed form of a user.

Each LaMP task names its profile fields differently and wraps the text of a query in an
instruction. Here both become plain (text, target), so that history and query share one short
prompt (``shared.tasks``). Source: files and prompts of LaMP-1 to 7, https://lamp-benchmark.github.io.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.corpus.problems import Findings, shown
from shared.corpus.user import ProfileItem, Query
from shared.errors import MesofedError
from shared.tasks import SCORES, TASKS, Task


@dataclass(frozen=True)
class LampTask:
    """How LaMP writes one task.

    Attributes
    ----------
    task : Task
        The task as Mesofed knows it.
    aliases : tuple of str
        Names in files, lower case, letters and digits only.
    text_field, target_field : str
        Profile fields; an empty text field means that there is only a target.
    wording : re.Pattern
        A query's ``input``; its groups are the parts of the query's text.
    example : str
        The wording in short, for messages.
    """

    task: Task
    aliases: tuple[str, ...]
    text_field: str
    target_field: str
    wording: re.Pattern[str]
    example: str


def _lamp(
    task: str, aliases: str, text_field: str, target_field: str, wording: str, example: str
) -> LampTask:
    pattern = re.compile(wording, re.DOTALL | re.IGNORECASE)
    return LampTask(TASKS[task], tuple(aliases.split()), text_field, target_field, pattern, example)


LAMP_TASKS = (
    _lamp(
        "citation",
        "lamp1",
        "abstract",
        "title",
        r'\s*For an author who has written the paper with the title "(.*?)", which reference is '
        r'related\?.*?\[1\]:\s*"(.*?)"\s*\[2\]:\s*"(.*)"\s*',
        'For an author who has written the paper with the title "...", which reference is related? '
        '... [1]: "..." [2]: "..."',
    ),
    _lamp(
        "news_category",
        "lamp2 lamp2n lamp2news",
        "text",
        "category",
        r"\s*Which category does this article relate to\b.*?\barticle:(.*)",
        "Which category does this article relate to ... categories: [...] article: ...",
    ),
    _lamp(
        "movie_tag",
        "lamp2 lamp2m lamp2movies",
        "description",
        "tag",
        r"\s*Which tag does this movie relate to\b.*?\bdescription:(.*)",
        "Which tag does this movie relate to ... tags: [...] description: ...",
    ),
    _lamp(
        "product_rating",
        "lamp3",
        "text",
        "score",
        r"\s*What is the score of the following (?:[\w ]+?) on a scale of 1 to 5\?[^:]*:(.*)",
        "What is the score of the following review on a scale of 1 to 5? ... review: ...",
    ),
    _lamp(
        "news_headline",
        "lamp4",
        "text",
        "title",
        r"\s*Generate a headline for the following article:(.*)",
        "Generate a headline for the following article: ...",
    ),
    _lamp(
        "scholarly_title",
        "lamp5",
        "abstract",
        "title",
        r"\s*Generate a title for the following abstract of a paper:(.*)",
        "Generate a title for the following abstract of a paper: ...",
    ),
    _lamp(
        "tweet_paraphrase",
        "lamp7",
        "",
        "text",
        r"\s*Paraphrase the following tweet without any explanation before or after it:(.*)",
        "Paraphrase the following tweet without any explanation before or after it: ...",
    ),
)

KNOWN_NAMES = "LaMP_1, LaMP_2N, LaMP_2M, LaMP_3, LaMP_4, LaMP_5 or LaMP_7"


def tasks_named(name: str) -> tuple[LampTask, ...]:
    """Return the tasks a name may stand for: none if unknown, two for ``LaMP_2``."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return tuple(
        lamp
        for lamp in LAMP_TASKS
        if plain in lamp.aliases or plain == lamp.task.name.replace("_", "")
    )


def expected_tasks(name: str) -> tuple[LampTask, ...]:
    """Return the tasks that ``corpus.task`` allows; every task if it is empty.

    Raises
    ------
    MesofedError
        If the name is not a LaMP task's.
    """
    allowed = tasks_named(name) if name else LAMP_TASKS
    if not allowed:
        names = ", ".join(lamp.task.name for lamp in LAMP_TASKS)
        raise MesofedError(f"Expected corpus.task to be {KNOWN_NAMES}, or {names}; got {name!r}.")
    return allowed


def recognise(name: object, profile: object, question: object) -> LampTask | None:
    """Return the task of a name in a file; profile and question decide between the two LaMP-2."""
    candidates = tasks_named(name) if isinstance(name, str) else ()
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    first = profile[0] if isinstance(profile, list) and profile else None
    for lamp in candidates:
        if isinstance(first, dict) and lamp.target_field in first:
            return lamp
    for lamp in candidates:
        if isinstance(question, str) and lamp.wording.fullmatch(question):
            return lamp
    return candidates[0]


class TaskOfFile:
    """Holds a file to one task: the expected one, or that of its first user."""

    def __init__(self, expected: str) -> None:
        self._allowed = expected_tasks(expected)

    def admit(self, lamp: LampTask, where: str, findings: Findings) -> bool:
        """Tell whether the task is the file's; if not, note a problem."""
        if lamp not in self._allowed:
            names = " or ".join(allowed.task.name for allowed in self._allowed)
            findings.problem(where, f"the task {names}", f"{lamp.task.name}")
            return False
        self._allowed = (lamp,)
        return True


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
