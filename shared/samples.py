"""From text to tokens: a sample is a prompt and the answer that follows it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem
from shared.tasks import TASKS, Task

# Tokens kept at the end of a prompt that is cut: the longest cue, such as "\ncategory:".
CUE_TOKENS = 8
# Batches are a multiple of so many tokens wide: kernels are prepared anew for every shape, and
# users train together whose batches have the same.
COLUMNS = 8
# A matrix of fewer rows goes to another kernel, which sums in another order: a user of one short
# text would get other bits alone than in company.
LEAST_COLUMNS = 16


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt and of its answer, which ends with end-of-sequence."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def answer_room(base: BaseModel, task: Task, labels: Sequence[str] | None) -> int:
    """Return the tokens that are kept for an answer, so that every prompt is cut alike.

    The longest label's and its end, or the task's own measure of free text; half of
    ``base.max_tokens`` at most.
    """
    room = task.answer_tokens
    if labels is not None:
        room = 1 + max(len(answer_tokens(base, label)) for label in labels)
    return min(room, base.max_tokens // 2)


def task_room(base: BaseModel, task: Task) -> int:
    """Return the tokens that are kept for the answer to a query of a task."""
    return answer_room(base, task, task.labels)


def answer_tokens(base: BaseModel, answer: str) -> list[int]:
    """Tokenise an answer as it follows a prompt, without its end."""
    tokens: list[int] = base.tokenizer.encode(f" {answer}", add_special_tokens=False)
    return tokens


def encode(base: BaseModel, prompt: str, answer: str, room: int | None = None) -> Sample:
    """Tokenise a prompt and its answer, cut to ``base.max_tokens`` in all.

    A long answer loses its end; a long prompt loses text from before its cue, because the cue
    tells the model what to do. The cut does not depend on the answer: a question is the same
    question when it is asked and when its answer is known.

    Parameters
    ----------
    room : int, optional
        Tokens kept for the answer; half of ``base.max_tokens`` by default.
    """
    half = base.max_tokens // 2
    room = half if room is None else min(room, half)
    answer_ids = [*answer_tokens(base, answer)[: room - 1], base.tokenizer.eos_token_id]
    return Sample(encode_prompt(base, prompt, room), tuple(answer_ids))


def encode_prompt(base: BaseModel, prompt: str, room: int | None = None) -> tuple[int, ...]:
    """Tokenise a prompt, leaving ``room`` tokens to the answer: half of all by default, or less."""
    half = base.max_tokens // 2
    length = base.max_tokens - (half if room is None else min(room, half))
    ids = base.tokenizer.encode(prompt, add_special_tokens=False)
    if len(ids) > length:
        cue = min(CUE_TOKENS, length)
        ids = [*ids[: length - cue], *ids[-cue:]]
    return tuple(ids)


def history_samples(base: BaseModel, history: Iterable[ProfileItem]) -> list[Sample]:
    """Return one sample per history item: predict what the person made of the text."""
    samples = []
    for item in history:
        task = TASKS[item.task]
        room = answer_room(base, task, task.history_labels)
        samples.append(encode(base, task.history_prompt(item), item.target, room))
    return samples


@dataclass(frozen=True)
class Batch:
    """Samples of several users, padded on the right, rows grouped by user.

    Causal attention never looks to the right, so padding needs no mask.

    Attributes
    ----------
    users : int
        Number of users.
    ids : Tensor, (users * rows, tokens)
        Token ids.
    lengths : list of int
        Tokens of each row without padding.
    row, position : Tensor, (answers,)
        Where the hidden state stands that predicts each answer token.
    target : Tensor, (answers,)
        The answer tokens.
    """

    users: int
    ids: Tensor
    lengths: list[int]
    row: Tensor
    position: Tensor
    target: Tensor

    @property
    def tokens(self) -> int:
        """Tokens the model has to process, padding included."""
        return self.ids.numel()


def shape_of(groups: Sequence[Sequence[Sample]]) -> tuple[int, int]:
    """Return the rows that each user gets in a batch, and the tokens of each row."""
    # The last answer token is only ever predicted, so it needs no column.
    longest = max(len(sample) for group in groups for sample in group) - 1
    columns = max(-(-longest // COLUMNS) * COLUMNS, LEAST_COLUMNS)
    return max(len(group) for group in groups), columns


def collate(groups: Sequence[Sequence[Sample]], pad_token: int, device: torch.device) -> Batch:
    """Lay the samples of several users in one batch; users with fewer rows get empty ones."""
    rows, length = shape_of(groups)
    ids = torch.full((len(groups) * rows, length), pad_token, dtype=torch.long)
    lengths = [0] * len(ids)
    row: list[int] = []
    position: list[int] = []
    target: list[int] = []
    for user, group in enumerate(groups):
        for index, sample in enumerate(group):
            line = user * rows + index
            lengths[line] = len(sample) - 1
            ids[line, : len(sample) - 1] = torch.tensor((sample.prompt + sample.answer)[:-1])
            row += [line] * len(sample.answer)
            position += range(len(sample.prompt) - 1, len(sample) - 1)
            target += sample.answer
    index_tensors = (torch.tensor(x, device=device) for x in (row, position, target))
    return Batch(len(groups), ids.to(device), lengths, *index_tensors)
