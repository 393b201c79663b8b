"""Retrieval: a person's own history items nearest to a question stand before it (BM25).

    article: <text of item 2>        item 2: BM25's second best
    headline: Why I never fly

    article: <text of item 1>        item 1: its best, nearest to the question
    headline: What trains are for

    article: <the question>
    headline:

LaMP (arXiv 2304.11406) and OPPU's arms with k > 0. Items are the person's own and older than the
question, which a corpus guarantees; for training on history items only earlier items are taken.
They never leave the device: they stand in prompts that the device's own model reads. The question
is cut as without them, each item to ``Examples.tokens``.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query, User
from shared.samples import CUE_TOKENS, Sample, answer_room, encode, encode_prompt, task_room
from shared.tasks import ALL_TASKS, TASKS, Task


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """Make a package as if it were not installed for the length of a block."""
    kept = {package: sys.modules[package]} if package in sys.modules else {}
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(kept)


# It tries JAX, where there is one, when it is imported: the first operation of JAX takes three
# quarters of a GPU's memory and keeps it.
with _absent("jax"):
    import bm25s

# It logs every index that it builds, at a level that it sets itself.
logging.getLogger("bm25s").setLevel(logging.WARNING)

CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Examples:
    """How many own items stand before which questions.

    Attributes
    ----------
    count : int
        Items at most; fewer where the history has fewer.
    tokens : int
        To which each is cut.
    tasks : tuple of str
        Tasks whose questions have them.
    """

    count: int = 0
    tokens: int = 64
    tasks: tuple[str, ...] = ALL_TASKS

    def of(self, task: Task) -> "Examples":
        """Return the examples before a question of a task."""
        return self if task.name in self.tasks else NO_EXAMPLES

    def note(self) -> str:
        """Return what whoever uses a LoRA elsewhere has to know of its prompts; often nothing."""
        if not self.count:
            return ""
        items = "one own item" if self.count == 1 else f"up to {self.count} own items"
        return (
            f" It was trained with {items}, cut to {self.tokens} tokens, before questions of "
            f"{', '.join(self.tasks)}: put them there too (shared/retrieval.py)."
        )


NO_EXAMPLES = Examples()


def nearest_items(
    question: str, items: Sequence[ProfileItem], count: int
) -> tuple[ProfileItem, ...]:
    """Return the ``count`` items nearest to a question by BM25, nearest first.

    The formula is Robertson's with k1 = 1.5, b = 0.75 and Lucene's idf (bm25s's default). Items of
    equal score are taken newest first; so are all, where no item shares a word with the question.

    Parameters
    ----------
    items : sequence of ProfileItem
        Of one person, oldest first.
    """
    if not items or not count:
        return ()
    words = bm25s.tokenize(
        [f"{item.text} {item.target}" for item in items],
        stopwords=None,
        return_ids=False,
        show_progress=False,
    )
    asked = bm25s.tokenize([question], stopwords=None, return_ids=False, show_progress=False)[0]
    known = {word for text in words for word in text}
    asked = [word for word in asked if word in known]
    if asked:
        index = bm25s.BM25()
        index.index(words, show_progress=False)
        scores = np.asarray(index.get_scores(asked))  # (items,)
    else:
        scores = np.zeros(len(items))
    best = sorted(range(len(items)), key=lambda i: (-scores[i], -i))
    return tuple(items[i] for i in best[:count])


def roomier(base: BaseModel, examples: Examples) -> BaseModel:
    """Return the base model with room for the examples in a prompt."""
    if not examples.count:
        return base
    # Words that are cut and joined anew may take a token more than they did.
    more = examples.count * (examples.tokens + 8) + 8
    return replace(base, max_tokens=base.max_tokens + more)


def before(
    base: BaseModel,
    prompt: str,
    room: int,
    question: str,
    items: Sequence[ProfileItem],
    examples: Examples,
) -> str:
    """Return a prompt after the items nearest to its question, the nearest last.

    Parameters
    ----------
    room : int
        Tokens kept for the answer when the prompt is cut, as ``encode_prompt`` has it.
    question : str
        What the items are compared with.
    items : sequence of ProfileItem
        Of the person who is asked, oldest first.

    Returns
    -------
    str
        The prompt itself if there are to be no examples; else for ``roomier(base, examples)``.
    """
    if not examples.count:
        return prompt
    found = nearest_items(question, items, examples.count)
    ids = base.tokenizer.encode(prompt, add_special_tokens=False)
    kept = encode_prompt(base, prompt, room)
    asked = prompt if len(kept) == len(ids) else _text(base, kept, prompt)
    shown = "".join(_example(base, item, examples.tokens) for item in reversed(found))
    return shown + asked


def query_prompt(base: BaseModel, user: User, query: Query, examples: Examples) -> str:
    """Return a person's query after the nearest items of the same task in the own history."""
    task = TASKS[query.task]
    own = [item for item in user.history if item.task == query.task]
    room = task_room(base, task)
    return before(base, task.query_prompt(query), room, query.text, own, examples.of(task))


def history_with_examples(
    base: BaseModel, history: Sequence[ProfileItem], examples: Examples
) -> list[Sample]:
    """Return one sample per history item, oldest first: predict what the person made of the text.

    Before an item only earlier ones can stand, as they could when it was new.
    """
    samples = []
    for place, item in enumerate(history):
        task = TASKS[item.task]
        earlier = [other for other in history[:place] if other.task == item.task]
        room, own = answer_room(base, task, task.history_labels), examples.of(task)
        prompt = before(base, task.history_prompt(item), room, item.text, earlier, own)
        samples.append(encode(roomier(base, own), prompt, item.target, room))
    return samples


def given_samples(base: BaseModel, user: User, examples: Examples) -> tuple[Sample, ...]:
    """Return what a user who gave both has to learn from: history, then queries."""
    return (
        *history_with_examples(base, user.history, examples),
        *queries_with_examples(base, user, examples),
    )


def queries_with_examples(base: BaseModel, user: User, examples: Examples) -> list[Sample]:
    """Return one sample per query: predict the gold answer."""
    samples = []
    for query in user.queries:
        task = TASKS[query.task]
        prompt = query_prompt(base, user, query, examples)
        room = task_room(base, task)
        samples.append(encode(roomier(base, examples.of(task)), prompt, query.gold, room))
    return samples


def _cut(base: BaseModel, text: str, tokens: int) -> str:
    """Return the beginning of a text, cut to so many tokens; a shorter text as it is."""
    ids = base.tokenizer.encode(text, add_special_tokens=False)
    return text if len(ids) <= tokens else _text(base, ids[:tokens], text)


def _text(base: BaseModel, ids: Sequence[int], whole: str) -> str:
    """Return a part of a text; a character that was cut in two is left out."""
    part = str(base.tokenizer.decode(list(ids)))
    return part if CUT_CHARACTER in whole else part.replace(CUT_CHARACTER, "")


def _example(base: BaseModel, item: ProfileItem, tokens: int) -> str:
    """Return a history item as it stands in a prompt: what was asked and what was answered."""
    task = TASKS[item.task]
    most = tokens // 2 if task.history_has_text else tokens - CUE_TOKENS
    target = _cut(base, item.target, most)
    bare = f"{task.history_prompt(replace(item, text=''))} {target}"
    room = tokens - len(base.tokenizer.encode(bare, add_special_tokens=False))
    shown = replace(item, text=_cut(base, item.text, max(room, 1)))
    return f"{task.history_prompt(shown)} {target}\n\n"


def task_of(prompt: str, tasks: Sequence[str]) -> tuple[Task, str] | None:
    """Return the task among ``tasks`` whose queries are put like a prompt, and its question."""
    for name in tasks:
        head, tail = TASKS[name].query_template.split("{text}")
        asked = prompt.strip()
        if asked.startswith(head) and asked.endswith(tail) and len(asked) >= len(head + tail):
            return TASKS[name], asked[len(head) : len(asked) - len(tail)]
    return None
