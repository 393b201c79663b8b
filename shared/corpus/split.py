"""Server corpus and device users: two sets of people that never meet."""

import hashlib
from dataclasses import dataclass, replace

from shared.config import CorpusConfig
from shared.corpus.load import Corpus
from shared.corpus.user import User
from shared.errors import MesofedError

MIN_SERVER_USERS = 2


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


def split_users(corpus: Corpus, config: CorpusConfig, seed: int) -> Split:
    """Divide a corpus between server and devices, and cut every user to the newest data.

    Users are taken in an order that depends on the seed and their ids alone. Synthetic users are
    independent draws, dealt to the groups in turn; they are taken as they come, so that every
    group has people on both sides.

    Raises
    ------
    MesofedError
        If there are too few users, or a person would be on both sides.
    """
    if len(corpus.users) <= MIN_SERVER_USERS:
        raise MesofedError(
            f"Expected at least {MIN_SERVER_USERS + 1} users to divide between server and devices; "
            f"got {len(corpus.users)} from {corpus.origin}. Choose a larger corpus."
        )
    users = corpus.users
    if config.source != "synthetic":
        users = tuple(sorted(users, key=lambda user: _rank(seed, user.user_id)))
    server_size, device_size = _sizes(len(users), config)
    server = tuple(_newest(user, config) for user in users[:server_size])
    device = tuple(_newest(user, config) for user in users[server_size : server_size + device_size])
    both = {user.user_id for user in server} & {user.user_id for user in device}
    if both:
        raise MesofedError(
            f"Expected no person on both the server's and the devices' side; got {sorted(both)} "
            f"on both, from {corpus.origin}. Give every person one id and one record."
        )
    return Split(server, device)
