"""Every file of a vault is checked, and a damaged one is named by each command that needs it."""

import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import client.lock
from client.agent import Agent
from client.agent_call import ask_agent
from client.agent_errors import log_error
from client.boundary import answer
from client.device import Device
from client.seal import Seal
from client.soundness import CHECKS, LEDGER, damages, part_of
from client.traces import SOCKETS, remember_socket
from client.vault import Vault
from shared.base_model import BaseModel
from shared.console import WIDTH
from shared.errors import MesofedError
from shared.privacy import LedgerEntry
from shared.protocol import (
    INSTALL_RELEASE,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    release_to_content,
    statistics_request,
)
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import Session

KEY, WORDS = Seal(bytes(range(32))), "four quiet old ducks"
METHOD = "oppu"

STOPPING = {
    "person.jsonl": "Restore it from a copy of the vault",
    "server.pub": "mesofed device trust",
    "installed.json": "Restore it from a copy of the vault",
    "journal": "This device sends nothing more",
    "journal.end": "This device sends nothing more",
    "repeats/1.json": "This device sends nothing more",
}
RELEASE = {
    f"releases/r2/{name}": "the server's next release takes its place"
    for name in (
        *("bank.safetensors", "experts.safetensors", "population.safetensors"),
        *("router.safetensors", "manifest.json"),
    )
}
PRIVATE = {f"private/r2/{METHOD}.{ending}": "Train it again" for ending in ("safetensors", "json")}
MENDED = {
    "releases/r2/manifest.sig": "the server's next release takes its place",
    "releases/r1/bank.safetensors": "Nothing to do: the device has a newer release",
    "embedding/*.safetensors": "Nothing to do: it is computed again",
    "statistics/r2.json": "Nothing to do: the journal has what was sent",
    "sessions/r2.json": "Nothing to do: this device sits that secure sum out",
    "errors": "Remove the file",
}
"""What to do about each file of a vault; the last ones are in nobody's way."""


