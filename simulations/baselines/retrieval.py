"""Retrieval: the person's own history items nearest to the question stand before it (BM25).

    article: <text of item 2>        item 2: BM25's second best
    category: travel

    article: <text of item 1>        item 1: its best, nearest to the question
    category: politics

    article: <the question>
    category:

LaMP (arXiv 2304.11406) and OPPU's arms with k > 0. Items are the person's own and older than the
question, which a corpus guarantees; for training on history items only earlier items are taken.
The question is cut as for every other method, each item to ``retrieval.item_tokens``.

``rag-k`` asks the population LoRA, which has not seen such prompts; ``rag-k-tuned`` asks a LoRA of
the same size and rates that was trained on the server's users with the same retrieval.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import bm25s
import numpy as np
import torch

from client.evaluation import evaluate_stacks
from client.personalize import Personalised, parts_of
from server.population import train_population
from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem, Query, User
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.methods import METHODS
from shared.progress import stage
from shared.samples import CUE_TOKENS, Sample, answer_room, encode, encode_prompt
from shared.seeding import derive_seed
from shared.tasks import TASKS
from simulations.comparison.contender import (
    PEOPLE_AT_ONCE,
    Answered,
    Contender,
    Outcome,
    personalised,
)
from simulations.comparison.scene import Scene
from simulations.comparison.timing import added_milliseconds
from simulations.comparison.traffic import Traffic, lora_bytes

# It logs every index that it builds, at a level that it sets itself.
logging.getLogger("bm25s").setLevel(logging.WARNING)


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


def cut(base: BaseModel, text: str, tokens: int) -> str:
    """Return the beginning of a text, cut to so many tokens; a shorter text as it is."""
    ids = base.tokenizer.encode(text, add_special_tokens=False)
    return text if len(ids) <= tokens else str(base.tokenizer.decode(ids[:tokens]))


def example(base: BaseModel, item: ProfileItem, tokens: int) -> str:
    """Return a history item as it stands in a prompt: what was asked and what was answered."""
    task = TASKS[item.task]
    target = cut(base, item.target, tokens // 2 if task.history_has_text else tokens - CUE_TOKENS)
    bare = f"{task.history_prompt(replace(item, text=''))} {target}"
    room = tokens - len(base.tokenizer.encode(bare, add_special_tokens=False))
    shown = replace(item, text=cut(base, item.text, max(room, 1)))
    return f"{task.history_prompt(shown)} {target}\n\n"


def with_examples(
    base: BaseModel, prompt: str, room: int, found: Sequence[ProfileItem], item_tokens: int
) -> str:
    """Return a prompt, cut as for every method, after the items found for it, nearest last."""
    ids = base.tokenizer.encode(prompt, add_special_tokens=False)
    kept = encode_prompt(base, prompt, room)
    asked = prompt if len(kept) == len(ids) else str(base.tokenizer.decode(list(kept)))
    return "".join(example(base, item, item_tokens) for item in reversed(found)) + asked


def roomier(base: BaseModel, count: int, item_tokens: int) -> BaseModel:
    """Return the base model with room for so many more items in a prompt."""
    # Words that are cut and joined anew may take a token more than they did.
    return replace(base, max_tokens=base.max_tokens + count * (item_tokens + 8) + 8)


def query_prompt(base: BaseModel, user: User, query: Query, count: int, item_tokens: int) -> str:
    """Return a person's query after the nearest items of the same task in the own history."""
    task = TASKS[query.task]
    own = [item for item in user.history if item.task == query.task]
    found = nearest_items(query.text, own, count)
    room = answer_room(base, task, task.labels)
    return with_examples(base, task.query_prompt(query), room, found, item_tokens)


def training_samples(
    base: BaseModel, user: User, count: int, item_tokens: int
) -> tuple[Sample, ...]:
    """Return a server user's history and queries with what retrieval finds for each.

    For a history item only earlier items can be found, as they could when it was new.
    """
    wide = roomier(base, count, item_tokens)
    samples = []
    for place, item in enumerate(user.history):
        task = TASKS[item.task]
        room = answer_room(base, task, task.history_labels)
        earlier = [other for other in user.history[:place] if other.task == item.task]
        found = nearest_items(item.text, earlier, count)
        prompt = with_examples(base, task.history_prompt(item), room, found, item_tokens)
        samples.append(encode(wide, prompt, item.target, room))
    for query in user.queries:
        task = TASKS[query.task]
        room = answer_room(base, task, task.labels)
        prompt = query_prompt(base, user, query, count, item_tokens)
        samples.append(encode(wide, prompt, query.gold, room))
    return tuple(samples)


def _tuned(scene: Scene, count: int) -> Lora:
    """Return the population LoRA trained with retrieval in its prompts."""
    items = scene.config.retrieval.item_tokens

    def make() -> dict[str, torch.Tensor]:
        with scene.base.lock:
            pooled = [
                sample
                for user in scene.server
                for sample in training_samples(scene.base, user, count, items)
            ]
            total = sum(map(len, pooled)) * scene.config.population.epochs
            with stage(f"LoRA with {count} retrieved", total, "tokens"):
                # The seed of the release's population LoRA: retrieval is all that differs.
                seed = derive_seed(scene.seed, "release", 1)
                wide = roomier(scene.base, count, items)
                trained = train_population(wide, pooled, scene.config.population, seed)
        return {"rows": trained.slab.rows}

    rows = scene.finished(f"retrieval-{count}", make)["rows"]
    return Slab.from_rows(scene.base.maps, rows).lora(0)


def _answer(scene: Scene, stacks: Sequence[Personalised], count: int) -> Answered:
    base, items = scene.base, scene.config.retrieval.item_tokens
    wide = roomier(base, count, items)

    def prompt(user: User, query: Query) -> str:
        return query_prompt(base, user, query, count, items)

    outcomes: list[Outcome] = []
    for start in range(0, len(stacks), PEOPLE_AT_ONCE):
        at_once = slice(start, start + PEOPLE_AT_ONCE)
        outcomes += evaluate_stacks(wide, scene.people[at_once], stacks[at_once], prompt)
    asked = [(user, query) for user in scene.people for query in user.queries]
    longer = [
        len(encode_prompt(wide, prompt(user, query)))
        - len(encode_prompt(base, TASKS[query.task].query_prompt(query)))
        for user, query in asked
    ]
    added = added_milliseconds(base, parts_of(base, stacks[:1]))
    return Answered(outcomes, added, sum(longer) / len(longer))


def _rag(count: int, tuned: bool) -> Contender:
    def answer(scene: Scene) -> Answered:
        if tuned:
            stacks = [Personalised((_tuned(scene, count),), torch.ones(1))] * len(scene.people)
        else:
            stacks = personalised(scene, METHODS["population"], scene.release)
        return _answer(scene, stacks, count)

    items = f"{count} own item{'s' if count > 1 else ''} in the prompt (BM25)"
    return Contender(
        f"rag-{count}-tuned" if tuned else f"rag-{count}",
        f"LoRA trained with {items}" if tuned else f"population, {items}",
        answer,
        traffic=lambda scene: Traffic(lora_bytes(scene.release.population), 0),
    )


RETRIEVALS = tuple(_rag(count, tuned) for tuned in (False, True) for count in (1, 4))
