"""How LaMP writes its tasks: their names in files, profile fields and instructions.

Source: files and prompts of LaMP-1 to 7, https://lamp-benchmark.github.io.
"""

import re
from dataclasses import dataclass

from shared.corpus.problems import Findings
from shared.errors import MesofedError
from shared.tasks import TASKS, Task


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
