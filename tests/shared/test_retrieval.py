"""Retrieval against BM25 written out once more, and the prompts that come of it."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig
from shared.corpus.user import ProfileItem, Query, User
from shared.retrieval import (
    NO_EXAMPLES,
    Examples,
    before,
    history_with_examples,
    nearest_items,
    queries_with_examples,
    query_prompt,
    roomier,
    task_of,
)
from shared.samples import encode_prompt, history_samples
from shared.tasks import TASKS


def test_jax_is_left_alone_where_it_is_installed(tmp_path: Path) -> None:
    """JAX takes most of a GPU's memory when it is first used, and bm25s would use it."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("used = True")
    (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('JAX was used')")
    code = "import shared.retrieval, sys; assert 'jax' not in sys.modules; import jax; jax.used"
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    for lines in (
        code,
        f"import jax; kept = jax; {code.replace('assert', 'x =')}; assert jax is kept",
    ):
        subprocess.run(
            [sys.executable, "-c", lines], check=True, env={**os.environ, "PYTHONPATH": path}
        )


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
    assert query_prompt(base, user, query, Examples(2, 64)) == (
        "post: river bank\ntag: drama\n\npost: apple pie\ntag: dream\n\npost: an apple\ntag:"
    )
    assert query_prompt(base, user, query, NO_EXAMPLES) == TASKS["tagging"].query_prompt(query)


def test_the_question_is_cut_as_for_every_method_and_items_to_their_room(base: BaseModel) -> None:
    user = User("u", (item(0, "apple " * 50, "dream"),), ())
    query = Query("q", "tagging", "apple " * 50, "gear")
    bare = TASKS["tagging"].query_prompt(query)
    room = max(len(f" {label}") for label in TASKS["tagging"].labels or ()) + 1  # bytes are tokens
    kept = base.tokenizer.decode(list(encode_prompt(base, bare, room)))
    prompt = query_prompt(base, user, query, Examples(1, 40))
    shown, asked = prompt.split("\n\n")
    assert asked == kept
    assert len(shown) <= 40
    assert shown.endswith("\ntag: dream")


def test_training_finds_earlier_items_alone(base: BaseModel) -> None:
    user = User("u", (item(0, "apple one"), item(1, "apple two"), item(2, "apple three")), ())
    wide = replace(base, max_tokens=1000)
    samples = history_with_examples(base, user.history, Examples(4, 64))
    texts = [wide.tokenizer.decode(list(sample.prompt)) for sample in samples]
    assert [text.count("post:") for text in texts] == [1, 2, 3]
    assert "three" not in texts[1]
    assert texts[0] == "post: apple one\ntag:"


def test_a_query_is_trained_on_as_it_is_asked(base: BaseModel) -> None:
    examples = Examples(1, 64)
    user = User("u", (item(0, "apple pie", "dream"),), (Query("q", "tagging", "apple", "gear"),))
    (sample,) = queries_with_examples(base, user, examples)
    asked = query_prompt(base, user, user.queries[0], examples)
    room = max(len(f" {label}") for label in TASKS["tagging"].labels or ()) + 1
    assert sample.prompt == encode_prompt(roomier(base, examples), asked, room)
    assert base.tokenizer.decode(list(sample.prompt)) == (
        "post: apple pie\ntag: dream\n\npost: apple\ntag:"
    )
    assert base.tokenizer.decode(list(sample.answer[:-1])) == " gear"


def test_without_examples_everything_is_as_it_was(base: BaseModel) -> None:
    history = [item(0, "apple " * 60), item(1, "river bank")]
    assert history_with_examples(base, history, NO_EXAMPLES) == history_samples(base, history)
    assert before(base, "any prompt", 8, "any", history, NO_EXAMPLES) == "any prompt"
    assert roomier(base, NO_EXAMPLES) is base


def test_a_long_prompt_keeps_its_room_and_its_example_whole(base: BaseModel) -> None:
    examples, room = Examples(1, 40), 8
    history = (item(0, "apple " * 50, "dream"),)
    put = before(base, "apple " * 80, room, "apple", history, examples)
    ids = encode_prompt(roomier(base, examples), put, room)
    assert base.tokenizer.decode(list(ids)) == put  # nothing of it is cut a second time
    assert put.startswith("post: apple")


def test_only_questions_of_the_named_tasks_have_examples(base: BaseModel) -> None:
    free = Examples(1, 64, ("headline",))
    tag, headline = item(0, "apple pie", "dream"), item(1, "apple tart", "A tart", "headline")
    user = User(
        "u",
        (tag, headline),
        (Query("q", "tagging", "apple", "gear"), Query("r", "headline", "apple", "An apple")),
    )
    chosen, written = user.queries
    assert query_prompt(base, user, chosen, free) == TASKS["tagging"].query_prompt(chosen)
    assert query_prompt(base, user, written, free) == (
        "post: apple tart\nheadline: A tart\n\npost: apple\nheadline:"
    )
    long = item(2, "apple " * 60)  # is cut as without examples
    assert history_with_examples(base, [tag, long], free) == history_samples(base, [tag, long])


def test_a_prompt_is_known_by_how_it_is_put(base: BaseModel) -> None:
    asked = task_of("post: an apple\nheadline:", ("tagging", "headline"))
    assert asked == (TASKS["headline"], "an apple")
    assert task_of("post: an apple\ntag: ", ("tagging", "headline")) == (
        TASKS["tagging"],
        "an apple",
    )
    assert task_of("an apple", ("tagging", "headline")) is None
    assert task_of("post: an apple\nheadline:", ("tagging",)) is None


def test_a_character_that_is_cut_in_two_is_left_out(base: BaseModel) -> None:
    history = [item(0, "\N{ROCKET}" * 60, "dream")]  # four tokens each in this model
    for tokens in range(40, 48):
        put = before(base, "apple", 8, "apple", history, Examples(1, tokens))
        assert "\N{REPLACEMENT CHARACTER}" not in put
        assert "\N{ROCKET}" in put


@given(st.integers(1, 8), st.integers(32, 256), st.integers(0, 80))
@settings(max_examples=30, deadline=None)
def test_examples_have_the_room_that_they_take(count: int, tokens: int, long: int) -> None:
    base = tiny_base()
    history = [item(i, "apple " * long, "dream") for i in range(9)]
    examples, room = Examples(count, tokens), 8
    put = before(base, "apple " * 90, room, "apple", history, examples)
    kept = encode_prompt(roomier(base, examples), put, room)
    assert base.tokenizer.decode(list(kept)) == put


@cache
def tiny_base() -> BaseModel:
    config = BaseConfig(name="tiny", format="fp32", max_tokens=64, top_layers=2)
    return load_base(config, ("q_proj",))
