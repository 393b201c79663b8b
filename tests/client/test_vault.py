"""The vault gives back what was put in, and a crash leaves the former state."""

import os
from pathlib import Path

import pytest
import torch

import client.vault
from client.vault import Vault
from shared import atomic_file
from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError

ANN = User(
    "ann/ü",
    (
        ProfileItem("h0", "tagging", "a day\nwith two lines \u2028 and a strange one", "gear"),
        ProfileItem("h1", "rating", "😀", "4"),
    ),
    (Query("q0", "headline", "", "what happened"),),
)
FILES = {"manifest.json": b'{"a": 1}', "population.safetensors": bytes(range(256))}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "some" / "vault")


class CrashError(Exception):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Stop the process, as it were, just before a file gets its name."""
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise CrashError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)


def test_a_person_moves_in_and_is_read_back(vault: Vault) -> None:
    assert not vault.exists
    vault.move_in(ANN)
    assert vault.exists
    assert Vault(vault.folder).person() == ANN


def test_an_empty_vault_says_how_to_fill_it(vault: Vault) -> None:
    with pytest.raises(MesofedError, match="mesofed device init"):
        vault.person()
    assert vault.installed() is None
    with pytest.raises(MesofedError, match="Expected an installed release"):
        vault.release_files()
    assert vault.load_private(1, "oppu") is None
    assert vault.load_embedding("abc") is None
    assert vault.statistics(1) is None


def test_the_last_installed_release_is_the_current_one(vault: Vault) -> None:
    other = {**FILES, "manifest.json": b"{}"}
    vault.install(1, FILES)
    assert (vault.installed(), vault.release_files()) == (1, FILES)
    vault.install(2, other)
    assert (vault.installed(), vault.release_files()) == (2, other)
    vault.install(1, FILES)
    assert (vault.installed(), vault.release_files()) == (1, FILES)


@pytest.mark.parametrize("moment", ["population.safetensors", "manifest.json", "installed.json"])
def test_a_crash_while_installing_leaves_the_former_release(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    vault.install(1, FILES)
    crash_at(monkeypatch, moment)
    with pytest.raises(CrashError):
        vault.install(2, {**FILES, "population.safetensors": b"new"})
    monkeypatch.undo()
    assert (vault.installed(), vault.release_files()) == (1, FILES)
    vault.install(2, {**FILES, "population.safetensors": b"new"})
    assert vault.release_files()["population.safetensors"] == b"new"


def test_private_state_is_read_back_exactly(vault: Vault) -> None:
    tensors = {"layer.a": torch.randn(5, 2), "weights": torch.rand(3)}
    log = {"curve": [[0, 1.5], [1, 0.25]], "tokens": 12, "seconds": 0.5}
    vault.save_private(2, "meso", tensors, log)
    found = vault.load_private(2, "meso")
    assert found is not None
    assert set(found[0]) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[0][name], tensor)
    assert found[1] == log
    assert vault.load_private(1, "meso") is None
    assert vault.load_private(2, "oppu") is None


def test_private_state_counts_only_when_it_is_complete(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_at(monkeypatch, "meso.json")
    with pytest.raises(CrashError):
        vault.save_private(1, "meso", {"weights": torch.ones(1)}, {"tokens": 1})
    monkeypatch.undo()
    assert vault.load_private(1, "meso") is None


def test_embeddings_belong_to_a_base_model(vault: Vault) -> None:
    embedding = torch.randn(8)
    vault.save_embedding("abc", embedding)
    found = vault.load_embedding("abc")
    assert found is not None
    assert torch.equal(found, embedding)
    assert vault.load_embedding("abd") is None


def test_statistics_are_kept_by_release(vault: Vault) -> None:
    vault.save_statistics(3, {"release": 3, "expert_weights": (0.5, 0.5)})
    assert vault.statistics(3) == {"release": 3, "expert_weights": [0.5, 0.5]}
    assert vault.statistics(2) is None


def test_every_file_is_written_atomically(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        named.append(str(Path(target).relative_to(vault.folder)))
        assert self.parent == Path(target).parent
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    vault.move_in(ANN)
    vault.install(1, FILES)
    vault.save_private(1, "oppu", {"weights": torch.ones(1)}, {})
    vault.save_embedding("f", torch.ones(1))
    vault.save_statistics(1, {})
    written = {
        str(Path(folder, name).relative_to(vault.folder))
        for folder, _, names in os.walk(vault.folder)
        for name in names
    }
    assert written == set(named)
    # What makes a release complete, and then the current one, goes last.
    order = [Path(name).name for name in named]
    assert order[1:4] == ["population.safetensors", "manifest.json", "installed.json"]
    assert len(written) == 8
    assert client.vault.write_bytes is atomic_file.write_bytes
