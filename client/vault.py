"""The vault: a device's private state, one folder a person. Nothing in it is ever sent.

    lock.json                    how the vault's key is kept; the vaults of a simulation have none
    person.jsonl                 the history, and the person's own queries
    server.pub                   the key whose releases the device takes
    embedding/<key>.safetensors  the embedding of the history, by what computed it
    releases/r1/                 the current release, and the one before
    installed.json               which of them is current
    private/r1/<method>.*        user LoRA or stack, fusion weights, learning curve, settings
    journal                      every answer that was sent, byte for byte, in order; no refusals
    journal.end, repeats/7.json  how far it goes; how often the answer in record 7 was given
    statistics/r1.json           the router statistics of a release, before any noise
    sessions/r1.json             the secrets of a secure sum, while it lasts
    errors                       what went wrong
    sockets.json                 where the agent has listened

Every file but the lock and the last is sealed with the vault's key. Files are written to a
temporary name and renamed, so a crash leaves the former state; the journal grows by whole records.
What a failing disk takes all the same counts as missing where it can be made again: by installing
the same release, or the next one. Whether a part is sound, :mod:`client.soundness` tells.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.lock import PERSON
from client.seal import OPEN, DamagedError, Seal
from client.sent import Sent
from client.vault_parts import (
    EMBEDDING,
    INSTALLED,
    PRIVATE,
    RELEASES,
    SERVER_KEY,
    SESSIONS,
    STATISTICS,
    remedy,
    restore,
)
from shared.atomic_file import write_bytes
from shared.corpus.user import User
from shared.corpus.user_file import dump_users, parse_users
from shared.errors import MesofedError
from shared.program import command
from shared.release_files import MANIFEST, PARTS, verify_files
from shared.signature import read_key_text

# Whether there is a vault can be told before the seconds that the deep-learning stack takes.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Vault:
    """One person's private folder.

    Attributes
    ----------
    folder : Path
    seal : Seal
        What its files are sealed with.
    pool : Path or None
        In a simulation: keeps the files of releases once, for all vaults to link to.
    """

    folder: Path
    seal: Seal = OPEN
    pool: Path | None = None

    @property
    def exists(self) -> bool:
        """Whether a person has moved in."""
        return (self.folder / PERSON).exists()

    @cached_property
    def sent(self) -> Sent:
        """Everything that was sent."""
        return Sent(self.folder, self.seal)

    def move_in(self, user: User) -> None:
        """Store a person's history and queries."""
        # First, for the person makes it a vault, and no vault is without a record of what it sent.
        self.sent.begin()
        self._write(PERSON, dump_users([user]))

    def person(self) -> User:
        """Return the person.

        Raises
        ------
        MesofedError
            If nobody has moved in, or the file is damaged.
        """
        if not self.exists:
            hint = f"Create it with `{command('device', 'init')}`."
            if vaults := sorted((self.folder / "vaults").glob("*/")):
                hint = f"It is a run; name a vault in it, such as {vaults[0]}."
            raise MesofedError(
                f"Expected a vault with a person's history in {self.folder}; there is none. {hint}"
            )
        path = self.folder / PERSON
        people = parse_users(self.read(PERSON), path)
        if len(people) != 1:
            raise MesofedError(
                f"Expected one person in {path}; got {len(people)}. Restore the file, or remove "
                "the vault and create it again."
            )
        return people[0]

    def trust(self, key: str) -> None:
        """Pin the public key of the server whose releases the device takes.

        Raises
        ------
        MesofedError
            If the text is no public key.
        """
        read_key_text(key)
        self._write(SERVER_KEY, key.strip().encode() + b"\n")

    def trusted(self) -> str:
        """Return the pinned public key.

        Raises
        ------
        MesofedError
            If there is none, or the file is damaged.
        """
        if not (self.folder / SERVER_KEY).exists():
            raise MesofedError(
                f"Expected the key of a server that {self.folder} trusts; there is none. Ask the "
                f"server's operator for it, and run `{command('device', 'trust')}`."
            )
        return self.read(SERVER_KEY).decode("ascii", "replace").strip()

    def install(self, version: int, files: Mapping[str, bytes]) -> None:
        """Keep a verified release and make it the current one; the one before stays, no other.

        What was trained for older ones goes with them.
        """
        folder = f"{RELEASES}/r{version}"
        for name in sorted(files, key=lambda name: name == MANIFEST):
            self._keep(f"{folder}/{name}", files[name])
        before = self._installed_or_none()
        self._write(INSTALLED, json.dumps({"release": version}).encode())
        if version != before:
            for old in (self.folder / RELEASES).iterdir():
                if old.name not in (f"r{version}", f"r{before}"):
                    shutil.rmtree(old, ignore_errors=True)
            for old in (self.folder / PRIVATE).glob("r*"):
                if int(old.name[1:]) < min(version, before or version):
                    shutil.rmtree(old, ignore_errors=True)

    def installed(self) -> int | None:
        """Return the current release's version, or None before the first.

        Raises
        ------
        MesofedError
            If the file is damaged. It is not taken for missing: the device could be sent back to
            an older release.
        """
        path = self.folder / INSTALLED
        if not path.exists():
            return None
        try:
            return int(json.loads(self.read(INSTALLED).decode("utf-8"))["release"])
        except (ValueError, TypeError, KeyError, DamagedError) as error:
            raise DamagedError(
                f"Expected the current release's number in {path}; it is damaged or was changed. "
                f"{restore()}"
            ) from error

    def manifest(self) -> bytes | None:
        """Return the current release's manifest, or None if it or another file of it is missing.

        Raises
        ------
        MesofedError
            As :meth:`installed`.
        """
        folder = f"{RELEASES}/r{self.installed()}"
        names = (f"{folder}/{part}.safetensors" for part in PARTS)
        whole = all((self.folder / name).exists() for name in names)
        return self._find(f"{folder}/{MANIFEST}") if whole else None

    def release_files(self) -> dict[str, bytes]:
        """Return the files of the current release, as far as they are there and sound.

        Raises
        ------
        MesofedError
            If no release is installed.
        """
        version = self.installed()
        if version is None:
            raise MesofedError(f"Expected an installed release in {self.folder}; there is none.")
        folder = self.folder / RELEASES / f"r{version}"
        names = (
            sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
            if folder.is_dir()
            else ()
        )
        found = {name: self._find(f"{RELEASES}/r{version}/{name}") for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def whole_release(self) -> dict[str, bytes]:
        """Return the files of the current release, each as its manifest names it.

        Raises
        ------
        MesofedError
            If no release is installed, or a file of it is missing or damaged.
        """
        version = self.installed()
        if version is None:
            raise MesofedError(f"Expected an installed release in {self.folder}; there is none.")
        folder = f"{RELEASES}/r{version}"
        names = (MANIFEST, *(f"{part}.safetensors" for part in PARTS))
        files = {name: self.read(f"{folder}/{name}") for name in names}
        try:
            verify_files(files)
        except MesofedError as error:
            raise DamagedError(
                f"A file in {self.folder / folder} is not what was installed. {error} "
                f"{remedy(RELEASES)}"
            ) from error
        return files

    def save_private(
        self, version: int, method: str, tensors: Mapping[str, "Tensor"], log: Mapping[str, Any]
    ) -> None:
        """Keep what a method has trained; the log goes last and marks it as finished.

        It takes the place of what the method had trained for the release under other settings.
        """
        from safetensors.torch import save

        name, data = f"{PRIVATE}/r{version}/{method}", save(dict(tensors))
        self._write(f"{name}.safetensors", data)
        # After a kill before this, the log of other tensors must not be taken for that of these.
        self._write(f"{name}.json", _dumped({**log, "sha256": hashlib.sha256(data).hexdigest()}))

    def load_private(
        self, version: int, method: str
    ) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Return what a method has trained and its log, or None if there is nothing to use."""
        try:
            return self.read_private(version, method)
        except DamagedError:
            return None

    def read_private(
        self, version: int, method: str
    ) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Return what a method has trained and its log, or None if it has not finished.

        Raises
        ------
        DamagedError
            If it has, and a file of it is missing or damaged.
        """
        name = f"{PRIVATE}/r{version}/{method}"
        if not (self.folder / f"{name}.json").exists():
            return None
        data = self.read(f"{name}.json")
        try:
            log = json.loads(data.decode("utf-8"))
        except ValueError:
            log = None
        if not isinstance(log, dict):
            raise DamagedError(
                f"Expected the log of a training in {name}.json of the vault; it is damaged or was "
                f"changed. {remedy(PRIVATE)}"
            )
        data = self.read(f"{name}.safetensors")
        found = read_tensors(data)
        if found is None or log.pop("sha256", "") != hashlib.sha256(data).hexdigest():
            raise DamagedError(
                f"Expected {name}.safetensors of the vault to be what {name}.json names; its hash "
                "differs: it was damaged or changed, or its writing was stopped. "
                f"{remedy(PRIVATE)}"
            )
        return found, log

    def save_embedding(self, key: str, embedding: "Tensor") -> None:
        """Keep the embedding of the history, and no other; the key tells what computed it."""
        from safetensors.torch import save

        name = f"{key}.safetensors"
        self._write(f"{EMBEDDING}/{name}", save({"embedding": embedding}))
        for old in (self.folder / EMBEDDING).iterdir():
            if old.name != name:
                old.unlink(missing_ok=True)

    def load_embedding(self, key: str) -> "Tensor | None":
        """Return the embedding of the history, or None if it is not the one of this key."""
        data = self._find(f"{EMBEDDING}/{key}.safetensors")
        found = read_tensors(data) if data is not None else None
        return found.get("embedding") if found is not None else None

    def save_statistics(self, version: int, statistics: Mapping[str, Any]) -> None:
        """Keep the router statistics of a release."""
        self._write(f"{STATISTICS}/r{version}.json", _dumped(statistics))

    def statistics(self, version: int) -> dict[str, Any] | None:
        """Return the router statistics of a release, or None."""
        return self._object(f"{STATISTICS}/r{version}.json")

    def save_session(self, version: int, session: bytes) -> None:
        """Keep the state of the secure sum of a release."""
        self._write(f"{SESSIONS}/r{version}.json", session)

    def session(self, version: int) -> bytes | None:
        """Return the state of the secure sum of a release, or None."""
        return self._find(f"{SESSIONS}/r{version}.json")

    def end_sessions(self, but: int | None = None) -> None:
        """Delete the secrets of secure sums, but for that of one release."""
        kept = self.folder / SESSIONS / f"r{but}.json"
        for path in (self.folder / SESSIONS).glob("*"):
            if path != kept:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or not empty
            kept.parent.rmdir()

    # Every file goes through these.

    def read(self, name: str, what_to_do: str = "") -> bytes:
        """Return what a file of the vault holds.

        Parameters
        ----------
        what_to_do : str
            If it is damaged, where that is not what is done about its kind.

        Raises
        ------
        DamagedError
            If it is missing, damaged or was changed.
        MesofedError
            If it cannot be read.
        """
        path = self.folder / name
        what_to_do = what_to_do or remedy(name)
        try:
            return self.seal.open(name, path.read_bytes())
        except FileNotFoundError as error:
            raise DamagedError(
                f"Expected {name} in the vault; it is missing. {what_to_do}"
            ) from error
        except OSError as error:
            raise MesofedError(f"Cannot read {path}: {error.strerror}.") from error
        except DamagedError as error:
            raise DamagedError(f"{error} {what_to_do}") from error

    def _write(self, name: str, data: bytes) -> None:
        write_bytes(self.folder / name, self.seal.close(name, data), mode=0o600)

    def _find(self, name: str) -> bytes | None:
        """Return a file's content, or None if it is missing or damaged."""
        if not (self.folder / name).exists():
            return None
        try:
            return self.read(name)
        except DamagedError:
            return None

    def _object(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object that was kept, or None if the file is missing or damaged."""
        data = self._find(name)
        try:
            found = json.loads(data.decode("utf-8")) if data is not None else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _installed_or_none(self) -> int | None:
        try:
            return self.installed()
        except MesofedError:
            return None

    def _keep(self, name: str, data: bytes) -> None:
        """Write a file of a release; where vaults share a pool, link to the one that is there."""
        if self.pool is None or self.seal.key is not None:
            self._write(name, data)
            return
        kept, path = self.pool / hashlib.sha256(data).hexdigest(), self.folder / name
        # A file that is installed again may be damaged, and the pool has the very same.
        if not kept.exists() or (path.exists() and kept.read_bytes() != data):
            write_bytes(kept, data)
        link = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(kept, link)
            link.replace(path)
        except OSError:  # another file system, or one without links
            self._write(name, data)
        finally:  # a link that takes the name of its own file stays behind
            with contextlib.suppress(OSError):
                link.unlink()


def _dumped(value: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(value), ensure_ascii=False, allow_nan=False, indent=2).encode()


def read_tensors(data: bytes) -> "dict[str, Tensor] | None":
    """Return the tensors that a file holds, or None if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    # The library lets errors about unknown formats and impossible shapes through as they come.
    except (SafetensorError, KeyError, TypeError, RuntimeError):
        return None