@pytest.fixture(scope="module")
def whole(federation: Any, base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault in which everything that a vault can hold is there, sealed but for a lock."""
    vault = Vault(tmp_path_factory.mktemp("whole") / "vault", KEY)
    vault.trust(federation.server_key)
    vault.move_in(federation.people.device[0])
    config = federation.config
    device = Device(base, vault, config.methods, config.private, config.seed)
    for version in (1, 2):
        files = federation.release_files(version)
        answer(device, INSTALL_RELEASE, release_to_content(files, version))
        device.personalise()
        for _ in range(2):
            answer(device, ROUTER_STATISTICS, statistics_request(version))
    cost = LedgerEntry(3, "local", 3.0, "2026-11-24T08:00:00+00:00")
    asked = {"time": "t", "request": "r", "release": 3, "question": "", "content": ""}
    vault.sent.add({**asked, "ledger": cost.to_json()})
    vault.save_session(2, DeviceSession(Session(7, 2, bytes(32), 1.0), bytes(32)).to_bytes())
    log_error(vault, "x", ValueError("y"))
    remember_socket(vault.folder, Path("/run/mesofed/me.sock"))
    return vault.folder


@pytest.fixture
def lived(
    whole: Path, short_path: Path, quick_lock: None, monkeypatch: pytest.MonkeyPatch
) -> Vault:
    """A copy of it, with a lock."""
    folder = short_path / "vault"
    shutil.copytree(whole, folder)
    client.lock._wrap(folder, secrets.token_hex(16), KEY.key or b"", WORDS)
    monkeypatch.setenv("MESOFED_PASSPHRASE", WORDS)
    return Vault(folder, KEY)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil(vault: Vault, name: str, how: Callable[[Path], None] = flip) -> str:
    """Damage a file; return its name as messages have it."""
    (path,) = vault.folder.glob(name)
    how(path)
    return str(path.relative_to(vault.folder))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(done: Any, *said: str) -> None:
    assert (done.code, "Traceback" in done.text) == (1, False), done.text
    for words in said:
        assert words in done.text


def test_the_parts_that_are_checked_are_all_that_there_are(lived: Vault, mesofed: Any) -> None:
    kinds = {path.name for path in lived.folder.iterdir()}
    assert {part_of(kind) for kind in kinds} == set(CHECKS) - {LEDGER}
    assert damages(lived) == ()
    shown = mesofed("device", "inspect", lived.folder)
    assert shown.code == 0, shown.text
    # One line a part, under the name that an error gives it: what lies in more files is counted.
    rows = [line.split() for line in shown.out.splitlines() if line.endswith("  sound")]
    assert sorted(row[0] for row in rows) == sorted(CHECKS)
    journal = [path for path in files(lived.folder) if path.split("/")[0].startswith("journal")]
    repeats = list((lived.folder / "repeats").iterdir())
    assert (len(journal), len(repeats)) == (2, 2)
    (row,) = (row for row in rows if row[0] == "journal")
    assert int(row[1]) == len(journal) + len(repeats)
    assert "amaged" not in shown.text
    # What a stop leaves in the middle of a write, or an agent has just begun, is no damage.
    (lived.folder / "embedding" / ".x.tmp").write_bytes(b"half")
    (lived.folder / "private" / "r2" / "new.safetensors").write_bytes(b"half")
    (lived.folder / "releases" / "r3").mkdir()
    (lived.folder / "releases" / "r3" / "bank.safetensors").write_bytes(b"half")
    assert damages(lived) == ()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in (*STOPPING, *RELEASE, *PRIVATE, *MENDED)
        for how in (flip, cut, empty)
        if name != "errors" or how is flip  # a record that a stop cut short is no record
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    lived: Vault, name: str, how: Callable[[Path], None]
) -> None:
    remedy = {**STOPPING, **RELEASE, **PRIVATE, **MENDED}[name]
    named = spoil(lived, name, how)
    found = damages(lived)
    part = part_of(named.partition("/")[0])
    assert [damage.part for damage in found] == [part, LEDGER] if part == "journal" else [part]
    assert named in found[0].text
    assert remedy in found[0].text
    assert found[0].stops is (name in STOPPING)


def test_what_is_missing_is_damage_where_it_has_to_be_there(lived: Vault) -> None:
    for name, part in (
        ("releases/r2/bank.safetensors", "releases"),
        ("releases/r2/manifest.sig", "releases"),
        (f"private/r2/{METHOD}.safetensors", "private"),
        ("journal.end", "journal"),
        ("journal", "journal"),
        ("installed.json", "installed.json"),
    ):
        kept = (lived.folder / name).read_bytes()
        (lived.folder / name).unlink()
        (first, *_) = damages(lived)
        assert first.part == part
        assert name in first.text
        (lived.folder / name).write_bytes(kept)
    assert damages(lived) == ()
    for name in ("journal", "journal.end", "repeats"):
        (lived.folder / name).rename(lived.folder.parent / name)
    stopped = [(damage.part, damage.stops) for damage in damages(replace(lived))]
    assert stopped == [("journal", True), (LEDGER, True)]
    for name in ("journal", "journal.end", "repeats"):
        (lived.folder.parent / name).rename(lived.folder / name)
    shutil.rmtree(lived.folder / "embedding")  # it is computed again
    assert damages(lived) == ()


def test_a_device_that_was_made_to_forget_its_release_does_not_start(
    lived: Vault, whole: Path
) -> None:
    """An older installed.json opens as well as the newest one; the journal knows better."""
    lived._write("installed.json", json.dumps({"release": 1}).encode())
    (found,) = damages(lived)
    assert found.stops
    assert "Expected installed.json of the vault to name release 2" in found.text
    assert "got 1" in found.text


def test_what_opens_and_is_not_what_it_should_be_is_damage(lived: Vault) -> None:
    """Each of these was sealed with the vault's own key; only the content tells."""
    release, private = "releases/r2/bank.safetensors", f"private/r2/{METHOD}"
    embedding = f"embedding/{next((lived.folder / 'embedding').iterdir()).name}"
    log = json.loads(lived.read(f"{private}.json"))
    nan = save({"embedding": torch.tensor([1.0, torch.nan])})
    for name, data, said in (
        (release, lived.read("releases/r2/experts.safetensors"), "the hash differs"),
        (release, b"no tensors", "cannot be read as such"),
        ("releases/r2/manifest.sig", lived.read("releases/r1/manifest.sig"), "The signature"),
        (embedding, nan, "embedding has others"),
        (embedding, b"no tensors", "cannot be read as such"),
        (embedding, save({"other": torch.ones(2)}), "cannot be read as such"),
        (f"{private}.safetensors", save({"weights": torch.ones(1)}), "its hash differs"),
        (f"{private}.json", json.dumps({**log, "sha256": "0"}).encode(), "its hash differs"),
        (f"{private}.json", b"[]", "Expected the log of a training"),
        ("statistics/r2.json", b"{}", "Expected router statistics"),
        ("sessions/r2.json", b"{}", "Expected a session of a secure sum"),
        ("person.jsonl", b"{}", "Expected a user"),
        ("server.pub", b"no key", "Expected a server's public key"),
        ("installed.json", b"{}", "Expected the current release's number"),
        ("journal.end", b'{"records": 99}', "of the 99 that this vault has written"),
    ):
        before = (lived.folder / name).read_bytes()
        lived._write(name, data)
        (first, *_) = (d for d in damages(lived) if said in d.text)
        # Of two files that do not fit together, it is the journal that is too short.
        assert name.removesuffix(".end").rpartition("/")[2] in first.text
        assert first.part == part_of(name.partition("/")[0])
        (lived.folder / name).write_bytes(before)
    assert damages(lived) == ()


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[1]", b"\xff"])
def test_places_that_cannot_be_read_are_damage_and_begun_anew(lived: Vault, data: bytes) -> None:
    (lived.folder / SOCKETS).write_bytes(data)
    (found,) = damages(lived)
    assert (found.part, found.stops) == (SOCKETS, False)
    assert f"in {SOCKETS} of the vault; it cannot be read" in found.text
    remember_socket(lived.folder, Path("/run/b.sock"))
    assert damages(lived) == ()
    assert json.loads((lived.folder / SOCKETS).read_bytes()) == ["/run/b.sock"]


def test_numbers_of_a_private_lora_that_are_not_finite_are_damage(lived: Vault) -> None:
    found = lived.load_private(2, METHOD)
    assert found is not None
    tensors, log = found
    name = sorted(tensors)[0]
    tensors[name][..., 0] = torch.inf
    lived.save_private(2, METHOD, tensors, log)
    (damage,) = damages(lived)
    assert f"{name} has others" in damage.text
    assert f"private/r2/{METHOD}.safetensors" in damage.text


@pytest.mark.parametrize("entry", [{"release": 3}, "free of charge", None])
def test_an_entry_of_the_ledger_that_is_none_stops_the_device(
    lived: Vault, entry: object, mesofed: Any
) -> None:
    asked = {"time": "t", "request": "r", "release": 4, "question": "", "content": ""}
    lived.sent.add({**asked, "ledger": entry})
    (found,) = damages(replace(lived))
    assert (found.part, found.stops) == (LEDGER, True)
    assert "sends nothing while it cannot tell what it has spent" in found.text
    done = mesofed("device", "inspect", lived.folder)
    refused(done, "damaged: ledger", "Damaged: Expected an entry of a privacy ledger")
    assert "Privacy:" not in done.text  # never a sum of what could be read
    assert "Sent: " in done.text


# Each command


@pytest.mark.parametrize("name", [*STOPPING, "releases/r2/bank.safetensors", *PRIVATE, *MENDED])
def test_inspect_says_of_each_part_whether_it_is_sound(
    lived: Vault, mesofed: Any, name: str
) -> None:
    named, before = spoil(lived, name), files(lived.folder)
    done = mesofed("device", "inspect", lived.folder)
    part = part_of(named.partition("/")[0])
    refused(done, f"Expected a sound vault; damaged: {part}", named)
    states = {words[0]: words[-1] for words in map(str.split, done.out.splitlines()) if words}
    assert max(map(len, done.out.splitlines())) <= WIDTH  # paths are short here
    bad = {part, LEDGER} if part == "journal" else {part}
    for other in CHECKS:
        assert states[other] == ("damaged" if other in bad else "sound"), done.out
    assert files(lived.folder) == before


@pytest.mark.parametrize("how", [flip, cut])
@pytest.mark.parametrize("name", STOPPING)
def test_start_refuses_without_what_an_answer_rests_on(
    lived: Vault,
    mesofed: Any,
    federation: Any,
    short_path: Path,
    name: str,
    how: Callable[[Path], None],
) -> None:
    named, before = spoil(lived, name, how), files(lived.folder)
    path, config = short_path / "a.sock", federation.run_dir / "config.toml"
    done = mesofed("device", "start", lived.folder, "--socket", path, "--config", config)
    refused(done, named, STOPPING[name])
    assert "Listening" not in done.text
    assert not path.exists()
    assert files(lived.folder) == before  # the ledger is not begun anew


def test_a_journal_that_is_damaged_while_the_agent_runs_stops_its_answers(
    lived: Vault, base: BaseModel, federation: Any, short_path: Path, serving: Any
) -> None:
    device = Device(base, lived, (), federation.config.private, federation.config.seed)
    with serving(Agent(device, short_path / "a.sock")) as agent:
        ask_agent(agent.path, ROUTER_STATISTICS, statistics_request(2))
        flip(lived.folder / "journal")
        before = (lived.folder / "journal").read_bytes()
        with pytest.raises(ProtocolError) as caught:
            ask_agent(agent.path, ROUTER_STATISTICS, statistics_request(2))
        assert caught.value.refusal == Refusal.REQUEST_REFUSED
    assert (lived.folder / "journal").read_bytes() == before
    with pytest.raises(MesofedError, match="is damaged or was changed"), serving(agent):
        pass


@pytest.mark.parametrize("name", ["releases/r2/bank.safetensors", *PRIVATE, *MENDED])
def test_start_says_what_it_mends_and_answers_on(
    lived: Vault, base: BaseModel, federation: Any, short_path: Path, serving: Any, name: str
) -> None:
    named = spoil(lived, name)
    config = federation.config
    device, lines = Device(base, lived, (METHOD,), config.private, config.seed), list[str]()
    with serving(Agent(device, short_path / "a.sock", say=lines.append)) as agent:
        (line,) = lines
        assert line.startswith("Damaged: ")
        assert named in line
        content = release_to_content(federation.release_files(2), 2)
        ask_agent(agent.path, INSTALL_RELEASE, content)
        ask_agent(agent.path, ROUTER_STATISTICS, statistics_request(2))
    assert not [d for d in damages(lived) if d.text.startswith("releases/r2")]


@pytest.mark.parametrize("name", [*RELEASE, *PRIVATE, "person.jsonl", "installed.json"])
def test_ask_and_export_name_the_file_that_they_need(
    lived: Vault, mesofed: Any, federation: Any, tmp_path: Path, name: str
) -> None:
    remedy, named = {**STOPPING, **RELEASE, **PRIVATE}[name], spoil(lived, name)
    options = ("--method", METHOD, "--config", federation.run_dir / "config.toml")
    for command in (("ask", lived.folder, "hello"), ("export", lived.folder, "--out", tmp_path)):
        done = mesofed("device", *command, *options)
        refused(done, named, remedy)
        assert "Trained are" not in done.text
        assert "lack or add" not in done.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["journal", "journal.end", "server.pub", *MENDED])
def test_ask_needs_no_journal_and_mends_what_it_can(
    lived: Vault, mesofed: Any, federation: Any, name: str
) -> None:
    options = ("--method", METHOD, "--config", federation.run_dir / "config.toml")
    ask = ("device", "ask", lived.folder, "hello", *options)
    before = mesofed(*ask)
    assert before.code == 0, before.text
    spoil(lived, name)
    assert mesofed(*ask).out == before.out


def test_a_damaged_release_in_an_open_vault_is_named_by_its_hash(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "vault"
    shutil.copytree(federation.run_dir / "vaults" / "0001", folder)
    config = ("--config", federation.run_dir / "config.toml", "--method", "population")
    for name, said in (
        ("bank.safetensors", "bank.safetensors of release 2 is not what its manifest names"),
        ("manifest.json", "with a complete manifest.json"),
    ):
        path = folder / "releases" / "r2" / name
        data = path.read_bytes()
        path.unlink()  # vaults of a simulation link to one file
        path.write_bytes(data[:-9])
        refused(mesofed("device", "ask", folder, "hello", *config), said, str(path.parent))
        path.write_bytes(data)
    assert load(path.with_name("bank.safetensors").read_bytes())
