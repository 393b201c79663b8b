"""Tasks: prompts of history and query agree, labels are the official ones."""

import pytest

from shared.corpus.user import ProfileItem, Query
from shared.metrics import PRIMARY
from shared.tasks import TASKS, Task


def test_registry_is_keyed_by_name_and_every_kind_has_metrics() -> None:
    assert all(name == task.name for name, task in TASKS.items())
    assert {task.kind for task in TASKS.values()} == set(PRIMARY)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_labels_fit_the_kind(task: Task) -> None:
    if task.kind == "generation":
        assert task.labels is None
    else:
        assert task.labels is not None
        assert len(set(task.labels)) == len(task.labels) >= 2
        # Sources clean answers so; a label that is not clean could never be matched.
        assert all(label == " ".join(label.split()).lower() for label in task.labels)


@pytest.mark.parametrize(
    "name",
    [
        "news_category",
        "movie_tag",
        "product_rating",
        "news_headline",
        "scholarly_title",
        "tagging",
        "rating",
        "headline",
    ],
)
def test_history_and_query_share_one_prompt(name: str) -> None:
    task = TASKS[name]
    text = "a text with {text} and {} and {0}"
    item, query = ProfileItem("i", name, text, "t"), Query("q", name, text, "g")
    assert task.history_prompt(item) == task.query_prompt(query)
    assert text in task.query_prompt(query)


def test_tweet_history_has_the_answer_alone_and_the_query_ends_alike() -> None:
    task = TASKS["tweet_paraphrase"]
    item = ProfileItem("i", task.name, "", "my tweet")
    query = Query("q", task.name, "A sentence.", "gold")
    assert not task.history_has_text
    assert task.history_prompt(item) == "tweet:"
    assert task.query_prompt(query) == "plain: A sentence.\ntweet:"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_prompts_never_hold_the_answer(task: Task) -> None:
    prompt = task.history_prompt(ProfileItem("i", task.name, "some text", "THE ANSWER"))
    prompt += task.query_prompt(Query("q", task.name, "some text", "THE ANSWER"))
    assert "THE ANSWER" not in prompt


def test_citation_history_is_titles_not_choices() -> None:
    assert TASKS["citation"].labels == ("[1]", "[2]")
    assert TASKS["citation"].history_labels is None
    assert TASKS["product_rating"].history_labels == ("1", "2", "3", "4", "5")
