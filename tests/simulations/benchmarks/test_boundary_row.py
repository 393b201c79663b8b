"""The boundary row: both sides train the same, one with the whole boundary, the other without."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.seal import MAGIC
from shared.errors import MesofedError
from shared.signature import read_signature
from simulations.benchmarks import boundary
from simulations.benchmarks.bare_round import bare_client, bare_server
from simulations.benchmarks.boundary import BARE, Round
from simulations.benchmarks.catalogue import chosen
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.round_of_devices import DEVICES
from simulations.local_grid import run_local


@pytest.fixture(scope="module")
def rounds(settings: Settings) -> dict[str, Round]:
    return boundary.sides_of(settings)


def test_the_row_takes_minutes_and_is_run_by_name_only() -> None:
    assert "boundary" not in [row.name for row in chosen(())]
    assert [row.load() for row in chosen(("boundary",))] == [boundary.boundary]


@pytest.mark.parametrize(
    ("side", "answers"),
    [
        pytest.param("off", 1, marks=pytest.mark.slow),
        pytest.param("local", 1, marks=pytest.mark.slow),
        ("central", 4),
    ],
)
def test_both_sides_train_the_same_and_only_one_has_no_boundary(
    rounds: dict[str, Round], tmp_path: Path, side: str, answers: int
) -> None:
    both = {BARE: rounds[BARE], side: rounds[side]}
    assert boundary.check_private(both, tmp_path).value == 0
    bare = boundary.private_of(rounds[BARE], tmp_path / BARE)
    assert len(bare) == DEVICES
    # They have trained: no two people, and nobody's start, are alike.
    assert all(tensor.any() for tensors in bare for tensor in tensors.values())
    # The files give their tensors in no fixed order, and everybody's fusion weights are alike.
    told = {tuple(sorted(t.sum().item() for t in tensors.values())) for tensors in bare}
    assert len(told) == DEVICES
    vaults = sorted((tmp_path / side / "vaults").iterdir())
    assert len(vaults) == DEVICES
    for folder in vaults:
        files = [path for path in folder.rglob("*") if path.is_file()]
        unsealed = [path.name for path in files if not path.read_bytes().startswith(MAGIC)]
        assert unsealed == ["journal"]  # a record's header comes before its seal
    for index in range(DEVICES):
        vault = boundary.vault_of(rounds[side], tmp_path / side, index)
        entries = vault.sent.journal.entries()
        assert len(entries) == 1 + answers
        assert sum("ledger" in entry for entry in entries) == (side != "off")
        assert read_signature(vault.release_files()).key == vault.trusted()
    for path in (tmp_path / BARE / "vaults").rglob("*"):
        assert path.name not in ("journal", "server.pub", "manifest.sig")
        assert path.is_dir() or not path.read_bytes().startswith(MAGIC)


def test_sides_that_train_differently_are_not_timed(
    rounds: dict[str, Round], tmp_path: Path
) -> None:
    private = rounds["off"].config.private.model_copy(update={"learning_rate": 1e-4})
    config = rounds["off"].config.model_copy(update={"private": private})
    other = {BARE: rounds[BARE], "off": replace(rounds["off"], config=config)}
    with pytest.raises(MesofedError, match="nothing was timed"):
        boundary.check_private(other, tmp_path)


def test_a_bare_round_that_fails_ends_the_row(rounds: dict[str, Round], tmp_path: Path) -> None:
    bare = rounds[BARE]
    client = bare_client(bare.base, bare.config, bare.release, bare.people[:3])
    with pytest.raises(MesofedError, match="Expected 16 answers of the bare devices to train; got"):
        run_local(bare_server({"x": b"y"}, tmp_path / "x", DEVICES), client, tmp_path, DEVICES)


def test_the_boundary_is_held_to_a_twentieth(
    settings: Settings, rounds: dict[str, Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {BARE: (10.0,), "off": (10.4,), "local": (10.4,), "central": (10.92,)}
    monkeypatch.setattr(boundary, "sides_of", lambda settings: rounds)
    monkeypatch.setattr(boundary, "check_private", lambda rounds, folder: None)
    monkeypatch.setattr(boundary, "interleave", lambda *args, **named: seconds)
    figures = boundary.boundary(settings, lambda: None).figures
    assert [figure.median for figure in figures] == pytest.approx([1.04, 1.092, 1.0, 1.05])
    assert [figure.met for figure in figures] == [True, False, None, None]
