"""Users as bytes, exactly as they are in memory: one JSON object a line, as in a device's vault."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError


def dump_users(users: Iterable[User]) -> bytes:
    """Return users as the content of a file."""
    return "".join(json.dumps(asdict(user)) + "\n" for user in users).encode()


def parse_users(data: bytes, path: Path) -> tuple[User, ...]:
    """Return the users of what ``dump_users`` returned.

    Parameters
    ----------
    path : Path
        Where it comes from, for messages.

    Raises
    ------
    MesofedError
        If a line is not a user.
    """
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MesofedError(f"Expected a file of users at {path}; {error}.") from error
    users = []
    for number, line in enumerate(lines, start=1):
        try:
            users.append(_user(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MesofedError(
                f"Expected a user as Mesofed writes it at {path}:{number}; got {line[:60]!r} "
                f"({error!r}). Restore the file, or remove it and provide the history again."
            ) from error
    return tuple(users)


def _user(record: dict[str, Any]) -> User:
    history = tuple(ProfileItem(**item) for item in record["history"])
    queries = tuple(Query(**query) for query in record["queries"])
    return User(**{**record, "history": history, "queries": queries})
