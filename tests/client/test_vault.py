"""The vault gives back what was put in, and a crash leaves the former state."""

import base64
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import client.vault
from client.device import Device
from client.vault import Vault
from shared import atomic_file
from shared.base_model import BaseModel
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
KEY = base64.b64encode(bytes(32)).decode()
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


# What a failing disk takes


@pytest.mark.parametrize("lost", ["manifest.json", "population.safetensors", None])
def test_a_release_that_lost_a_file_is_mended_by_installing_it_again(
    vault: Vault, lost: str | None
) -> None:
    vault.install(3, FILES)
    folder = vault.folder / "releases" / "r3"
    if lost is None:
        shutil.rmtree(folder)
        left = {}
    else:
        (folder / lost).unlink()
        left = {name: data for name, data in FILES.items() if name != lost}
    # The version stays known: a server cannot go back by it.
    assert (vault.installed(), vault.release_files()) == (3, left)
    vault.install(3, FILES)
    assert (vault.installed(), vault.release_files()) == (3, FILES)


@pytest.mark.parametrize("lost", ["manifest.json", "router.safetensors", None])
def test_a_device_whose_vault_lost_its_release_says_so_and_takes_it_again(
    federation: Any, base: BaseModel, tmp_path: Path, lost: str | None
) -> None:
    shutil.copytree(federation.run_dir / "vaults" / "0001", tmp_path / "vault")
    vault, config = Vault(tmp_path / "vault"), federation.config
    device = Device(base, vault, ("population",), config.private, config.seed)
    folder = vault.folder / "releases" / "r2"
    if lost is None:
        shutil.rmtree(folder)
    else:
        (folder / lost).unlink()
    with pytest.raises(MesofedError, match="Fetch the release again"):
        device.statistics()
    with pytest.raises(MesofedError, match="newer than 2, or the very same"):
        device.install(federation.release_files(1))
    other = federation.signed(replace(federation.release(2, base), top_k=1))
    if lost == "router.safetensors":  # the manifest still tells which release it was
        with pytest.raises(MesofedError, match="with other contents"):
            device.install(other)
    assert device.install(federation.release_files(2)) == 2
    assert vault.release_files() == federation.release_files(2)
    assert device.statistics().release == 2


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"{}", b'{"release": "x"}', b"\xff"])
def test_a_damaged_number_of_the_release_is_not_taken_for_none(vault: Vault, data: bytes) -> None:
    vault.install(2, FILES)
    path = vault.folder / "installed.json"
    path.write_bytes(data)
    for ask in (vault.installed, vault.release_files):
        with pytest.raises(MesofedError, match=r"installed\.json; it is damaged"):
            ask()
    path.write_text('{"release": 2}')
    assert vault.release_files() == FILES


@pytest.mark.parametrize("data", [None, b"", b"{", b"[1]", b"\xff\xfe", b"\0" * 40])
@pytest.mark.parametrize("name", ["meso.json", "meso.safetensors"])
def test_damaged_private_state_counts_as_not_trained(
    vault: Vault, name: str, data: bytes | None
) -> None:
    vault.save_private(1, "meso", {"weights": torch.ones(2)}, {"tokens": 1})
    path = vault.folder / "private" / "r1" / name
    path.unlink() if data is None else path.write_bytes(data)
    assert vault.load_private(1, "meso") is None
    vault.save_private(1, "meso", {"weights": torch.ones(2)}, {"tokens": 1})
    assert vault.load_private(1, "meso") is not None


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"{}"])
def test_what_else_is_damaged_counts_as_missing(vault: Vault, data: bytes) -> None:
    vault.save_embedding("abc", torch.ones(8))
    vault.save_statistics(1, {"release": 1})
    (vault.folder / "embedding" / "abc.safetensors").write_bytes(data)
    (vault.folder / "statistics" / "r1.json").write_bytes(data[:1])
    assert vault.load_embedding("abc") is None
    assert vault.statistics(1) is None


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"user_id": "ann"', "\n\n"])
def test_a_damaged_person_is_named_and_never_replaced(vault: Vault, line: str) -> None:
    vault.move_in(ANN)
    path = vault.folder / "person.jsonl"
    path.write_text(line)
    with pytest.raises(MesofedError, match=r"person\.jsonl"):
        vault.person()
    assert path.read_text() == line


def test_a_second_person_in_a_vault_is_not_passed_over(vault: Vault) -> None:
    vault.move_in(ANN)
    path = vault.folder / "person.jsonl"
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(MesofedError, match=r"one person in .*person\.jsonl; got 2"):
        vault.person()


def test_a_vault_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    vault = Vault(tmp_path / "file")
    for write in (
        lambda: vault.move_in(ANN),
        lambda: vault.install(1, FILES),
        lambda: vault.save_private(1, "meso", {"weights": torch.ones(1)}, {}),
        lambda: vault.save_embedding("abc", torch.ones(1)),
        lambda: vault.save_statistics(1, {}),
    ):
        with pytest.raises(MesofedError, match="Cannot write"):
            write()


def test_every_file_is_written_atomically(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        named.append(str(Path(target).relative_to(vault.folder)))
        assert self.parent == Path(target).parent
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    vault.move_in(ANN)
    vault.trust(KEY)
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
    assert order[2:5] == ["population.safetensors", "manifest.json", "installed.json"]
    assert len(written) == 9
    assert client.vault.write_bytes is atomic_file.write_bytes
