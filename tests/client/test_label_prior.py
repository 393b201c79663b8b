"""The label prior: frequencies of a person's own labels, by hand."""

import pytest

from client.label_prior import label_prior
from shared.corpus.user import ProfileItem
from shared.tasks import NEWS_CATEGORIES, TASKS


def item(task: str, target: str) -> ProfileItem:
    return ProfileItem(item_id="1", task=task, text="text", target=target)


def test_labels_count_as_often_as_they_were_chosen() -> None:
    history = [item("news_category", "politics")] * 3 + [item("news_category", "travel")]
    prior = label_prior(history, "news_category")
    assert prior is not None
    # One pseudo-count over 15 labels; 4 items were chosen.
    assert prior["politics"] == pytest.approx((3 + 1 / 15) / 5)
    assert prior["travel"] == pytest.approx((1 + 1 / 15) / 5)
    assert prior["crime"] == pytest.approx(1 / 15 / 5)
    assert tuple(prior) == NEWS_CATEGORIES
    assert sum(prior.values()) == pytest.approx(1)


def test_other_tasks_and_unknown_labels_do_not_count_and_nothing_is_even() -> None:
    history = [item("product_rating", "5"), item("news_category", "gardening")]
    prior = label_prior(history, "news_category")
    assert prior is not None
    assert list(prior.values()) == pytest.approx([1 / 15] * 15)


@pytest.mark.parametrize("task", ["news_headline", "citation"])
def test_there_is_none_where_the_history_chooses_no_label_of_the_query(task: str) -> None:
    assert label_prior([item(task, "1")], task) is None
    assert task in TASKS
