"""From text to tokens: what is cut, where answers stand, and that padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query
from shared.samples import (
    CUE_TOKENS,
    Sample,
    collate,
    encode,
    encode_prompt,
    history_samples,
    query_samples,
)
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
    (asked,) = query_samples(base, [query])
    assert text(history.prompt) == "article: A fox jumps.\nheadline:"
    assert text(history.answer[:-1]) == " Fox jumps"
    assert text(asked.prompt) == "article: A vote.\ncategory:"
    assert text(asked.answer[:-1]) == " politics"


@settings(deadline=None)
@given(
    limit=st.integers(16, 80),
    prompt=st.text("abc\n:", min_size=1, max_size=120),
    answer=st.text("xyz", max_size=120),
)
@example(limit=16, prompt="a" * 30, answer="x" * 30)  # less room than the cue takes
def test_cutting_keeps_to_the_limit_and_keeps_the_cue(
    base: BaseModel, limit: int, prompt: str, answer: str
) -> None:
    sample = encode(replace(base, max_tokens=limit), prompt, answer)
    assert len(sample) <= limit
    assert sample.answer[-1] == END
    came, answered = text(sample.prompt), text(sample.answer[:-1])
    if len(answered) < limit // 2:
        assert answered == f" {answer}"
    else:
        assert f" {answer}".startswith(answered)
        assert len(answered) == limit // 2
    if len(prompt) + len(sample.answer) <= limit:
        assert came == prompt
    else:
        assert len(sample) == limit  # no token is given away
        cue = min(CUE_TOKENS, len(came))
        assert came.endswith(prompt[-cue:])
        assert prompt.startswith(came[: len(came) - cue])


@settings(deadline=None)
@given(limit=st.integers(16, 80), prompt=st.text("abc", min_size=1, max_size=120))
def test_a_prompt_alone_leaves_half_of_the_room_to_the_answer(
    base: BaseModel, limit: int, prompt: str
) -> None:
    came = text(encode_prompt(replace(base, max_tokens=limit), prompt))
    assert len(came) == min(len(prompt), limit - limit // 2)
    assert came.endswith(prompt[-CUE_TOKENS:])


def test_collation_lays_answers_where_they_are_predicted() -> None:
    groups = [
        [Sample((1, 2, 3), (4, 5)), Sample((6,), (7,))],
        [Sample((8, 9), (10, 11, 12))],
    ]
    batch = collate(groups, PAD, CPU)
    assert batch.users == 2
    assert batch.ids.tolist() == [
        [1, 2, 3, 4, *[PAD] * 4],
        [6, *[PAD] * 7],
        [8, 9, 10, 11, *[PAD] * 4],
        [PAD] * 8,
    ]
    assert batch.row.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.position.tolist() == [2, 3, 0, 1, 2, 3]
    assert batch.target.tolist() == [4, 5, 7, 10, 11, 12]
    assert batch.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert list(batch.lengths) == [4, 1, 4, 0]
    assert batch.tokens == 32


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
        means = [answer_losses(base, collate([g], PAD, CPU)).mean() for g in groups]
        torch.testing.assert_close(
            mean_per_user(losses, batch), torch.stack(means), rtol=1e-4, atol=1e-4
        )
