"""What a vault holds, whether it is sound and what has left it, in words its owner can check."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from client.ledger import ledger
from client.lock import PERSON, forget_key
from client.sent import JOURNAL
from client.soundness import CHECKS, LEDGER, Damage, part_of
from client.vault import Vault
from client.vault_parts import INSTALLED
from shared.byte_size import byte_size
from shared.config import PrivacyConfig
from shared.errors import MesofedError
from shared.flower_internals import content_from_bytes
from shared.privacy import spent

_BYTES_A_LINE = 40


def stored(vault: Vault) -> list[tuple[str, int, int]]:
    """Return what lies in a vault, by part, as damages name it: (part, files, bytes).

    What is of no part has the name that it has in the vault.
    """
    sizes: dict[str, list[int]] = {}
    for path in files_of(vault.folder):
        name = path.relative_to(vault.folder).parts[0]
        sizes.setdefault(part_of(name) or name, []).append(path.stat().st_size)
    return [(part, len(found), sum(found)) for part, found in sorted(sizes.items())]


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


def report(
    vault: Vault, found: Sequence[Damage], budget: PrivacyConfig, raw: bool = False
) -> Iterator[str]:
    """Yield the lines that tell a vault's owner what is in it, is damaged, was spent and was sent.

    Parameters
    ----------
    found : sequence of Damage
        What is damaged, by :func:`client.soundness.damages`.
    raw : bool
        Whether to add the very bytes of each answer.
    """
    damaged = {damage.part for damage in found}
    sealed = (
        "encrypted"
        if vault.seal.key
        else (
            "not encrypted, of a simulation: a changed bit shows where it breaks a hash or a form"
        )
    )
    yield f"{vault.folder}: {sealed}"
    release = "damaged" if INSTALLED in damaged else vault.installed() or "none"
    if PERSON in damaged:
        yield f"  person and history damaged; release {release}"
    else:
        person = vault.person()
        yield f"  person {person.user_id}: {len(person.history)} history items; release {release}"
    for part, files, size in stored(vault):
        state = "unknown" if part not in CHECKS else "damaged" if part in damaged else "sound"
        noun = "file " if files == 1 else "files"
        yield f"  {part:<20} {files:>5} {noun} {byte_size(size):>10}  {state}"
    yield f"  {LEDGER:<20} {'in the journal':>22}  {'damaged' if LEDGER in damaged else 'sound'}"
    for damage in found:
        yield f"Damaged: {damage.text}"
    if LEDGER not in damaged:
        costs = ledger(vault)
        if costs or budget.mode != "off":
            yield (
                f"Privacy: epsilon {spent(costs, budget.delta):.3f} of {budget.epsilon:g} is "
                f"spent, at delta {budget.delta:g}, by {len(costs)} answers with noise"
            )
    if JOURNAL not in damaged:
        yield from _told(list(sent(vault)), raw)


def _told(entries: Sequence[Mapping[str, Any]], raw: bool) -> Iterator[str]:
    total = sum(e["times"] for e in entries)
    size = sum(len(e["bytes"]) * e["times"] for e in entries)
    again = total - len(entries)
    yield f"Sent: {total:,} answers, {again:,} of them repeats, {size:,} bytes in all"
    yield "  every answer is here; refusals are numbers with fixed texts, and are not"
    for entry in entries:
        what = "  (empty: installed)" if not entry["records"] else ""
        yield f"  {entry['time']} {entry['request']} release {entry['release']}{what}"
        if entry["times"] > 1:
            often = "twice" if entry["times"] == 2 else f"{entry['times']:,} times"
            yield f"      sent {often}, the same bytes, last at {entry['last']}"
        for record in entry["records"].values():
            for name, value in record.items():
                yield f"      {name} {value}"
        if raw:
            for start in range(0, len(entry["bytes"]), _BYTES_A_LINE):
                yield f"      {entry['bytes'][start : start + _BYTES_A_LINE].hex()}"


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
