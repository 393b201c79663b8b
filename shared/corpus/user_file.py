"""Users on disk exactly as they are in memory: one JSON object a line, as in a device's vault."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.atomic_file import write_text
from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError


def write_users(path: Path, users: Iterable[User]) -> None:
    """Write users as a whole file, atomically.

    Raises
    ------
    MesofedError
        If the file cannot be written.
    """
    write_text(path, "".join(json.dumps(asdict(user)) + "\n" for user in users))


def read_users(path: Path) -> tuple[User, ...]:
    """Read what ``write_users`` wrote.

    Raises
    ------
    MesofedError
        If the file cannot be read, or a line is not a user.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
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
