"""Every LaMP task's fields and wording, official and varied, become plain text and target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.corpus.lamp_entries import read_profile, read_query, without_answers
from shared.corpus.lamp_tasks import LAMP_TASKS, LampTask, expected_tasks, recognise, tasks_named
from shared.corpus.problems import Findings
from shared.corpus.user import ProfileItem, Query
from shared.errors import MesofedError

BY_NAME = {lamp.task.name: lamp for lamp in LAMP_TASKS}

# name in files, task, profile entry, (text, target), question, gold, query text
EXAMPLES = [
    (
        "LaMP_1",
        "citation",
        {"id": "1", "title": "Kites in wind", "abstract": "We fly\nkites."},
        ("We fly kites.", "Kites in wind"),
        (
            'For an author who has written the paper with the title "Kites "and" wind", which '
            "reference is related? Just answer with [1] or [2] without explanation. "
            '[1]: "Tails" [2]: "On "String""'
        ),
        "[2]",
        'Kites "and" wind\n[1] Tails\n[2] On "String"',
    ),
    (
        "LaMP_2N",
        "news_category",
        {"id": "1", "text": "A recount: again.", "title": "Recount", "category": "politics"},
        ("A recount: again.", "politics"),
        (
            "Which category does this article relate to among the following categories? Just "
            "answer with the category name without further explanation. "
            "categories: [women, politics] article: An article: about votes"
        ),
        "politics",
        "An article: about votes",
    ),
    (
        "LaMP_2M",
        "movie_tag",
        {"id": "1", "tag": "twist ending", "description": "It was all a dream."},
        ("It was all a dream.", "twist ending"),
        (
            "Which tag does this movie relate to among the following tags? Just answer with the "
            "tag name without further explanation. tags: [sci-fi] description: Robots laugh."
        ),
        "sci-fi",
        "Robots laugh.",
    ),
    (
        "LaMP_3",
        "product_rating",
        {"id": "1", "text": "Broke at once.", "score": "1"},
        ("Broke at once.", "1"),
        (
            "What is the score of the following review on a scale of 1 to 5? just answer with 1, "
            "2, 3, 4, or 5 without further explanation. review: Fine: it works"
        ),
        "4",
        "Fine: it works",
    ),
    (
        "LaMP_3",
        "product_rating",
        {"id": "1", "text": "A heist.", "score": 5},
        ("A heist.", "5"),
        (
            "What is the score of the following movie on a scale of 1 to 5? just answer with 1, "
            "2, 3, 4, or 5 without further explanation. movie: A duck reviews films."
        ),
        3.0,
        "A duck reviews films.",
    ),
    (
        "LaMP_4",
        "news_headline",
        {"id": "1", "text": "It rained.", "title": "Rain"},
        ("It rained.", "Rain"),
        "Generate a headline for the following article: Snow fell.",
        "Snow",
        "Snow fell.",
    ),
    (
        "LaMP_5",
        "scholarly_title",
        {"id": "1", "title": "On sums", "abstract": "We add."},
        ("We add.", "On sums"),
        "Generate a title for the following abstract of a paper: We subtract.",
        "On differences",
        "We subtract.",
    ),
    (
        "LaMP_7",
        "tweet_paraphrase",
        {"id": "1", "text": "omg  so   tired "},
        ("", "omg so tired"),
        "Paraphrase the following tweet without any explanation before or after it: I am tired.",
        "soooo tired",
        "I am tired.",
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example[0]} {example[1]}")
def test_task_profile_and_question_are_understood(example: tuple) -> None:  # type: ignore[type-arg]
    name, task, entry, (text, target), question, gold, query_text = example
    lamp = recognise(name, [entry], question)
    assert lamp is not None
    assert lamp.task.name == task
    findings = Findings()
    items = read_profile(lamp, [entry], "f:1", findings)
    query = read_query(lamp, "q", question, gold, "f:1", set(), findings)
    assert not findings.problems
    assert items == [ProfileItem("1", task, text, target)]
    assert query is not None
    assert (query.task, query.text) == (task, query_text)
    assert query.gold == str(gold).removesuffix(".0")
    # The wording of one task is no other task's.
    for other in LAMP_TASKS:
        assert (other.wording.fullmatch(question) is not None) == (other is lamp)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("LaMP_2", ["news_category", "movie_tag"]),
        ("lamp-2", ["news_category", "movie_tag"]),
        ("LaMP_2_news", ["news_category"]),
        ("LaMP-2M", ["movie_tag"]),
        ("LaMP_2_movies", ["movie_tag"]),
        ("product_rating", ["product_rating"]),
        ("LaMP_6", []),
        ("", []),
    ],
)
def test_names_vary(name: str, tasks: list[str]) -> None:
    assert [lamp.task.name for lamp in tasks_named(name)] == tasks


def test_the_two_lamp_2_are_told_apart_by_profile_or_question() -> None:
    movie = BY_NAME["movie_tag"]
    news = BY_NAME["news_category"]
    assert recognise("LaMP_2", [{"tag": "comedy"}], None) is movie
    assert recognise("LaMP_2", [{"category": "sports"}], None) is news
    assert recognise("LaMP_2", [], EXAMPLES[2][4]) is movie
    assert recognise("LaMP_2", "nonsense", EXAMPLES[1][4]) is news


def test_unknown_expected_task_is_refused() -> None:
    with pytest.raises(MesofedError, match=r"LaMP_2N.*got 'LaMP_6'"):
        expected_tasks("LaMP_6")


def test_items_come_oldest_first_when_all_tell_their_time() -> None:
    lamp = BY_NAME["tweet_paraphrase"]

    def order(*stamps: dict[str, object]) -> list[str]:
        profile = [{"id": str(n), "text": f"t{n}", **stamp} for n, stamp in enumerate(stamps)]
        items = read_profile(lamp, profile, "f:1", Findings())
        assert items is not None
        return [item.item_id for item in items]

    assert order({"timestamp": 30}, {"timestamp": 10}, {"timestamp": 20}) == ["1", "2", "0"]
    assert order({"date": "2020-05-01"}, {"date": "2019-12-31"}) == ["1", "0"]
    assert order({"date": "2020-05-01"}, {"date": "2020-05-01"}) == ["0", "1"]
    assert order({"date": "2020-05-01"}, {"timestamp": 1}, {}) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("score", "target"),
    [
        *((three, "3") for three in ("3", 3, 3.0, " 3.0 ")),
        *((bad, None) for bad in ("6", 0, 3.5, True, "three", None, float("nan"), 10**400)),
    ],
)
def test_scores_are_whole_numbers_from_1_to_5(score: object, target: str | None) -> None:
    findings = Findings()
    profile = [{"id": "1", "text": "x", "score": score}]
    items = read_profile(BY_NAME["product_rating"], profile, "f:1", findings)
    if target is not None:
        assert not findings.problems
        assert items == [ProfileItem("1", "product_rating", "x", target)]
    else:
        assert items is None
        assert findings.problems[0].where == "f:1 profile[0].score"


def test_items_that_answer_a_query_are_left_out_and_counted() -> None:
    findings = Findings()
    items = [
        ProfileItem("same", "news_headline", "text", "gold"),
        ProfileItem("other answer", "news_headline", "text", "mine"),
        ProfileItem("other text", "news_headline", "another", "gold"),
        ProfileItem("tweet", "tweet_paraphrase", "", "gold"),
    ]
    queries = [Query("q", "news_headline", "text", "gold")]
    kept = without_answers(items, queries, "f:1", findings)
    assert [item.item_id for item in kept] == ["other answer", "other text"]
    assert [skip.where for skip in findings.skipped] == ["f:1 item same", "f:1 item tweet"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(LAMP_TASKS),
    json_values | st.lists(st.fixed_dictionaries({}, optional={"id": json_values})),
    json_values,
)
def test_any_json_gives_items_or_problems(lamp: LampTask, profile: object, other: object) -> None:
    findings = Findings()
    items = read_profile(lamp, profile, "f:1", findings)
    query = read_query(lamp, other, other, other, "f:1", set(), findings)
    assert items or findings.problems
    assert query or findings.problems or findings.skipped
