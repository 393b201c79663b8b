"""The vault: a device's private state, one folder a person. Nothing in it is ever sent.

    person.jsonl                 the history, and the person's own queries
    embedding/<base>.safetensors  the embedding of the history, by base model
    releases/r1/                 the releases that were installed
    installed.json               which of them is current
    private/r1/<method>.*        user LoRA or stack, fusion weights, learning curve
    statistics/r1.json           what was sent, for the person to read

Every file is written to a temporary name and renamed, so a crash leaves the former state. What a
failing disk takes all the same counts as missing where it can be made again: by installing the
same release, or the next one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.atomic_file import write_bytes, write_json
from shared.corpus.user import User
from shared.corpus.user_file import read_users, write_users
from shared.errors import MesofedError
from shared.program import command
from shared.release_files import read_release_files, write_release_files

# Whether there is a vault can be told before the seconds that the deep-learning stack takes.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Vault:
    """One person's private folder."""

    folder: Path

    @property
    def exists(self) -> bool:
        """Whether a person has moved in."""
        return (self.folder / "person.jsonl").exists()

    def move_in(self, user: User) -> None:
        """Store a person's history and queries."""
        write_users(self.folder / "person.jsonl", [user])

    def person(self) -> User:
        """Return the person.

        Raises
        ------
        MesofedError
            If nobody has moved in, or the file is damaged.
        """
        if not self.exists:
            raise MesofedError(
                f"Expected a vault with a person's history in {self.folder}; it is empty. "
                f"Create it with `{command('device', 'init')}`."
            )
        path = self.folder / "person.jsonl"
        people = read_users(path)
        if len(people) != 1:
            raise MesofedError(
                f"Expected one person in {path}; got {len(people)}. Restore the file, or remove "
                "the vault and create it again."
            )
        return people[0]

    def install(self, version: int, files: Mapping[str, bytes]) -> None:
        """Keep a verified release and make it the current one."""
        write_release_files(self.folder / "releases" / f"r{version}", files)
        write_json(self.folder / "installed.json", {"release": version})

    def installed(self) -> int | None:
        """Return the current release's version, or None before the first.

        Raises
        ------
        MesofedError
            If the file is damaged. It is not taken for missing: the device could be sent back to
            an older release.
        """
        path = self.folder / "installed.json"
        if not path.exists():
            return None
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["release"])
        except (ValueError, TypeError, KeyError) as error:
            raise MesofedError(
                f"Expected the current release's number in {path}; it is damaged ({error!r}). "
                'Write {"release": N} into it, N being the highest r<N> in releases.'
            ) from error

    def release_files(self) -> dict[str, bytes]:
        """Return the files of the current release, as far as they are there.

        Raises
        ------
        MesofedError
            If no release is installed.
        """
        version = self.installed()
        if version is None:
            raise MesofedError(f"Expected an installed release in {self.folder}; there is none.")
        folder = self.folder / "releases" / f"r{version}"
        return read_release_files(folder) if folder.is_dir() else {}

    def save_private(
        self, version: int, method: str, tensors: Mapping[str, "Tensor"], log: Mapping[str, Any]
    ) -> None:
        """Keep what a method has trained; the log goes last and marks it as finished."""
        from safetensors.torch import save

        folder = self.folder / "private" / f"r{version}"
        write_bytes(folder / f"{method}.safetensors", save(dict(tensors)))
        write_json(folder / f"{method}.json", dict(log))

    def load_private(
        self, version: int, method: str
    ) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Return what a method has trained and its log, or None if it has not finished."""
        folder = self.folder / "private" / f"r{version}"
        log = _json(folder / f"{method}.json")
        tensors = _tensors(folder / f"{method}.safetensors")
        return (tensors, log) if log is not None and tensors is not None else None

    def save_embedding(self, fingerprint: str, embedding: "Tensor") -> None:
        """Keep the embedding of the history by a base model."""
        from safetensors.torch import save

        path = self.folder / "embedding" / f"{fingerprint}.safetensors"
        write_bytes(path, save({"embedding": embedding}))

    def load_embedding(self, fingerprint: str) -> "Tensor | None":
        """Return the embedding of the history by a base model, or None."""
        found = _tensors(self.folder / "embedding" / f"{fingerprint}.safetensors")
        return found["embedding"] if found is not None else None

    def save_statistics(self, version: int, statistics: Mapping[str, Any]) -> None:
        """Keep a copy of what is sent."""
        write_json(self.folder / "statistics" / f"r{version}.json", dict(statistics))

    def statistics(self, version: int) -> dict[str, Any] | None:
        """Return what was sent for a release, or None."""
        return _json(self.folder / "statistics" / f"r{version}.json")


def _json(path: Path) -> dict[str, Any] | None:
    """Return an object that was kept, or None if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _tensors(path: Path) -> "dict[str, Tensor] | None":
    """Return tensors that were kept, or None if the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
