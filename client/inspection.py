"""What a vault holds and what has left the device, in words that its owner can check."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from client.lock import PERSON, forget_key
from client.vault import Vault
from shared.errors import MesofedError
from shared.flower_internals import content_from_bytes


def stored(vault: Vault) -> list[tuple[str, int, int]]:
    """Return what lies in a vault, by kind: (kind, files, bytes)."""
    sizes: dict[str, list[int]] = {}
    for path in files_of(vault.folder):
        kind = path.relative_to(vault.folder).parts[0]
        sizes.setdefault(kind, []).append(path.stat().st_size)
    return [(kind, len(found), sum(found)) for kind, found in sorted(sizes.items())]


def sent(vault: Vault) -> Iterator[dict[str, Any]]:
    """Yield every answer that was sent, oldest first: how often, its bytes and what they mean.

    Raises
    ------
    MesofedError
        If the journal is damaged.
    """
    for entry in vault.sent.entries():
        data = base64.b64decode(entry["content"])
        yield {
            "time": entry["time"],
            "times": entry["times"],
            "last": entry["last"],
            "request": entry["request"],
            "release": entry["release"],
            "bytes": data,
            "records": _plain(content_from_bytes(data)),
        }


def files_of(folder: Path) -> list[Path]:
    """Return every file below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def erase(folder: Path) -> tuple[int, int]:
    """Destroy a vault's key and then its files; return how many files and bytes are gone.

    Files of a sealed vault are unreadable from the moment their key is gone, whatever a disk or a
    backup still holds of them; that is what the erasure rests on.

    Raises
    ------
    MesofedError
        If anything is left.
    """
    # What tells that this is a vault goes last, so that a kill leaves one that can be erased.
    found = sorted(files_of(folder), key=lambda path: path == folder / PERSON)
    total = sum(path.stat(follow_symlinks=False).st_size for path in found)
    forget_key(folder)
    for path in found:
        path.unlink(missing_ok=True)
    for below in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        below.rmdir()
    folder.rmdir()
    if folder.exists():
        raise MesofedError(f"Expected nothing to be left of {folder}; something is. Remove it.")
    return len(found), total


def _plain(content: RecordDict) -> dict[str, dict[str, Any]]:
    return {name: dict(record) for name, record in content.items()}
