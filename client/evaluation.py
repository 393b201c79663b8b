"""Evaluation: people's own queries, answered by their own stacks and scored against gold.

A device evaluates one person. A simulation evaluates several in one batch, which gives the same
answers in a fraction of the time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from client.answers import choose_labels, generate, gold_losses
from client.label_prior import label_prior
from client.personalize import Personalised
from client.stacking import stacked
from shared.base_model import BaseModel
from shared.corpus.user import Query, User
from shared.metrics import score_user
from shared.retrieval import query_prompt, roomier
from shared.samples import encode, task_room
from shared.tasks import TASKS

Answer = dict[str, Any]


def evaluate_stacks(
    base: BaseModel, people: Sequence[User], stacks: Sequence[Personalised]
) -> list[dict[str, Any]]:
    """Answer every person's queries by the person's stack of one method, and score the answers.

    Returns
    -------
    list of dict
        By person: private size, cost, curve, answers, and scores by task.
    """
    (examples,) = {stack.examples for stack in stacks}  # a method asks everybody alike
    answers: list[list[Answer]] = [[] for _ in people]
    scores: list[dict[str, dict[str, float]]] = [{} for _ in people]
    tasks = sorted({query.task for person in people for query in person.queries})
    with base.lock:
        for task in tasks:
            asked = [u for u, p in enumerate(people) if any(q.task == task for q in p.queries)]
            queries = [[q for q in people[u].queries if q.task == task] for u in asked]
            put = [
                [query_prompt(base, people[u], q, examples) for q in own]
                for u, own in zip(asked, queries, strict=True)
            ]
            priors = [
                label_prior(people[u].history, task) if stacks[u].label_prior else None
                for u in asked
            ]
            wide, room = roomier(base, examples.of(TASKS[task])), task_room(base, TASKS[task])
            found = _answer(wide, room, [stacks[u] for u in asked], task, queries, put, priors)
            for user, own in zip(asked, found, strict=True):
                answers[user] += own
                scores[user][task] = score_user(
                    TASKS[task].kind,
                    [answer["prediction"] for answer in own],
                    [answer["gold"] for answer in own],
                )
    numbers = [
        stack.private_parameters + (sum(map(_counts, scored)) if stack.label_prior else 0)
        for stack, scored in zip(stacks, scores, strict=True)
    ]
    return [
        {
            "private_parameters": private,
            "private_bytes": 4 * private,
            "seconds": stack.seconds,
            "tokens": stack.tokens,
            "curve": list(stack.curve),
            "queries": own,
            "scores": scored,
        }
        for private, stack, own, scored in zip(numbers, stacks, answers, scores, strict=True)
    ]


def _counts(task: str) -> int:
    """Return how many numbers a label prior of a task has."""
    return len(TASKS[task].history_labels or ())


def _answer(
    base: BaseModel,
    room: int,
    stacks: Sequence[Personalised],
    task_name: str,
    queries: Sequence[Sequence[Query]],
    prompts: Sequence[Sequence[str]],
    priors: Sequence[Mapping[str, float] | None],
) -> list[list[Answer]]:
    task = TASKS[task_name]
    samples = [
        [encode(base, prompt, query.gold, room) for prompt, query in zip(put, own, strict=True)]
        for put, own in zip(prompts, queries, strict=True)
    ]
    # Every query is read twice: to answer it, and for the loss of its gold answer.
    read = 2 * sum(len(sample) for own in samples for sample in own)
    written = room if task.labels is None else 0
    with stacked(base, stacks, read, written) as parts:
        if task.labels is not None:
            ordered = task.kind == "rating"
            predictions = choose_labels(base, parts, prompts, task.labels, priors, ordered)
        else:
            predictions = generate(base, parts, prompts, written, room)
        losses = gold_losses(base, parts, samples)
    return [
        [
            {
                "query_id": query.query_id,
                "task": task_name,
                "prediction": prediction,
                "gold": query.gold,
                "nll": loss,
            }
            for query, prediction, loss in zip(own, predicted, lost, strict=True)
        ]
        for own, predicted, lost in zip(queries, predictions, losses, strict=True)
    ]
