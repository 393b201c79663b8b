"""Without a model: a person does what the person did most, or scores as on average.

    user-majority   classification: the person's most frequent label; of equals, the latest
    user-mean       rating: the person's mean score
    user-median     rating: the person's median score

Who has no history of the task is answered as the server's users would be.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from shared.corpus.user import User
from shared.tasks import TASKS, Kind
from simulations.comparison.contender import Answered, Contender, Outcome
from simulations.comparison.scene import Scene


def majority(targets: Sequence[str]) -> str:
    """Return the most frequent of targets, oldest first; of equally frequent, the latest."""
    counts = Counter(targets)
    most = max(counts.values())
    return next(target for target in reversed(targets) if counts[target] == most)


def mean_score(targets: Sequence[str]) -> str:
    """Return the mean of scores."""
    return f"{statistics.fmean(map(float, targets)):.4f}"


def median_score(targets: Sequence[str]) -> str:
    """Return the median of scores."""
    return f"{statistics.median(map(float, targets)):.4f}"


def targets_of(task: str, users: Sequence[User]) -> list[str]:
    """Return what users answered to a task in their histories, if the history asks the same."""
    if TASKS[task].history_labels is None:
        return []
    return [item.target for user in users for item in user.history if item.task == task]


def _outcome(scene: Scene, user: User, kind: Kind, rule: Callable[[Sequence[str]], str]) -> Outcome:
    answers: list[dict[str, Any]] = []
    for query in user.queries:
        known = targets_of(query.task, [user]) or targets_of(query.task, scene.server)
        if TASKS[query.task].kind == kind and known:
            answers.append(
                {
                    "query_id": query.query_id,
                    "task": query.task,
                    "prediction": rule(known),
                    "gold": query.gold,
                    "nll": None,
                }
            )
    return {"private_bytes": 0, "seconds": 0.0, "tokens": 0, "curve": [], "queries": answers}


def _contender(
    name: str, summary: str, kind: Kind, rule: Callable[[Sequence[str]], str]
) -> Contender:
    def answer(scene: Scene) -> Answered:
        return Answered([_outcome(scene, user, kind, rule) for user in scene.people])

    return Contender(name, summary, answer, kinds=(kind,))


MAJORITIES = (
    _contender("user-majority", "the person's own most frequent label", "classification", majority),
    _contender("user-mean", "the person's own mean score", "rating", mean_score),
    _contender("user-median", "the person's own median score", "rating", median_score),
)
