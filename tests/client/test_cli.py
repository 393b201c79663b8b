"""`mesofed device`: create, ask and export a vault."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from client.device import Device
from client.lock import unlock
from client.vault import Vault
from shared.base_model import BaseModel
from shared.corpus.user import User
from shared.lora.peft_format import load_peft
from shared.privacy import LedgerEntry, spent


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


def test_export_writes_the_whole_stack_of_the_person(
    federation: Any, vault: Path, base: BaseModel, mesofed: Any, tmp_path: Path
) -> None:
    arguments = ("device", "export", vault, "--out", tmp_path / "mine", "--method", "meso-tuned")
    done = mesofed(*arguments)
    assert done.code == 0, done.text
    # population 4 + two experts of 2 + two anchors of 2 + stack 1
    assert "Rank 13" in done.text
    config = federation.config
    device = Device(base, Vault(vault), config.methods, config.private, config.seed)
    stack = device.personalised("meso-tuned")
    loaded = load_peft(tmp_path / "mine", base.maps)
    for name, factors in loaded:
        assert stack.private is not None
        expected = stack.private.factors[name].delta() + sum(
            float(weight) * lora.factors[name].delta()
            for lora, weight in zip(stack.shared, stack.weights, strict=True)
        )
        torch.testing.assert_close(factors.delta(), expected, atol=1e-5, rtol=1e-4)


def test_the_base_model_alone_has_nothing_to_export(
    vault: Path, mesofed: Any, tmp_path: Path
) -> None:
    done = mesofed("device", "export", vault, "--out", tmp_path / "b", "--method", "base")
    assert done.code == 1
    assert "nothing to export" in done.text
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [("oppo", "got method 'oppo'"), ("mta", "Expected mta to be trained for release 2")],
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


def test_inspect_says_what_privacy_is_left(mesofed: Any, tmp_path: Path) -> None:
    home = Vault(tmp_path / "vault")
    home.move_in(User("me", (), ()))
    config = tmp_path / "device.toml"
    config.write_text('[privacy]\nmode = "local"\nepsilon = 6.0\ndelta = 1e-6\n', encoding="utf-8")
    for release in (1, 2):
        entry = LedgerEntry(release, "local", 3.0, "2026-11-24T08:00:00+00:00")
        home.journal.append(
            {"time": "", "request": "r", "release": release, "content": "", "ledger": asdict(entry)}
        )
    done = mesofed("device", "inspect", tmp_path / "vault", "--config", config)
    assert done.code == 0, done.text
    cost = spent([LedgerEntry(1, "local", 3.0, "")] * 2, 1e-6)
    assert f"Privacy: epsilon {cost:.3f} of 6 is spent, at delta 1e-06, by 2 answers" in done.text
