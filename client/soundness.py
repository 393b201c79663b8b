"""Whether a vault is sound: every part that is stored is read, and what is damaged is named.

    part                      what is checked
    person, server key        it opens, and is one
    installed.json            it opens, and is no older than the journal tells
    releases                  signature, manifest, every hash; tensors are readable and finite
    embedding, private        they open; tensors are readable, finite and those of their log
    statistics, sessions      they open, and are what they are kept for
    journal, ledger           every record, how many there are, how often each answer was given;
                              what the answers have cost

What the device makes again by itself does not stop it. Without its person, its server's key, the
number of its release or the record of what it has sent, a device must not answer.
"""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from client.agent_errors import ERRORS, error_journal
from client.ledger import ledger
from client.lock import LOCK, PERSON, read_lock
from client.seal import DamagedError, NewerError
from client.sent import END, JOURNAL, REPEATS
from client.traces import SOCKETS, remembered_sockets
from client.vault import Vault, read_tensors
from client.vault_parts import (
    EMBEDDING,
    INSTALLED,
    PRIVATE,
    RELEASES,
    SERVER_KEY,
    SESSIONS,
    STATISTICS,
    remedy,
)
from shared.errors import MesofedError
from shared.flower_internals import content_from_bytes
from shared.program import command
from shared.protocol import INSTALL_RELEASE, RouterStatistics
from shared.release_files import MANIFEST, PARTS, SIGNATURE
from shared.secure_aggregation.device_session import DeviceSession
from shared.signature import read_key_text, read_signature, verify_signature

if TYPE_CHECKING:
    from torch import Tensor

LEDGER = "ledger"
"""A part without a file of its own: it lies in the journal."""
_OUTDATED = "Nothing to do: the device has a newer release, and this goes with the next."


@dataclass(frozen=True)
class Damage:
    """Something in a vault that is not as it was written.

    Attributes
    ----------
    part : str
        Of the vault, as :data:`CHECKS` names it.
    text : str
        Which file, what was expected, what came, what to do.
    """

    part: str
    text: str

    @property
    def stops(self) -> bool:
        """Whether the device must not answer until this is mended."""
        return self.part in (PERSON, SERVER_KEY, INSTALLED, JOURNAL, LEDGER)


def damages(vault: Vault) -> tuple[Damage, ...]:
    """Read all that a vault holds; return what is damaged, in the order of the parts.

    An agent may be at work in the vault: what it has not finished yet, or takes away meanwhile, is
    no damage.

    Raises
    ------
    NewerError
        If a newer Mesofed has written anything in it.
    """
    return tuple(
        Damage(part, str(error)) for part, check in CHECKS.items() for error in check(vault)
    )


def part_of(kind: str) -> str | None:
    """Return the part that a file or folder of a vault belongs to, or None if to none."""
    part = JOURNAL if kind in (END, REPEATS) else kind
    return part if part in CHECKS else None


def _failing(*reads: Callable[[], object]) -> Iterator[MesofedError]:
    for read in reads:
        try:
            read()
        except NewerError:  # no damage
            raise
        except MesofedError as error:
            yield error


def _lock(vault: Vault) -> Iterator[MesofedError]:
    if (vault.folder / LOCK).exists():  # the vaults of a simulation have none
        yield from _failing(lambda: read_lock(vault.folder))


def _person(vault: Vault) -> Iterator[MesofedError]:
    yield from _failing(vault.person)


def _server_key(vault: Vault) -> Iterator[MesofedError]:
    if (vault.folder / SERVER_KEY).exists():
        yield from _failing(lambda: _check_key(vault))


def _installed(vault: Vault) -> Iterator[MesofedError]:
    # In this order, for a release is installed first and told of then.
    try:
        told = [e["release"] for e in vault.sent.entries() if e["request"] == INSTALL_RELEASE]
    except MesofedError:  # damage of the journal
        told = []
    try:
        version = vault.installed() or 0
    except MesofedError as error:
        yield error
        return
    if told and version < max(told):
        yield DamagedError(
            f"Expected {INSTALLED} of the vault to name release {max(told)}, which the journal "
            f"tells of, or a later one; got {version or 'no such file'}. Restore it from a newer "
            "copy of the vault: a device that has forgotten its release can be sent back to an "
            "older one."
        )


def _releases(vault: Vault) -> Iterator[MesofedError]:
    try:
        current = vault.installed()
    except MesofedError:  # told where that is checked
        current = None
    if current is None:
        return
    for folder in sorted((vault.folder / RELEASES).glob("r*"), key=_number):
        if _number(folder) < current:
            yield from _each(_files(folder), partial(_opens, vault, folder.name))
    yield from _current_release(vault, f"{RELEASES}/r{current}")


def _opens(vault: Vault, release: str, path: Path) -> None:
    vault.read(f"{RELEASES}/{release}/{path.name}", _OUTDATED)


