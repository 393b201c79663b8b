"""`mesofed device`: create, ask and export a vault."""

import base64
import io
import os
import pty
import shutil
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.agent import owned
from client.agent_call import ask_agent
from client.app import app
from client.device import Device
from client.lock import unlock
from client.vault import Vault
from shared import tiny
from shared.base_model import BaseModel
from shared.console import WIDTH
from shared.corpus.user import User
from shared.errors import MesofedError
from shared.flower_internals import become_server, content_to_bytes, name_message
from shared.lora.peft_format import load_peft
from shared.privacy import LedgerEntry, spent
from shared.protocol import (
    INSTALL_RELEASE,
    ROUTER_STATISTICS,
    release_to_content,
    statistics_request,
)


@pytest.fixture
def vault(federation: Any) -> Path:
    """A vault of the federation; the commands that use it only read."""
    return federation.run_dir / "vaults" / "0002"


def test_init_moves_a_person_in_from_their_texts(
    mesofed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("My first long paragraph here.\n\nThe second one, too.\n")
    (texts / "b.md").write_text("And a third one in another file.\n")
    monkeypatch.setenv("MESOFED_PASSPHRASE", "four quiet old ducks")
    init = ("device", "init", tmp_path / "me", "--folder", texts, "--lock", "passphrase")
    done = mesofed(*init)
    assert done.code == 0, done.text
    person = Vault(
        tmp_path / "me", unlock(tmp_path / "me", lambda: "four quiet old ducks")
    ).person()
    assert len(person.history) == 3
    assert f"3 paragraphs are in {tmp_path / 'me'}" in done.text
    assert f"Next: mesofed device trust {tmp_path / 'me'}" in done.text
    assert {item.target for item in person.history} >= {"My first long paragraph here."}
    assert person.queries == ()
    before = (tmp_path / "me" / "person.jsonl").read_bytes()
    assert b"paragraph" not in before
    again = mesofed(*init)
    assert again.code == 1
    assert "maybe a vault already" in again.text
    assert (tmp_path / "me" / "person.jsonl").read_bytes() == before


def test_init_from_a_folder_that_is_not_there(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("device", "init", tmp_path / "me", "--folder", tmp_path / "nowhere")
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "nowhere" in done.text
    assert not (tmp_path / "me").exists()


def test_ask_answers_as_the_device_does(
    federation: Any, vault: Path, base: BaseModel, mesofed: Any
) -> None:
    config = federation.config
    device = Device(base, Vault(vault), config.methods, config.private, config.seed)
    answers = {}
    for method in ("population", "oppu"):
        done = mesofed("device", "ask", vault, "post: a day\nheadline:", "--method", method)
        assert done.code == 0, done.text
        answers[method] = done.out.strip()
        assert answers[method] == device.answer(method, "post: a day\nheadline:").strip()
    assert all(answers.values())


def test_an_empty_answer_is_said_to_be_empty_and_is_no_line(
    vault: Path, mesofed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "answer", lambda *_: " \n")
    done = mesofed("device", "ask", vault, "post: a day\nheadline:", "--method", "population")
    assert (done.code, done.out) == (0, "")
    assert "The answer is empty" in done.err


def test_the_settings_of_the_run_are_named_where_nobody_names_others(
    federation: Any, vault: Path, mesofed: Any
) -> None:
    own = federation.run_dir / "config.toml"
    ask = ("device", "ask", vault, "post: a day\nheadline:", "--method", "population")
    done, named = mesofed(*ask), mesofed(*ask, "--config", own)
    assert done.err.count(f"Settings: {own}") == 1
    assert "Settings:" not in done.out + named.text
    assert done.out == named.out


def test_export_writes_the_whole_stack_of_the_person(
    federation: Any, vault: Path, base: BaseModel, mesofed: Any, tmp_path: Path
) -> None:
    arguments = ("device", "export", vault, "--out", tmp_path / "mine", "--method", "meso-tuned")
    done = mesofed(*arguments)
    assert done.code == 0, done.text
    # population 4 + two experts of 2 + two anchors of 2 + stack 1
    assert "Rank 13" in done.text
    assert all(len(line) <= WIDTH or " " not in line for line in done.out.splitlines())
    config = federation.config
    device = Device(base, Vault(vault), config.methods, config.private, config.seed)
    stack = device.personalised("meso-tuned")
    again = mesofed(*arguments)
    assert (again.code, "Add --force" in again.text) == (1, True)
    assert mesofed(*arguments, "--force").code == 0
    loaded = load_peft(tmp_path / "mine", base.maps)
    for name, factors in loaded:
        assert stack.private is not None
        expected = sum(
            float(weight) * lora.factors[name].delta()
            for lora, weight in zip(stack.shared, stack.weights, strict=True)
        )
        if name in stack.private.factors:
            expected = expected + stack.private.factors[name].delta()
        torch.testing.assert_close(factors.delta(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "own"), [("population", False), ("oppu", True), ("meso-tuned", True)]
)
def test_an_export_says_whether_it_holds_anything_of_the_person(
    method: str, own: bool, vault: Path, mesofed: Any, tmp_path: Path
) -> None:
    done = mesofed("device", "export", vault, "--out", tmp_path / "e", "--method", method)
    assert done.code == 0, done.text
    assert (f"One person's stack by {method}" in done.text) == own
    assert ("keep it at home" in done.text) == own
    assert ("nothing in it is this person's" in done.text) != own


def test_the_base_model_alone_has_nothing_to_export(
    vault: Path, mesofed: Any, tmp_path: Path
) -> None:
    done = mesofed("device", "export", vault, "--out", tmp_path / "b", "--method", "base")
    assert done.code == 1
    assert "nothing to export" in done.text
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("oppo", "got method 'oppo' (did you mean 'oppu'?)"),
        ("mta-exact", "Expected mta-exact to be trained for release 2"),
    ],
)
def test_a_wrong_method_ends_in_a_sentence(
    method: str, said: str, vault: Path, mesofed: Any
) -> None:
    done = mesofed("device", "ask", vault, "hello", "--method", method)
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert said in done.text


