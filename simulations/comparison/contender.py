"""A contender: one method of the comparison, declared once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from client.evaluation import evaluate_stacks
from client.personalize import Personalised, begin_personalising, parts_of
from shared.methods import METHODS, Method
from shared.progress import under_way
from shared.release import Release
from shared.retrieval import Examples, query_prompt, roomier
from shared.samples import encode_prompt, task_room
from shared.tasks import ALL_TASKS, TASKS, Kind
from simulations.comparison.config import Setting
from simulations.comparison.scene import Scene
from simulations.comparison.timing import added_milliseconds
from simulations.comparison.traffic import Traffic, parts_traffic

# People evaluated in one batch: it bounds the memory of the vocabulary head. A GPU waits for each
# step of generation to be put together, however many people it is for.
PEOPLE_AT_ONCE, PEOPLE_AT_ONCE_ON_GPU = 8, 64

# How much of a person's work private training is, and answering the rest, for the progress display.
TRAINING = 0.5

Outcome = dict[str, Any]
BOTH: tuple[Setting, ...] = ("federated", "centralized")


@dataclass(frozen=True)
class Answered:
    """What a method did in one scene.

    Attributes
    ----------
    outcomes : list of dict
        By person: answers, private size, training cost, as ``evaluate_stacks`` gives them.
    added_ms : float or None
        Milliseconds that the method adds to a generated token; None where no model is asked.
    prompt_tokens : dict of float
        By task, tokens that it adds to a prompt, on average; none where it adds none.
    """

    outcomes: list[Outcome]
    added_ms: float | None = None
    prompt_tokens: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One method of the comparison.

    Attributes
    ----------
    name, summary : str
        Short name, and one line for tables.
    answer : callable
        Personalises in a scene and answers the people's queries.
    leaves, leaves_centralized : str
        What leaves the device in each of the settings.
    traffic : callable
        Bytes to and from a device in the federated setting.
    settings : tuple
        Where the method makes sense.
    kinds : tuple of str
        Kinds of task that it can answer.
    released : bool
        Whether it takes more of a release than the population LoRA.
    differs : callable
        Whether it is in a scene anything but another contender under another name.
    """

    name: str
    summary: str
    answer: Callable[[Scene], Answered]
    leaves: str = "nothing"
    leaves_centralized: str = "the history"
    traffic: Callable[[Scene], Traffic] = field(default=lambda scene: Traffic(0, 0))
    settings: tuple[Setting, ...] = BOTH
    kinds: tuple[Kind, ...] = ("classification", "rating", "generation")
    released: bool = False
    differs: Callable[[Scene], bool] = field(default=lambda scene: True)


def people_at_once(device: torch.device) -> int:
    """Return how many people a device evaluates in one batch."""
    return PEOPLE_AT_ONCE_ON_GPU if device.type == "cuda" else PEOPLE_AT_ONCE


def evaluated(scene: Scene, stacks: Sequence[Personalised]) -> Answered:
    """Answer everybody's queries by their stacks, and time the first person's."""
    outcomes: list[Outcome] = []
    count = people_at_once(scene.base.device)
    for start in range(0, len(stacks), count):
        at_once = slice(start, start + count)
        found = evaluate_stacks(scene.base, scene.people[at_once], stacks[at_once])
        outcomes += found
        under_way((1 - TRAINING) * len(found))
    added = added_milliseconds(scene.base, parts_of(scene.base, stacks[:1]))
    return Answered(outcomes, added, _more_tokens(scene, stacks[0].examples))


def _more_tokens(scene: Scene, examples: Examples) -> dict[str, float]:
    """Return how many tokens examples add to a query, on average, by task."""
    longer: dict[str, list[int]] = {}
    for user in scene.people if examples.count else ():
        for query in user.queries:
            task = TASKS[query.task]
            wide, room = roomier(scene.base, examples.of(task)), task_room(scene.base, task)
            put = encode_prompt(wide, query_prompt(scene.base, user, query, examples), room)
            plain = encode_prompt(scene.base, task.query_prompt(query), room)
            longer.setdefault(query.task, []).append(len(put) - len(plain))
    return {task: sum(tokens) / len(tokens) for task, tokens in sorted(longer.items())}


def personalised(scene: Scene, method: Method, release: Release) -> list[Personalised]:
    """Personalise everybody by a method of the devices, in one batch."""
    waiting = [
        begin_personalising(
            scene.base,
            release,
            method,
            routing,
            samples,
            scene.config.private,
            scene.private_seed(user),
            TRAINING,
        )
        for user, routing, samples in zip(
            scene.people, scene.routings_for(method), scene.histories, strict=True
        )
    ]
    return [wait() for wait in waiting]


def of_devices(
    name: str, retrieved: int = 0, called: str = "", tasks: tuple[str, ...] = ALL_TASKS
) -> Contender:
    """Return a method that ships to devices as a contender.

    Parameters
    ----------
    retrieved : int
        Own items before the questions: everything is then trained with them, in a release of its
        own.
    called : str
        Its name among contenders; that of the method by default.
    tasks : tuple of str
        Tasks whose questions have the items.
    """
    method = METHODS[name]

    def needed(scene: Scene) -> Release:
        return scene.release if method.routed else scene.foundation

    def answer(scene: Scene) -> Answered:
        own = scene.retrieving(retrieved, tasks)
        return evaluated(own, personalised(own, method, needed(own)))

    items = f", {retrieved} own item{'s' if retrieved > 1 else ''} in the prompt"
    if tasks != ALL_TASKS:
        items += f" before {', '.join(tasks)}"
    return Contender(
        called or name,
        method.summary + (items if retrieved else ""),
        answer,
        "router statistics" if method.routed else "nothing",
        "the history" if method.population else "nothing",
        lambda scene: parts_traffic(needed(scene.retrieving(retrieved, tasks)), method),
        released=method.routed,
        differs=lambda scene: not retrieved or scene.retrieving(retrieved, tasks) is not scene,
    )