def _current_release(vault: Vault, folder: str) -> Iterator[MesofedError]:
    names = (*(f"{part}.safetensors" for part in PARTS), MANIFEST, SIGNATURE)
    damaged = list(_failing(*(partial(vault.read, f"{folder}/{name}") for name in names)))
    if damaged:
        yield from damaged
        return

    def signed() -> None:
        files = {name: vault.read(f"{folder}/{name}") for name in (MANIFEST, SIGNATURE)}
        # By the key that signed it, for the device may trust another one since.
        with _named(f"{folder}/{SIGNATURE}"):
            verify_signature(files, read_signature(files).key)

    def finite(name: str) -> None:
        _check_tensors(f"{folder}/{name}", vault.read(f"{folder}/{name}"))

    yield from _failing(vault.whole_release, signed)
    yield from _failing(*(partial(finite, name) for name in names[: len(PARTS)]))


def _embedding(vault: Vault) -> Iterator[MesofedError]:
    def check(path: Path) -> None:
        name = f"{EMBEDDING}/{path.name}"
        _check_tensors(name, vault.read(name), EMBEDDING)

    yield from _each(_files(vault.folder / EMBEDDING), check)


def _private(vault: Vault) -> Iterator[MesofedError]:
    def check(path: Path) -> None:
        found = vault.read_private(_number(path.parent), path.stem)
        if found is not None:
            _check_finite(f"{PRIVATE}/{path.parent.name}/{path.stem}.safetensors", found[0])

    # The log marks what is finished; without it, it is trained again.
    yield from _each(sorted(vault.folder.glob(f"{PRIVATE}/r*/*.json")), check)


def _statistics(vault: Vault) -> Iterator[MesofedError]:
    expected = {field.name for field in fields(RouterStatistics)}

    def check(path: Path) -> None:
        name = f"{STATISTICS}/{path.name}"
        try:
            found = json.loads(vault.read(name).decode("utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or set(found) != expected:
            raise DamagedError(
                f"Expected router statistics in {name} of the vault; got something else. "
                f"{remedy(name)}"
            )

    yield from _each(_files(vault.folder / STATISTICS), check)


def _sessions(vault: Vault) -> Iterator[MesofedError]:
    def check(path: Path) -> None:
        name = f"{SESSIONS}/{path.name}"
        data = vault.read(name)
        with _named(name):
            DeviceSession.from_bytes(data)

    yield from _each(_files(vault.folder / SESSIONS), check)


def _journal(vault: Vault) -> Iterator[MesofedError]:
    yield from _failing(lambda: list(map(_check_content, vault.sent.entries())))


def _ledger(vault: Vault) -> Iterator[MesofedError]:
    try:
        vault.sent.entries()
    except MesofedError:
        yield DamagedError("What the answers have cost lies in the journal, which is damaged.")
        return
    yield from _failing(lambda: ledger(vault))


def _errors(vault: Vault) -> Iterator[MesofedError]:
    yield from _failing(error_journal(vault).entries)


def _sockets(vault: Vault) -> Iterator[MesofedError]:
    if (vault.folder / SOCKETS).exists() and not remembered_sockets(vault.folder):
        yield DamagedError(
            f"Expected the places where the agent has listened in {SOCKETS} of the vault; it "
            f"cannot be read. `{command('device', 'start')}` begins it anew; what an agent has "
            f"left at a place of its own, `{command('device', 'forget')}` does not find any more."
        )


CHECKS: dict[str, Callable[[Vault], Iterator[MesofedError]]] = {
    LOCK: _lock,
    PERSON: _person,
    SERVER_KEY: _server_key,
    INSTALLED: _installed,
    RELEASES: _releases,
    EMBEDDING: _embedding,
    PRIVATE: _private,
    STATISTICS: _statistics,
    SESSIONS: _sessions,
    JOURNAL: _journal,
    LEDGER: _ledger,
    ERRORS: _errors,
    SOCKETS: _sockets,
}
"""The parts of a vault, by the file or folder that they lie in, and what finds their damages."""


def _each(paths: list[Path], check: Callable[[Path], None]) -> Iterator[MesofedError]:
    """Check files; one that an agent has taken away meanwhile is none any more."""
    for path in paths:
        yield from (error for error in _failing(partial(check, path)) if path.exists())


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder; a hidden one is a write that a stop cut short."""
    return sorted(p for p in folder.glob("*") if p.is_file() and not p.name.startswith("."))


def _number(folder: Path) -> int:
    return int(folder.name[1:]) if folder.name[1:].isdecimal() else 0


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of an error which file it is about, and what to do."""
    try:
        yield
    except MesofedError as error:
        raise DamagedError(f"{name} of the vault: {error} {remedy(name)}") from error


def _check_key(vault: Vault) -> None:
    text = vault.trusted()
    with _named(SERVER_KEY):
        read_key_text(text)


def _check_content(entry: dict[str, object]) -> None:
    try:
        content_from_bytes(base64.b64decode(str(entry["content"]), validate=True))
    except Exception as error:  # Flower's parser, on bytes that may be anything
        raise DamagedError(
            f"Expected the bytes of an answer in the journal, sent at {entry['time']}; they cannot "
            "be read."
        ) from error


def _check_tensors(name: str, data: bytes, wanted: str = "") -> None:
    found = read_tensors(data)
    if found is None or (wanted and wanted not in found):
        raise DamagedError(
            f"Expected tensors in {name} of the vault; it cannot be read as such. {remedy(name)}"
        )
    _check_finite(name, found)


def _check_finite(name: str, tensors: "dict[str, Tensor]") -> None:
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DamagedError(
                f"Expected finite numbers in {name} of the vault; {key} has others. {remedy(name)}"
            )
