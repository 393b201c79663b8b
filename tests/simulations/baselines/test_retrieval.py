"""Retrieval against BM25 written out once more, and the prompts that come of it."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query, User
from shared.samples import encode_prompt
from shared.tasks import TASKS
from simulations.baselines.retrieval import (
    RETRIEVALS,
    nearest_items,
    query_prompt,
    training_samples,
)
from simulations.comparison.scene import Scene

WORDS = ["apple", "river", "stone", "cloud", "tiger", "piano"]


def item(number: int, text: str, target: str = "gear", task: str = "tagging") -> ProfileItem:
    return ProfileItem(f"h{number}", task, text, target)


def bm25(question: str, texts: list[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Robertson's formula with Lucene's idf, from its definition."""
    split = [re.findall(r"\b\w\w+\b", text.lower()) for text in texts]
    average = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in re.findall(r"\b\w\w+\b", question.lower()):
            holding = sum(word in other for other in split)
            idf = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            count = words.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(words) / average))
        scores.append(score)
    return scores


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.sampled_from([*WORDS, "unseen"]), min_size=1, max_size=3).map(" ".join),
)
def test_items_come_in_the_order_of_bm25_and_newest_first_among_equals(
    texts: list[str], question: str
) -> None:
    items = [item(i, text) for i, text in enumerate(texts)]
    scores = bm25(question, [f"{text} gear" for text in texts])
    found = [int(i.item_id[1:]) for i in nearest_items(question, items, len(items))]
    assert sorted(found) == list(range(len(texts)))
    for first, second in pairwise(found):
        assert scores[first] >= scores[second] - 1e-5
        if abs(scores[first] - scores[second]) < 1e-9 and texts[first] == texts[second]:
            assert first > second


def test_without_a_common_word_the_newest_are_taken() -> None:
    items = [item(0, "apple"), item(1, "river"), item(2, "stone")]
    assert [i.item_id for i in nearest_items("piano", items, 2)] == ["h2", "h1"]
    assert nearest_items("apple", [], 2) == ()


def test_the_nearest_stands_next_to_the_question(base: BaseModel) -> None:
    user = User("u", (item(0, "apple pie", "dream"), item(1, "river bank", "drama")), ())
    query = Query("q", "tagging", "an apple", "gear")
    assert query_prompt(base, user, query, 2, 64) == (
        "post: river bank\ntag: drama\n\npost: apple pie\ntag: dream\n\npost: an apple\ntag:"
    )
    assert query_prompt(base, user, query, 0, 64) == TASKS["tagging"].query_prompt(query)


def test_the_question_is_cut_as_for_every_method_and_items_to_their_room(base: BaseModel) -> None:
    user = User("u", (item(0, "apple " * 50, "dream"),), ())
    query = Query("q", "tagging", "apple " * 50, "gear")
    bare = TASKS["tagging"].query_prompt(query)
    room = max(len(f" {label}") for label in TASKS["tagging"].labels or ()) + 1  # bytes are tokens
    kept = base.tokenizer.decode(list(encode_prompt(base, bare, room)))
    prompt = query_prompt(base, user, query, 1, 40)
    shown, asked = prompt.split("\n\n")
    assert asked == kept
    assert len(shown) <= 40
    assert shown.endswith("\ntag: dream")


def test_training_finds_earlier_items_alone(base: BaseModel) -> None:
    user = User("u", (item(0, "apple one"), item(1, "apple two"), item(2, "apple three")), ())
    wide = replace(base, max_tokens=1000)
    texts = [wide.tokenizer.decode(list(s.prompt)) for s in training_samples(base, user, 4, 64)]
    assert [text.count("post:") for text in texts] == [1, 2, 3]
    assert "three" not in texts[1]
    assert texts[0] == "post: apple one\ntag:"


def test_nobody_elses_items_and_no_later_task_are_in_a_prompt(scene: Scene) -> None:
    others = {i.text for user in scene.server for i in user.history}
    for user in scene.people:
        own = {i.text for i in user.history}
        for query in user.queries:
            prompt = query_prompt(scene.base, user, query, 4, 1000)
            shown = prompt.split("\n\n")[:-1]
            assert len(shown) == min(4, sum(i.task == query.task for i in user.history))
            for text in own - others:
                if any(text in part for part in shown):
                    assert text in own
            assert not [t for t in others - own if any(t in part for part in shown)]


@pytest.mark.parametrize("contender", RETRIEVALS, ids=lambda c: c.name)
def test_every_form_answers_everybody_with_longer_prompts(contender: object, scene: Scene) -> None:
    answered = contender.answer(scene)  # type: ignore[attr-defined]
    assert [len(o["queries"]) for o in answered.outcomes] == [len(u.queries) for u in scene.people]
    assert answered.prompt_tokens > 5
    assert all(o["private_bytes"] == 0 for o in answered.outcomes)
