"""Who is the server's and who is asked, slice by slice.

    all        server users, the same for every seed, and device users, others for every seed
               as far as there are others
    sparse-N   the same people; device users keep their N newest history items
    shifted    the same people divided along what tells them apart most, so that the device users
               are unlike the server corpus

Choosing settings (``people = "validation"``) uses server users alone, some of whom stand for
devices, others for every seed. So whoever helped to choose is asked under no seed, with as many
server users in both; but for ``shifted``, which divides all people anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.config import CorpusConfig
from shared.corpus.load import Corpus, load_corpus
from shared.corpus.split import Split, split_in_turn
from shared.corpus.user import User
from shared.embedding import embed_user
from shared.tasks import TASKS
from simulations.comparison.config import ComparisonConfig, Setting, history_items

_corpus = lru_cache(maxsize=1)(load_corpus)


def corpus_of(config: ComparisonConfig, seed: int) -> Corpus:
    """Return the corpus; only the synthetic one depends on the seed."""
    return _corpus(config.corpus, seed if config.corpus.source == "synthetic" else 0)


def divide(config: ComparisonConfig, slice_name: str, seed: int, base: BaseModel) -> Split:
    """Return the server's users and those who are asked in a slice."""
    people = split_in_turn(corpus_of(config, seed), config.corpus, seed)
    if config.corpus.source == "synthetic":  # every seed makes people of its own
        people = Split(_renamed(people.server, seed), _renamed(people.device, seed))
    if config.people == "validation":
        people = _within_server(people.server, config.corpus, seed)
    if slice_name == "shifted":
        people = _shifted(people, base)
    items = history_items(slice_name)
    if items is None:
        return people
    return Split(
        people.server, tuple(replace(user, history=user.history[-items:]) for user in people.device)
    )


def held_by_server(people: Split, setting: Setting) -> tuple[User, ...]:
    """Return whose data the server trains on; device users' queries are never among it."""
    if setting == "federated":
        return people.server
    return (*people.server, *(replace(user, queries=()) for user in people.device))


def _renamed(users: Sequence[User], seed: int) -> tuple[User, ...]:
    return tuple(replace(user, user_id=f"{seed}-{user.user_id}") for user in users)


def _within_server(users: Sequence[User], config: CorpusConfig, seed: int) -> Split:
    """Divide server users as the corpus is divided, others standing for devices in every seed."""
    share = config.server_users / (config.server_users + config.device_users)
    kept = min(max(2, round(share * len(users))), len(users) - 1)
    first = seed * (len(users) - kept) % len(users)
    turned = (*users[first:], *users[:first])
    return Split(tuple(turned[len(users) - kept :]), tuple(turned[: len(users) - kept]))


def _shifted(people: Split, base: BaseModel) -> Split:
    """Divide the same people anew: those at one end of the first principal axis are asked."""
    users = (*people.server, *people.device)
    order = torch.argsort(first_axis(describe(users, base)), stable=True).tolist()
    kept = [users[i] for i in order[: len(people.server)]]
    return Split(tuple(kept), tuple(users[i] for i in order[len(people.server) :]))


def describe(users: Sequence[User], base: BaseModel) -> Tensor:
    """Return what tells users apart, (users, features): their mix of labels, else of content."""
    labels = sorted(
        (name, label)
        for name in {item.task for user in users for item in user.history}
        for label in TASKS[name].history_labels or ()
    )
    if not labels:
        with base.lock:
            return torch.stack([embed_user(base, user.history) for user in users])
    place = {label: index for index, label in enumerate(labels)}
    mix = torch.zeros(len(users), len(labels))
    for row, user in zip(mix, users, strict=True):
        for item in user.history:
            if (item.task, item.target) in place:
                row[place[item.task, item.target]] += 1 / len(user.history)
    return mix


def first_axis(features: Tensor) -> Tensor:
    """Return where rows stand on their first principal axis, (rows,), in a fixed direction."""
    centred = (features - features.mean(0)).double()
    axis = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    along: Tensor = centred @ axis
    # The sign of an axis is arbitrary: the longer tail shall be at the upper end.
    return along if along.max() >= -along.min() else -along
