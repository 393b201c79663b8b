"""From text to tokens: what is cut, where answers stand, and that padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query, User
from shared.retrieval import NO_EXAMPLES, queries_with_examples
from shared.samples import (
    CUE_TOKENS,
    Sample,
    answer_room,
    collate,
    encode,
    encode_prompt,
    history_samples,
)
from shared.tasks import TASKS
from shared.training import answer_losses, mean_per_user

CPU = torch.device("cpu")
END = 257
PAD = 258


def text(ids: tuple[int, ...]) -> str:
    """Decode tokens of ``tiny``, which are bytes."""
    return bytes(ids).decode()


def test_a_sample_is_the_prompt_a_space_the_answer_and_the_end(base: BaseModel) -> None:
    sample = encode(base, "article: x\ncategory:", "politics")
    assert text(sample.prompt) == "article: x\ncategory:"
    assert text(sample.answer[:-1]) == " politics"
    assert sample.answer[-1] == END
    assert len(sample) == 20 + 9 + 1


def test_history_and_queries_become_samples_through_their_task(base: BaseModel) -> None:
    item = ProfileItem("1", "news_headline", "A fox jumps.", "Fox jumps")
    query = Query("1", "news_category", "A vote.", "politics")
    (history,) = history_samples(base, [item])
    (asked,) = queries_with_examples(base, User("u", (), (query,)), NO_EXAMPLES)
    assert text(history.prompt) == "article: A fox jumps.\nheadline:"
    assert text(history.answer[:-1]) == " Fox jumps"
    assert text(asked.prompt) == "article: A vote.\ncategory:"
    assert text(asked.answer[:-1]) == " politics"


@settings(deadline=None)
@given(
    limit=st.integers(16, 80),
    room=st.none() | st.integers(2, 80),
    prompt=st.text("abc\n:", min_size=1, max_size=120),
    answer=st.text("xyz", max_size=120),
)
@example(limit=16, room=None, prompt="a" * 30, answer="x" * 30)  # less room than the cue takes
def test_cutting_keeps_to_the_limit_and_keeps_the_cue(
    base: BaseModel, limit: int, room: int | None, prompt: str, answer: str
) -> None:
    base = replace(base, max_tokens=limit)
    sample = encode(base, prompt, answer, room)
    kept = min(room or limit, limit // 2)
    assert sample.answer[-1] == END
    assert text(sample.answer[:-1]) == f" {answer}"[: kept - 1]
    came = text(sample.prompt)
    assert len(came) == min(len(prompt), limit - kept)
    cue = min(CUE_TOKENS, len(came))
    assert came.endswith(prompt[-cue:])
    assert prompt.startswith(came[: len(came) - cue])
    # Whatever the answer, the question is the same, and the same when nobody knows the answer.
    assert sample.prompt == encode(base, prompt, "", room).prompt
    assert sample.prompt == encode_prompt(base, prompt, room)


def test_room_for_an_answer_is_that_of_its_task(base: BaseModel) -> None:
    rating, tweet = TASKS["rating"], TASKS["tweet_paraphrase"]
    assert answer_room(base, rating, rating.labels) == len(" 5") + 1  # a token a byte, and the end
    long = replace(base, max_tokens=400)
    assert answer_room(long, tweet, None) == tweet.answer_tokens
    assert answer_room(replace(base, max_tokens=40), tweet, None) == 20
    tags = TASKS["tagging"]
    assert answer_room(long, tags, tags.labels) == len(" triumph") + 1


def test_a_long_question_is_asked_as_it_is_trained_on(base: BaseModel) -> None:
    text_of_many_tokens = "so it goes " * 30
    query = Query("q", "tagging", text_of_many_tokens, "gear")
    (sample,) = queries_with_examples(base, User("u", (), (query,)), NO_EXAMPLES)
    (history,) = history_samples(base, [ProfileItem("i", "tagging", text_of_many_tokens, "gear")])
    room = answer_room(base, TASKS["tagging"], TASKS["tagging"].labels)
    assert sample == history
    assert len(sample.prompt) == base.max_tokens - room
    assert sample.prompt == encode_prompt(base, TASKS["tagging"].query_prompt(query), room)


def test_collation_lays_answers_where_they_are_predicted() -> None:
    groups = [
        [Sample((1, 2, 3), (4, 5)), Sample((6,), (7,))],
        [Sample((8, 9), (10, 11, 12))],
    ]
    batch = collate(groups, PAD, CPU)
    assert batch.users == 2
    assert batch.ids.tolist() == [
        [1, 2, 3, 4, *[PAD] * 12],
        [6, *[PAD] * 15],
        [8, 9, 10, 11, *[PAD] * 12],
        [PAD] * 16,
    ]
    assert batch.row.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.position.tolist() == [2, 3, 0, 1, 2, 3]
    assert batch.target.tolist() == [4, 5, 7, 10, 11, 12]
    assert list(batch.lengths) == [4, 1, 4, 0]
    assert batch.tokens == 64


SAMPLES = st.builds(
    Sample,
    st.lists(st.integers(0, 255), min_size=1, max_size=9).map(tuple),
    st.lists(st.integers(0, 255), min_size=1, max_size=4).map(tuple),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(SAMPLES, min_size=1, max_size=3), min_size=1, max_size=3))
@pytest.mark.parametrize("pad", [PAD, 7])
def test_padding_does_not_change_losses(
    base: BaseModel, pad: int, groups: list[list[Sample]]
) -> None:
    with torch.no_grad():
        batch = collate(groups, pad, CPU)
        losses = answer_losses(base, batch)
        alone = [
            answer_losses(base, collate([[sample]], PAD, CPU))
            for group in groups
            for sample in group
        ]
        torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-4, atol=1e-4)
        own = [
            [answer_losses(base, collate([[sample]], PAD, CPU)).mean() for sample in group]
            for group in groups
        ]
        means = [torch.stack(losses).mean() for losses in own]
        torch.testing.assert_close(
            mean_per_user(losses, batch), torch.stack(means), rtol=1e-4, atol=1e-4
        )