def test_an_empty_vault_ends_in_a_sentence(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("device", "ask", tmp_path / "none", "hello")
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "mesofed device init" in done.text


def test_a_vault_outside_a_run_needs_a_release_and_takes_the_config_that_is_named(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    Vault(tmp_path / "a" / "b").move_in(federation.people.device[0])
    done = mesofed("device", "ask", tmp_path / "a" / "b", "hello", "--config", tmp_path / "none")
    assert done.code == 1
    assert "Cannot read the config" in done.text
    arguments = ("--config", federation.run_dir / "config.toml", "--method", "population")
    done = mesofed("device", "ask", tmp_path / "a" / "b", "hello", *arguments)
    assert done.code == 1
    assert "Expected an installed release" in done.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [("top_layers = 1", "lacks or adds tensors"), ('name = "other"', "for this base model")],
)
def test_settings_that_the_release_was_not_trained_with_name_the_option(
    changed: str, said: str, vault: Path, mesofed: Any, tmp_path: Path
) -> None:
    lines = (vault.parent.parent / "config.toml").read_text(encoding="utf-8").splitlines()
    if changed.startswith("name"):
        model = tmp_path / "other"
        other = tiny.build_model()
        with torch.no_grad():
            other.get_input_embeddings().weight.mul_(2)
        other.save_pretrained(model)
        tiny.build_tokenizer().save_pretrained(model)
        changed = f'name = "{model}"'
    field = changed.partition(" ")[0]
    assert any(line.startswith(f"{field} = ") for line in lines)
    config = tmp_path / "other.toml"
    config.write_text(
        "\n".join(changed if line.startswith(f"{field} = ") else line for line in lines),
        encoding="utf-8",
    )
    done = mesofed("device", "ask", vault, "hello", "--config", config, "--method", "population")
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert said in done.text
    assert f"those of {config}" in done.text
    assert "--config FILE" in done.text


# A sealed vault from its making to its end

WORDS = "four quiet old ducks"
SECRET = "My first long paragraph about heliotrope."


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(f"{SECRET}\n\nThe second one, too.\n\nAnd a third of them.\n")
    return folder


@pytest.fixture
def sealed(
    mesofed: Any,
    texts: Path,
    federation: Any,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_lock: None,
) -> Path:
    """A vault that `mesofed device init` has made."""
    monkeypatch.setenv("MESOFED_PASSPHRASE", WORDS)
    folder = short_path / "me"
    key = ("--server-key", federation.server_key)
    done = mesofed("device", "init", folder, "--folder", texts, "--lock", "passphrase", *key)
    assert done.code == 0, done.text
    assert f"Next: mesofed device start {folder}" in done.text
    return folder


def opened(folder: Path, words: str = WORDS) -> Vault:
    return Vault(folder, unlock(folder, lambda: words))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(done: Any, *said: str, code: int = 1) -> None:
    assert (done.code, "Traceback" in done.text) == (code, False), done.text
    for words in said:
        assert words in done.text


def test_init_keeps_the_server_key_and_nothing_in_clear(sealed: Path, federation: Any) -> None:
    assert opened(sealed).trusted() == federation.server_key
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o700
    for data in contents(sealed).values():
        assert b"heliotrope" not in data
        assert federation.server_key.encode() not in data


@pytest.mark.parametrize("key", ["x", "A" * 44, "A" * 43 + "=="])
def test_init_with_a_wrong_key_makes_nothing(
    mesofed: Any, tmp_path: Path, texts: Path, key: str
) -> None:
    done = mesofed("device", "init", tmp_path / "v", "--folder", texts, "--server-key", key)
    refused(done, "Expected a server's public key")
    assert not (tmp_path / "v").exists()


def test_init_with_bad_arguments_makes_nothing(
    mesofed: Any, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = ("device", "init", tmp_path / "v", "--folder", texts)
    (tmp_path / "no text").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_bytes(b"\n")
    passphrase = ("--lock", "passphrase", "--passphrase-file")
    refused(mesofed(*init, *passphrase, tmp_path / "none"), "Cannot read the passphrase file")
    refused(mesofed(*init, *passphrase, tmp_path / "no text"), "Cannot read the passphrase file")
    refused(mesofed(*init, *passphrase, tmp_path / "empty"), "got an empty one")
    refused(mesofed(*init, "--lock", "chain"), "chain", code=2)
    refused(mesofed("device", "init", tmp_path / "v"), "--folder", code=2)
    monkeypatch.setenv("MESOFED_PASSPHRASE", "\udcff")
    refused(mesofed(*init, "--lock", "passphrase"), "Expected a passphrase in UTF-8")
    refused(mesofed(*init, "--lock", "keyring"), "keyring does not work here")
    assert not (tmp_path / "v").exists()


def test_init_over_something_else_changes_nothing(
    mesofed: Any, tmp_path: Path, texts: Path
) -> None:
    before = contents(texts)
    refused(mesofed("device", "init", texts, "--folder", texts), "nothing was changed")
    refused(mesofed("device", "init", texts / "a.txt", "--folder", texts), "nothing was changed")
    assert contents(texts) == before


def test_the_next_command_opens_the_vault_as_this_one_did(
    mesofed: Any, texts: Path, federation: Any, short_path: Path, quick_lock: None
) -> None:
    home, words = short_path / "v", short_path / "my words"
    words.write_text(WORDS)
    own, key = ("--passphrase-file", words), federation.server_key
    init = ("device", "init", home, "--folder", texts, "--lock", "passphrase", *own)
    made = mesofed(*init)
    assert f"mesofed device trust {home} SERVER_KEY --passphrase-file '{words}'" in made.text
    trusted = mesofed("device", "trust", home, key, *own)
    start = f"mesofed device start {home} --passphrase-file '{words}'"
    assert f"{start} with --config FILE, if the server's settings" in trusted.text


def test_trust_pins_another_key(mesofed: Any, sealed: Path, federation: Any) -> None:
    other = mesofed("release", "key", sealed.parent / "keys").out.splitlines()[0]
    done = mesofed("device", "trust", sealed, other)
    assert done.code == 0, done.text
    assert opened(sealed).trusted() == other
    for wrong in ("x", other[:-1], other[:-2] + "B="):
        refused(mesofed("device", "trust", sealed, wrong), "Expected a server's public key")
    refused(mesofed("device", "trust", sealed), code=2)
    assert opened(sealed).trusted() == other


def test_nothing_is_written_into_a_folder_that_is_no_vault(
    mesofed: Any, texts: Path, federation: Any
) -> None:
    before = contents(texts)
    for arguments in (
        ("trust", texts, federation.server_key),
        ("inspect", texts),
        ("start", texts),
        ("passphrase", texts),
        ("ask", texts, "hello"),
        ("export", texts, "--out", texts / "out"),
        ("forget", texts, "--yes"),
        ("trust", texts / "none", federation.server_key),
        ("forget", texts / "none", "--yes"),
    ):
        refused(mesofed("device", *arguments), "Expected a vault")
    assert contents(texts) == before


def test_a_wrong_passphrase_opens_nothing(
    mesofed: Any, sealed: Path, tmp_path: Path, federation: Any
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("four quiet old geese\n")
    before = contents(sealed)
    for arguments in (
        ("inspect", sealed),
        ("start", sealed),
        ("trust", sealed, federation.server_key),
        ("ask", sealed, "hello"),
        ("passphrase", sealed),
    ):
        done = mesofed("device", *arguments, "--passphrase-file", wrong)
        refused(done, "The passphrase does not open")
        assert "heliotrope" not in done.text
    assert contents(sealed) == before


def test_a_sealed_vault_without_its_lock_is_neither_read_nor_written(
    mesofed: Any, sealed: Path, federation: Any, tmp_path: Path
) -> None:
    (sealed / "lock.json").unlink()
    before = contents(sealed)
    for spoilt in (False, True):
        if spoilt:
            (sealed / "person.jsonl").write_bytes(b'{"user_id": "mallory"}\n')
            before = contents(sealed)
        for arguments in (
            ("inspect", sealed),
            ("start", sealed),
            ("trust", sealed, federation.server_key),
            ("ask", sealed, "hello"),
            ("passphrase", sealed),
            ("export", sealed, "--out", tmp_path / "out"),
        ):
            refused(mesofed("device", *arguments), "Expected the lock of a vault")
    assert contents(sealed) == before
    assert not (tmp_path / "out").exists()


def test_passphrase_changes_what_opens_the_vault(
    mesofed: Any, sealed: Path, tmp_path: Path
) -> None:
    fresh, empty = tmp_path / "fresh", tmp_path / "empty"
    fresh.write_text("three loud young geese\n")
    empty.write_text("\n")
    before = contents(sealed)
    change = ("device", "passphrase", sealed, "--new-passphrase-file")
    refused(mesofed(*change, empty), "got an empty one")
    refused(mesofed(*change, tmp_path / "none"), "Cannot read the passphrase file")
    assert contents(sealed) == before
    done = mesofed(*change, fresh)
    assert done.code == 0, done.text
    changed = {path.name for path, data in contents(sealed).items() if before[path] != data}
    assert changed == {"lock.json"}
    assert len(opened(sealed, "three loud young geese").person().history) == 3
    refused(mesofed("device", "inspect", sealed), "The passphrase does not open")
    assert mesofed("device", "inspect", sealed, "--passphrase-file", fresh).code == 0


@pytest.mark.parametrize(("words", "warned"), [("x" * 11, True), ("x" * 12, False)])
def test_a_short_passphrase_is_taken_with_a_warning(
    mesofed: Any, texts: Path, tmp_path: Path, quick_lock: None, words: str, warned: bool
) -> None:
    file, home = tmp_path / "words", tmp_path / "v"
    file.write_text(words)
    init = ("device", "init", home, "--folder", texts, "--lock", "passphrase")
    made = mesofed(*init, "--passphrase-file", file)
    change = ("device", "passphrase", home, "--passphrase-file", file)
    changed = mesofed(*change, "--new-passphrase-file", file)
    for done in (made, changed):
        assert done.code == 0, done.text
        assert ("Warning: this passphrase has" in done.err) is warned
        assert ("has 11 characters, of the 12 or more" in done.err) is warned
        assert words not in done.text
        assert all(len(line) <= WIDTH or " " not in line for line in done.err.splitlines())
    # What is printed for a next command to read is the same either way.
    assert "Warning" not in made.out
    assert len(opened(home, words).person().history) == 3


def test_forget_erases_all_and_needs_no_passphrase(
    mesofed: Any, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESOFED_PASSPHRASE")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused(mesofed("device", "forget", sealed), "Nothing was erased")
    assert (sealed / "lock.json").exists()
    count = len(contents(sealed))
    done = mesofed("device", "forget", sealed, "--yes")
    assert done.code == 0, done.text
    assert f"is gone: {count} files" in done.text
    assert "still opens with the passphrase" in done.text
    assert not sealed.exists()
    assert sealed.parent.exists()


def test_a_vault_of_a_newer_mesofed_says_to_update_and_nothing_is_changed(
    mesofed: Any, sealed: Path
) -> None:
    for name, later in (
        ("person.jsonl", b"MSV2" + bytes(80)),
        ("statistics/r1.json", b"MSV2" + bytes(80)),
        ("lock.json", (sealed / "lock.json").read_bytes().replace(b'"format": 1', b'"format": 2')),
    ):
        path = sealed / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(later)
        said = f"{name} of the vault in format 1; got format 2"
        if name == "lock.json":
            said = "lock.json in format 1; got format 2"
            refused(mesofed("device", "forget", sealed, "--yes"), said)
        done = mesofed("device", "inspect", sealed)
        refused(done, said)
        assert "Update Mesofed" in done.text
        assert "damaged" not in done.text
        assert path.read_bytes() == later
        path.unlink() if before is None else path.write_bytes(before)
    assert mesofed("device", "inspect", sealed).code == 0


def start(
    mesofed: Any,
    arguments: tuple[Any, ...],
    ready: Callable[[], bool],
    meanwhile: Callable[[], None],
) -> tuple[Any, list[BaseException]]:
    """Run `mesofed device start` here, do something beside it, and stop it as a system does.

    Parameters
    ----------
    ready : callable
        Whether it is time for what is done beside it; waited for a minute at most.
    """
    failed: list[BaseException] = []

    def beside() -> None:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            meanwhile()
        except BaseException as error:
            failed.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=beside)
    thread.start()
    try:
        done = mesofed("device", "start", *arguments)
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    return done, failed


def test_start_answers_until_it_is_stopped_and_inspect_tells_all_of_it(
    mesofed: Any, sealed: Path, federation: Any, until: Any, listens: Any, short_path: Path
) -> None:
    path = short_path / "a.sock"
    arguments = (sealed, "--socket", path, "--config", federation.run_dir / "config.toml")
    replies: list[Any] = []

    def meanwhile() -> None:
        content = release_to_content(federation.release_files(1), 1)
        replies.append(ask_agent(path, INSTALL_RELEASE, content))
        replies.append(ask_agent(path, ROUTER_STATISTICS, statistics_request(1)))
        with pytest.raises(MesofedError):
            ask_agent(path, ROUTER_STATISTICS, statistics_request(2))
        vault = opened(sealed)
        until(lambda: vault.load_private(1, "oppu") is not None)
        with pytest.raises(MesofedError, match="another process has it"), owned(vault):
            pass

    done, failed = start(mesofed, arguments, lambda: listens(path), meanwhile)
    assert failed == []
    assert (done.code, "Stopped." in done.out) == (0, True)
    assert f"Listening at {path}" in done.out
    assert f"takes the releases of {federation.server_key}" in done.out
    assert f"Installed release 1, signed with {federation.server_key}\n" in done.out
    assert "Sent the statistics of release 1\n" in done.out
    assert "--root-certificates CA.crt" in done.out
    assert "without it: --insecure instead" in done.out
    assert not path.exists()

    shown = mesofed("device", "inspect", sealed, "--raw")
    assert shown.code == 0, shown.text
    assert f"{sealed}: encrypted" in shown.text
    assert "person me: 3 history items; release 1" in shown.text
    assert "Sent: 2 answers" in shown.text
    assert "(empty: installed)" in shown.text
    data = content_to_bytes(replies[1])
    assert data.hex() in "".join(line.strip() for line in shown.out.splitlines())
    assert max(map(len, shown.out.splitlines())) <= 100
    record = replies[1]["router-statistics"]
    assert f"best-similarity {record['best-similarity']}" in shown.text
    assert "heliotrope" not in shown.text
    shown = mesofed("device", "inspect", sealed, "--errors")
    assert "query.router_statistics" in shown.text
    assert "does not hold the release" in shown.text


def test_start_refuses_what_it_cannot_serve(
    mesofed: Any, sealed: Path, federation: Any, tmp_path: Path, texts: Path, vault: Path
) -> None:
    config = ("--config", federation.run_dir / "config.toml")
    refused(mesofed("device", "start", vault), "Expected an encrypted vault")
    named = ("--allow-user", "nobody")
    refused(mesofed("device", "start", sealed, *named), "Expected --socket with --allow-user")
    unknown = ("--allow-user", "no such one", "--socket", tmp_path / "s")
    refused(mesofed("device", "start", sealed, *unknown), "got 'no such one'")
    for place in (texts, texts / "a.txt", tmp_path / "none" / "s", tmp_path / ("x" * 200)):
        done = mesofed("device", "start", sealed, "--socket", place, *config)
        refused(done, "Cannot listen at")
    assert (texts / "a.txt").read_text().startswith(SECRET)
    refused(
        mesofed("device", "start", sealed, "--config", tmp_path / "x"), "Cannot read the config"
    )
    (sealed / "server.pub").unlink()
    refused(mesofed("device", "start", sealed, *config), "mesofed device trust")


def test_a_vault_is_not_forgotten_while_an_agent_has_it(mesofed: Any, sealed: Path) -> None:
    before = contents(sealed)
    with owned(Vault(sealed)):
        refused(mesofed("device", "forget", sealed, "--yes"), "another process has it")
    assert contents(sealed) == before


def test_a_run_in_place_of_a_vault_is_told_the_name_of_one(mesofed: Any, federation: Any) -> None:
    done = mesofed("device", "inspect", federation.run_dir)
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert f"name a vault in it, such as {federation.run_dir / 'vaults' / '0000'}." in done.text


@pytest.mark.parametrize("name", ["person.jsonl", "journal", "journal.end", "installed.json"])
def test_inspect_names_the_damaged_file(
    mesofed: Any, sealed: Path, federation: Any, name: str
) -> None:
    home = opened(sealed)
    home.install(1, federation.release_files(1))
    home.sent.add({"time": "t", "request": "r", "release": 1, "question": "", "content": ""})
    data = bytearray((sealed / name).read_bytes())
    data[len(data) // 2] ^= 1
    (sealed / name).write_bytes(bytes(data))
    done = mesofed("device", "inspect", sealed)
    refused(done, name)
    assert "heliotrope" not in done.text


def everything_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def left_by_a_kill(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def went_wrong_beside(agent: Path) -> None:
    """Let a SuperNode's process ask an agent that is not there."""
    node = Context(1, 5, {"agent": str(agent)}, RecordDict(), {})
    become_server(1)
    message = Message(statistics_request(1), 5, ROUTER_STATISTICS, group_id="g")
    name_message(message, "m")
    assert app(message, node).has_error()


def test_forget_erases_what_the_device_has_left_outside(
    mesofed: Any,
    sealed: Path,
    short_path: Path,
    federation: Any,
    listens: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = short_path / "home"
    monkeypatch.setenv("HOME", str(home))
    usual, own = home / ".mesofed" / "sockets", short_path / "own" / "x.sock"
    own.parent.mkdir()
    config = ("--config", federation.run_dir / "config.toml")
    for path, named in ((usual / "me.sock", ()), (own, ("--socket", own))):
        arguments = (sealed, *named, *config)
        done, failed = start(mesofed, arguments, lambda p=path: listens(p), lambda: None)
        assert (done.code, failed) == (0, []), done.text
        went_wrong_beside(path)
        left_by_a_kill(path)
    for other in (usual / "you.sock", short_path / "me.sock"):
        left_by_a_kill(other)
        went_wrong_beside(other)
    before = everything_below(short_path)
    assert "home/.mesofed/sockets/me.sock.errors.log" in before
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / "another"))  # as from another login
    done = mesofed("device", "forget", sealed, "--yes")
    assert done.code == 0, done.text
    assert everything_below(short_path) == {
        f"{name}{ending}"
        for name in ("home/.mesofed/sockets/you.sock", "me.sock")  # of other vaults
        for ending in ("", ".errors.log")
    } | {name for name in before if name.startswith("texts")}
    for path in (usual / "me.sock", own):
        for gone in (path, Path(f"{path}.errors.log")):
            assert f"Outside of it, {gone} is gone too." in done.text


def test_forget_leaves_a_socket_that_another_vault_s_agent_listens_at(
    mesofed: Any, sealed: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch, listens: Any
) -> None:
    monkeypatch.setenv("HOME", str(short_path / "home"))
    path = short_path / "home" / ".mesofed" / "sockets" / "me.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(4)
        assert mesofed("device", "forget", sealed, "--yes").code == 0
        assert listens(path)
    assert not sealed.exists()


def test_forget_names_what_it_may_not_remove(
    mesofed: Any, sealed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, unlink = home / ".mesofed" / "sockets" / "me.sock.errors.log", Path.unlink
    log.parent.mkdir(parents=True)
    log.write_text("of another user")

    def denied(self: Path, missing_ok: bool = False) -> None:
        if self == log:
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", denied)
    done = mesofed("device", "forget", sealed, "--yes")
    refused(done, f"could not: {log}: Permission denied", "Remove it as the user who owns it")
    assert f"{sealed} is gone" in done.text
    assert not sealed.exists()


def test_forget_takes_the_log_beside_the_vault_of_a_simulation(
    mesofed: Any, vault: Path, tmp_path: Path
) -> None:
    shutil.copytree(vault, tmp_path / "vaults" / "0002")
    for name in ("0001", "0002"):
        (tmp_path / "vaults" / f"{name}.errors.log").write_text("private text")
    done = mesofed("device", "forget", tmp_path / "vaults" / "0002", "--yes")
    assert done.code == 0, done.text
    assert everything_below(tmp_path) == {"vaults/0001.errors.log"}


def test_the_keyring_opens_a_vault_and_forgets_it(
    mesofed: Any, texts: Path, tmp_path: Path, ring: Any
) -> None:
    home = tmp_path / "v"
    assert mesofed("device", "init", home, "--folder", texts).code == 0
    assert len(ring.kept) == 1
    assert "3 history items" in mesofed("device", "inspect", home).text
    assert mesofed("device", "forget", home, "--yes").code == 0
    assert ring.kept == {}


def test_inspect_says_what_privacy_is_left(mesofed: Any, tmp_path: Path) -> None:
    home = Vault(tmp_path / "vault")
    home.move_in(User("me", (), ()))
    config = tmp_path / "device.toml"
    config.write_text('[privacy]\nmode = "local"\nepsilon = 6.0\ndelta = 1e-6\n', encoding="utf-8")
    for release in (1, 2):
        entry = LedgerEntry(release, "local", 3.0, "2026-11-24T08:00:00+00:00")
        home.sent.add(
            {
                **{"time": "", "request": "r", "release": release, "question": "", "content": ""},
                "ledger": asdict(entry),
            }
        )
    done = mesofed("device", "inspect", tmp_path / "vault", "--config", config)
    assert done.code == 0, done.text
    cost = spent([LedgerEntry(1, "local", 3.0, "")] * 2, 1e-6)
    assert f"Privacy: epsilon {cost:.3f} of 6 is spent, at delta 1e-06, by 2 answers" in done.text


def test_inspect_says_how_often_an_answer_was_sent(mesofed: Any, tmp_path: Path) -> None:
    home = Vault(tmp_path / "vault")
    home.move_in(User("me", (), ()))
    data = content_to_bytes(RecordDict({"a": ConfigRecord({"b": 1})}))
    content = base64.b64encode(data).decode()
    for at in ("08:00", "08:01", "08:02"):
        home.sent.add(
            {"time": at, "request": "r", "release": 1, "question": "", "content": content}
        )
    for at in ("09:00", "09:01"):
        home.sent.add({"time": at, "request": "r", "release": 2, "question": "", "content": ""})
    home.sent.add({"time": "10:00", "request": "r", "release": 3, "question": "", "content": ""})
    done = mesofed("device", "inspect", tmp_path / "vault")
    assert done.code == 0, done.text
    assert f"Sent: 6 answers, 3 of them repeats, {3 * len(data)} bytes in all" in done.text
    assert "08:00 r release 1 sent 3 times, the same bytes, last at 08:02" in done.text
    assert "sent twice, the same bytes, last at 09:01" in done.text
    assert done.text.count("the same bytes") == 2


ASKING = """
from client.passphrase import passphrase_from
from shared.interrupt import stopping_at_once
with stopping_at_once():
    passphrase_from(None, variable="")()
"""


def test_stopped_while_a_passphrase_is_typed_the_terminal_shows_again_what_is_typed() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)[3]
    with subprocess.Popen(
        [sys.executable, "-c", ASKING],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        said = b""
        while b"Passphrase" not in said:
            said += os.read(ours, 1000)
        deadline = time.monotonic() + 20
        while termios.tcgetattr(theirs)[3] & termios.ECHO:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert termios.tcgetattr(theirs)[3] == before
    assert b"Stopped." in os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)


def test_without_a_terminal_a_passphrase_is_not_asked_for(
    mesofed: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESOFED_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    init = ("device", "init", tmp_path / "v", "--folder", texts, "--lock", "passphrase")
    refused(mesofed(*init), "or set $MESOFED_PASSPHRASE")
    assert not (tmp_path / "v").exists()


def test_forget_without_a_terminal_says_what_to_add_and_erases_nothing(
    mesofed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "lock.json").write_text("{}", encoding="utf-8")
    done = mesofed("device", "forget", vault)
    assert done.code == 1
    assert "with --yes nobody is asked" in done.text
    assert (vault / "lock.json").exists()
