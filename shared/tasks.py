"""The tasks: what a person is asked, what an answer may be, and how it is judged.

History and query of a task share one short prompt where the task allows it, so that what is learnt
from the one serves the other. The answer follows the prompt after one space::

    article: The channel secretly filmed lawmakers ...
    category: politics
"""

from dataclasses import dataclass
from typing import Literal

from shared.corpus.user import ProfileItem, Query

Kind = Literal["classification", "rating", "generation"]

SCORES = ("1", "2", "3", "4", "5")

NEWS_CATEGORIES = (
    "women",
    "religion",
    "politics",
    "style & beauty",
    "entertainment",
    "culture & arts",
    "sports",
    "science & technology",
    "travel",
    "business",
    "crime",
    "education",
    "healthy living",
    "parents",
    "food & drink",
)

MOVIE_TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)

POST_TAGS = ("triumph", "lesson", "comedy", "drama", "gear", "dream", "secret", "routine")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    name, summary : str
        Short name, and one line for tables and help.
    kind : {"classification", "rating", "generation"}
        Decides the metrics (``shared.metrics``).
    history_template, query_template : str
        Prompts, with ``{text}`` where the item's or the query's text goes. A history template
        without it belongs to a task whose history has targets only.
    labels : tuple of str or None
        Every allowed answer to a query; None if the answer is free text.
    answer_tokens : int
        Room for free text, in tokens: of SmolLM2's, for nearly all golds of the task.
    """

    name: str
    summary: str
    kind: Kind
    history_template: str
    query_template: str
    labels: tuple[str, ...] | None = None
    answer_tokens: int = 64

    @property
    def history_has_text(self) -> bool:
        """Whether a history item is a pair of text and target, not a target alone."""
        return "{text}" in self.history_template

    @property
    def history_labels(self) -> tuple[str, ...] | None:
        """Every allowed target of a history item: the labels, if history and query ask the same.

        The history of ``citation`` is titles, while its queries choose between two papers.
        """
        return self.labels if self.history_template == self.query_template else None

    def history_prompt(self, item: ProfileItem) -> str:
        """Return the prompt that the item's target answers; the target follows after a space."""
        return self.history_template.replace("{text}", item.text)

    def query_prompt(self, query: Query) -> str:
        """Return the prompt that the query's gold answers; the gold follows after a space."""
        return self.query_template.replace("{text}", query.text)


def _same_prompt(
    name: str,
    summary: str,
    kind: Kind,
    prompt: str,
    labels: tuple[str, ...] | None = None,
    answer_tokens: int = 64,
) -> Task:
    return Task(name, summary, kind, prompt, prompt, labels, answer_tokens)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "citation",
            "LaMP-1: which of two papers does the author cite",
            "classification",
            "abstract: {text}\ntitle:",
            "paper: {text}\ncites:",
            ("[1]", "[2]"),
        ),
        _same_prompt(
            "news_category",
            "LaMP-2N: category of a news article",
            "classification",
            "article: {text}\ncategory:",
            NEWS_CATEGORIES,
        ),
        _same_prompt(
            "movie_tag",
            "LaMP-2M: tag of a film",
            "classification",
            "movie: {text}\ntag:",
            MOVIE_TAGS,
        ),
        _same_prompt(
            "product_rating",
            "LaMP-3: score of a product or film, 1 to 5",
            "rating",
            "text: {text}\nscore (1-5):",
            SCORES,
        ),
        _same_prompt(
            "news_headline",
            "LaMP-4: headline of a news article",
            "generation",
            "article: {text}\nheadline:",
            answer_tokens=32,
        ),
        _same_prompt(
            "scholarly_title",
            "LaMP-5: title of a paper",
            "generation",
            "abstract: {text}\ntitle:",
            answer_tokens=48,
        ),
        Task(
            "tweet_paraphrase",
            "LaMP-7: a plain sentence in the person's own words",
            "generation",
            "tweet:",
            "plain: {text}\ntweet:",
        ),
        Task(
            "writing",
            "free text in the person's own words",
            "generation",
            "text:",
            "text: {text}",
        ),
        _same_prompt(
            "tagging",
            "built-in corpus: tag of a post",
            "classification",
            "post: {text}\ntag:",
            POST_TAGS,
        ),
        _same_prompt(
            "rating",
            "built-in corpus: score of an outing, 1 to 5",
            "rating",
            "outing: {text}\nscore (1-5):",
            SCORES,
        ),
        _same_prompt(
            "headline",
            "built-in corpus: headline of a post",
            "generation",
            "post: {text}\nheadline:",
            answer_tokens=32,
        ),
    )
}

ALL_TASKS = tuple(TASKS)

ALIKE = tuple(
    name
    for name, task in TASKS.items()
    if task.kind == "generation" and task.history_template == task.query_template
)
"""Tasks of free text whose history shows how such a question was answered before."""
