"""Server corpus and device users: two sets of people that never meet."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.config import CorpusConfig
from shared.corpus.load import Corpus
from shared.corpus.user import User
from shared.errors import MesofedError

MIN_SERVER_USERS = 2
MIN_USERS = MIN_SERVER_USERS + 1
TELLING_ITEMS = 3
"""So many first items in common, each with its target, and two histories are of one person."""

_Contents = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Split:
    """People who gave their data to the server, and people whose data stays on their device."""

    server: tuple[User, ...]
    device: tuple[User, ...]


def _rank(seed: int, user_id: str) -> bytes:
    """Return a key that shuffles users, the same in every process and for every corpus order."""
    return hashlib.sha256(f"{seed}:{user_id}".encode("utf-8", "surrogatepass")).digest()


def _sizes(users: int, config: CorpusConfig) -> tuple[int, int]:
    """Return how many users go to server and devices; with too few the ratio is kept."""
    wanted = config.server_users + config.device_users
    if users >= wanted:
        return config.server_users, config.device_users
    server = round(users * config.server_users / wanted)
    server = min(max(server, MIN_SERVER_USERS), users - 1)
    return server, users - server


def _newest(user: User, config: CorpusConfig) -> User:
    return replace(
        user,
        history=user.history[-config.max_history :],
        queries=user.queries[-config.max_queries :],
    )


def _contents(user: User) -> _Contents:
    return tuple((item.task, item.text, item.target) for item in user.history)


def _same_history(server: Sequence[User], device: Sequence[User]) -> tuple[str, str] | None:
    """Return two users of the two sides with one history, None if there are none.

    Histories are one if they hold the same items, or if one is how the other began. Single items,
    such as a film and its tag, are many people's.
    """
    whole = {tuple(sorted(_contents(user))): user.user_id for user in server}
    starting: dict[_Contents, list[User]] = {}
    for user in server:
        starting.setdefault(_contents(user)[:TELLING_ITEMS], []).append(user)
    for user in device:
        own = _contents(user)
        if (other := whole.get(tuple(sorted(own)))) is not None:
            return other, user.user_id
        if len(own) < TELLING_ITEMS:
            continue
        for candidate in starting.get(own[:TELLING_ITEMS], []):
            theirs = _contents(candidate)
            shorter = min(len(own), len(theirs))
            if own[:shorter] == theirs[:shorter]:
                return candidate.user_id, user.user_id
    return None


def split_users(corpus: Corpus, config: CorpusConfig, seed: int) -> Split:
    """Divide a corpus between server and devices, and cut every user to the newest data.

    Users are taken in an order that depends on the seed and their ids alone. Synthetic users are
    independent draws, dealt to the groups in turn; they are taken as they come, so that every
    group has people on both sides.

    Raises
    ------
    MesofedError
        If there are too few users, or a person would be on both sides: by id or by history.
    """
    return _divided(corpus, config, _in_order(corpus, config, seed))


def split_in_turn(corpus: Corpus, config: CorpusConfig, turn: int) -> Split:
    """Divide a corpus as :func:`split_users`, with the same server users in every turn.

    Those who are not the server's are the device users of one turn after the other, so that nobody
    is a server user in one turn and asked in another, and as many people are asked as there are.

    Raises
    ------
    MesofedError
        As :func:`split_users`.
    """
    users = _in_order(corpus, config, 0)
    server_size, device_size = _sizes(len(users), config)
    server, others = users[:server_size], users[server_size:]
    first = turn * device_size % max(1, len(others))
    return _divided(corpus, config, (*server, *others[first:], *others[:first]))


def _divided(corpus: Corpus, config: CorpusConfig, users: Sequence[User]) -> Split:
    """Give the first users to the server and the next to the devices, after checks."""
    if len(users) < MIN_USERS:
        raise MesofedError(
            f"Expected at least {MIN_USERS} users to divide between server and devices; "
            f"got {len(users)} from {corpus.origin}. Choose a larger corpus."
        )
    server_size, device_size = _sizes(len(users), config)
    server, device = users[:server_size], users[server_size : server_size + device_size]
    both = {user.user_id for user in server} & {user.user_id for user in device}
    if both:
        raise MesofedError(
            f"Expected no person on both the server's and the devices' side; got {sorted(both)} "
            f"on both, from {corpus.origin}. Give every person one id and one record."
        )
    if same := _same_history(server, device):
        raise MesofedError(
            f"Expected no person's history on both the server's and the devices' side; got that of "
            f"server user {same[0]!r} for device user {same[1]!r} too, from {corpus.origin}. If "
            "these are one person, put all of it under one user_id; if not, leave one of them out."
        )
    return Split(
        tuple(_newest(user, config) for user in server),
        tuple(_newest(user, config) for user in device),
    )


def server_users(corpus: Corpus, config: CorpusConfig, seed: int) -> tuple[User, ...]:
    """Return the people of a corpus that is the server's alone, as in a deployment.

    At most ``corpus.server_users``, in the order of :func:`split_users`, cut to the newest data.
    """
    chosen = _in_order(corpus, config, seed)[: config.server_users]
    return tuple(_newest(user, config) for user in chosen)


def _in_order(corpus: Corpus, config: CorpusConfig, seed: int) -> tuple[User, ...]:
    if config.source == "synthetic":
        return corpus.users
    return tuple(sorted(corpus.users, key=lambda user: _rank(seed, user.user_id)))
