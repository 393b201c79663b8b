"""The one typed form of a person: private history (oldest first) and queries with gold answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProfileItem:
    """One thing a person did: a text and what the person made of it.

    Attributes
    ----------
    item_id : str
        Unique within the user.
    task : str
        Name of the task in ``shared.tasks.TASKS`` that the item belongs to.
    text : str
        What the person saw. Empty only for tasks that learn from the target alone.
    target : str
        What the person wrote, chose or scored.
    """

    item_id: str
    task: str
    text: str
    target: str


@dataclass(frozen=True)
class Query:
    """A question put to the personalised model, with the person's own answer as gold."""

    query_id: str
    task: str
    text: str
    gold: str


@dataclass(frozen=True)
class User:
    """One person.

    Attributes
    ----------
    user_id : str
        Unique within a corpus.
    history : tuple of ProfileItem
        Private history, oldest first; never empty.
    queries : tuple of Query
        Asked after every history item.
    group : int or None
        Latent group, known for the synthetic corpus alone. It is ground truth for tests and
        reports; no training code may read it.
    """

    user_id: str
    history: tuple[ProfileItem, ...]
    queries: tuple[Query, ...]
    group: int | None = None
