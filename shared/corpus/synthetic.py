"""The built-in corpus: made-up people in latent groups, each with quirks of their own.

Three layers, one for each level of personalisation::

    everyone     half of the kinds of post have one tag, an outing's quality moves its score,
                 a headline names what happened
    group        a community's own tag for each other kind, its taste in outings, its headline style
    person       a tag of their own for a favourite subject, a harsh or kind hand with scores,
                 a signature word that ends every headline

Half of the posts are about the community's own world and tell who is speaking; the other half are
about everyday life, with the same conventions. So the text of a question alone often cannot tell
the right answer, while the person's history can.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from shared.corpus.synthetic_worlds import (
    COMMON_TAGS,
    COMMUNITIES,
    EVENTS,
    EVERYDAY,
    KINDS,
    OPPOSITES,
    QUALITIES,
    REVIEWS,
    SIGNATURES,
    TALES,
    TRAITS,
    Community,
    World,
)
from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError
from shared.tasks import POST_TAGS

SYNTHETIC_TASKS = ("tagging", "rating", "headline")

SPARSE_SHARE = 0.4
SPARSE_ITEMS = (3, 10)
ITEMS = (12, 24)
QUERIES_PER_TASK = 2
FAVOURITE_SHARE = 0.6
TEXT_WORDS = range(10, 19)


@dataclass(frozen=True)
class Person:
    """What makes one person different from their community.

    Attributes
    ----------
    community : Community
        Whose conventions they follow otherwise.
    favourite, own_tag : str
        An everyday subject, and the tag they give to every post about it.
    bias : int
        Added to every score: -1 harsh, +1 kind.
    signature : str
        Last word of every headline.
    """

    community: Community
    favourite: str
    own_tag: str
    bias: int
    signature: str


@dataclass(frozen=True)
class _Post:
    """A text with its answer."""

    task: str
    text: str
    answer: str


def community_tag(community: Community, kind: str) -> str:
    """Return a community's tag for a kind of post.

    Everyone agrees on the kinds in ``COMMON_TAGS``; on the others, two communities never do.
    """
    if kind in COMMON_TAGS:
        return COMMON_TAGS[kind]
    return POST_TAGS[(list(KINDS).index(kind) + community.tag_shift) % len(POST_TAGS)]


def _person(community: Community, rng: random.Random) -> Person:
    return Person(
        community,
        favourite=rng.choice(EVERYDAY.subjects),
        own_tag=rng.choice(POST_TAGS),
        bias=rng.choice((-1, +1)),
        signature=rng.choice(SIGNATURES),
    )


def _tagging(person: Person, world: World, rng: random.Random) -> _Post:
    kind = rng.choice(list(KINDS))
    subject = rng.choice(world.subjects)
    if world is EVERYDAY and rng.random() < FAVOURITE_SHARE:
        subject = person.favourite
    text = rng.choice(KINDS[kind]).format(
        subject=subject, place=rng.choice(world.places), detail=rng.choice(world.details)
    )
    own = subject == person.favourite
    return _Post("tagging", text, person.own_tag if own else community_tag(person.community, kind))


def _rating(person: Person, world: World, rng: random.Random) -> _Post:
    quality = rng.choice(tuple(QUALITIES))
    # Two of the three pairs of opposites show, so a community's taste is sometimes not touched.
    traits = [rng.choice(pair) for pair in rng.sample(OPPOSITES, 2)]
    first, second = (rng.choice(TRAITS[trait]) for trait in traits)
    text = rng.choice(REVIEWS).format(
        outing=rng.choice(world.outings),
        quality=rng.choice(QUALITIES[quality]),
        first=first,
        second=second,
    )
    loves, hates = person.community.taste
    score = 3 + quality + (loves in traits) - (hates in traits) + person.bias
    return _Post("rating", text, str(min(max(score, 1), 5)))


def _headline(person: Person, world: World, rng: random.Random) -> _Post:
    subject, event = rng.choice(world.subjects), rng.choice(EVENTS)
    text = rng.choice(TALES).format(
        subject=subject,
        event=event,
        place=rng.choice(world.places),
        detail=rng.choice(world.details),
    )
    core = f"{subject.removeprefix('the ').capitalize()} {event}, {person.signature}"
    return _Post("headline", text, person.community.headline.format(core=core))


_WRITERS: dict[str, Callable[[Person, World, random.Random], _Post]] = {
    "tagging": _tagging,
    "rating": _rating,
    "headline": _headline,
}


def _write(task: str, own_world: bool, person: Person, told: set[str], rng: random.Random) -> _Post:
    """Write a post of the right length that this person has not written before."""
    while True:
        world = person.community.world if own_world else EVERYDAY
        post = _WRITERS[task](person, world, rng)
        if post.text not in told and len(post.text.split()) in TEXT_WORDS:
            told.add(post.text)
            return post


def synthetic_user(index: int, groups: int, seed: int, tasks: tuple[str, ...]) -> User:
    """Make one person; they are the same whoever else there is.

    Parameters
    ----------
    index : int
        Decides, with the seed, everything about the person. The group is ``index % groups``.
    groups : int
        Number of communities.
    seed : int
        Of the corpus.
    tasks : tuple of str
        Some of ``SYNTHETIC_TASKS``; every task has the same share of items.
    """
    group = index % groups
    # A string seeds through SHA-512: the same in every process, unlike hash().
    rng = random.Random(f"mesofed synthetic user {seed}:{index}")
    person = _person(COMMUNITIES[group], rng)
    length = rng.randint(*(SPARSE_ITEMS if rng.random() < SPARSE_SHARE else ITEMS))
    told: set[str] = set()
    order: list[str] = []
    while len(order) < length:
        order += rng.sample(tasks, len(tasks))
    history = [
        _write(task, number % 2 == 0, person, told, rng)
        for number, task in enumerate(order[:length])
    ]
    questions = [
        _write(task, number % 2 == 0, person, told, rng)
        for task in tasks
        for number in range(QUERIES_PER_TASK)
    ]
    rng.shuffle(questions)
    return User(
        f"s{index:04d}",
        tuple(
            ProfileItem(f"h{number:02d}", post.task, post.text, post.answer)
            for number, post in enumerate(history)
        ),
        tuple(
            Query(f"q{number}", post.task, post.text, post.answer)
            for number, post in enumerate(questions)
        ),
        group,
    )


def synthetic_users(
    n_users: int, groups: int, seed: int, tasks: tuple[str, ...] = SYNTHETIC_TASKS
) -> tuple[User, ...]:
    """Make a population; neighbours belong to different groups.

    Parameters
    ----------
    n_users : int
        How many people.
    groups : int
        Latent groups, 2 to 6.
    seed : int
        The same seed gives the same people in every process.
    tasks : tuple of str
        Some of ``SYNTHETIC_TASKS``.

    Raises
    ------
    MesofedError
        If there are not as many communities as ``groups``.
    """
    if not 2 <= groups <= len(COMMUNITIES):
        raise MesofedError(f"Expected 2 to {len(COMMUNITIES)} groups; got {groups}.")
    return tuple(synthetic_user(index, groups, seed, tasks) for index in range(n_users))
