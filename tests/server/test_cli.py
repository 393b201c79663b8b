"""`mesofed release`: what a release holds, and its parts as PEFT adapters."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.signing_keys import signer
from shared.base_model import BaseModel
from shared.lora.peft_format import load_peft
from shared.release_files import write_release_files
from shared.retrieval import Examples
from shared.signature import sign_release, verify_signature


def test_show_says_what_is_in_a_release(federation: Any, mesofed: Any) -> None:
    shown = mesofed("release", "show", federation.run_dir / "releases" / "r2")
    assert shown.code == 0
    assert "release 2" in shown.text
    assert "2 of rank 2" in shown.text  # experts
    assert "3 of rank 2" in shown.text  # anchors
    for name in ("population", "experts", "bank", "router"):
        assert f"{name}.safetensors" in shown.text
    assert shown.out.splitlines()[0] == "Good: all files are what manifest.json names."


def test_show_refuses_a_changed_file_without_a_traceback(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "r1"
    shutil.copytree(federation.run_dir / "releases" / "r1", folder)
    data = bytearray((folder / "bank.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "bank.safetensors").write_bytes(bytes(data))
    shown = mesofed("release", "show", folder)
    assert shown.code == 1
    assert shown.text.startswith(
        "Error: Damaged. bank.safetensors of release 1 is not what its manifest names"
    )
    assert "Traceback" not in shown.text


def test_show_of_a_folder_without_a_release(mesofed: Any, tmp_path: Path) -> None:
    shown = mesofed("release", "show", tmp_path)
    assert (shown.code, "Traceback" in shown.text) == (1, False)
    assert "Expected a release in" in shown.text


@pytest.mark.parametrize("alone", [False, True], ids=["over population", "alone"])
@pytest.mark.parametrize(("part", "rank"), [("population", 0), ("expert:1", 2), ("anchor:2", 2)])
def test_export_writes_the_part_as_a_peft_adapter(
    part: str, rank: int, alone: bool, federation: Any, base: BaseModel, mesofed: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = federation.run_dir / "releases" / "r1"
    more = ("--alone",) if alone else ()
    done = mesofed("release", "export", folder, "--part", part, "--out", tmp_path / "a", *more)
    assert done.code == 0, done.text
    with_population = not alone or part == "population"
    assert f"Rank {rank + 4 * with_population}," in done.text
    assert ("roup expert 1 (E2 in reports)" in " ".join(done.text.split())) == (part == "expert:1")
    assert ("alone: it was trained over the population LoRA" in done.text) != with_population
    release = federation.release(1, base)
    kind, _, number = part.partition(":")
    own = {
        "population": lambda: None,
        "expert": lambda: release.experts[int(number)],
        "anchor": lambda: release.bank[int(number)],
    }[kind]()
    loaded = load_peft(tmp_path / "a", base.maps)
    for name, factors in release.population:
        expected = torch.zeros_like(factors.delta())
        expected += factors.delta() if with_population else 0
        expected += own.factors[name].delta() if own is not None else 0
        torch.testing.assert_close(loaded.factors[name].delta(), expected)


def test_export_of_an_unknown_part_lists_the_parts(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    folder = federation.run_dir / "releases" / "r1"
    done = mesofed("release", "export", folder, "--part", "expert:2", "--out", tmp_path / "a")
    assert done.code == 1
    assert "population, expert:0, expert:1, anchor:0, anchor:1, anchor:2" in done.text
    assert not (tmp_path / "a").exists()


def test_export_outside_a_run_asks_for_the_config(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "r1"
    shutil.copytree(federation.run_dir / "releases" / "r1", folder)
    arguments = ("release", "export", folder, "--part", "population", "--out", tmp_path / "a")
    refused = mesofed(*arguments)
    assert refused.code == 1
    assert "name one with --config" in refused.text
    configured = (*arguments, "--config", federation.run_dir / "config.toml")
    assert mesofed(*configured).code == 0
    again = mesofed(*configured)
    assert (again.code, "Add --force" in again.text) == (1, True)
    assert mesofed(*configured, "--force").code == 0


def test_export_leaves_a_folder_with_other_things_alone(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    folder = federation.run_dir / "releases" / "r1"
    done = mesofed("release", "export", folder, "--part", "population", "--out", tmp_path)
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "thesis.tex" in done.text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# Keys and signatures


def test_show_says_who_signed(federation: Any, mesofed: Any, tmp_path: Path) -> None:
    release = federation.run_dir / "releases" / "r1"
    shown = mesofed("release", "show", release)
    assert f"Signed with {federation.server_key}." in shown.text
    folder = tmp_path / "r1"
    shutil.copytree(release, folder)
    (folder / "manifest.sig").unlink()
    shown = mesofed("release", "show", folder)
    assert shown.code == 0
    assert shown.out.startswith("Not signed: no device takes it.")


def test_show_refuses_a_signature_of_something_else(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "r1"
    shutil.copytree(federation.run_dir / "releases" / "r1", folder)
    for data in (
        (federation.run_dir / "releases" / "r2" / "manifest.sig").read_bytes(),
        b"",
        b"{}",
        b"\xff" * 50,
    ):
        (folder / "manifest.sig").write_bytes(data)
        shown = mesofed("release", "show", folder)
        assert (shown.code, "Traceback" in shown.text) == (1, False)
        assert shown.text.startswith("Error: Its signature is not valid. ")
        assert shown.out == ""
        assert "Do not use it." in shown.text


def test_key_makes_one_and_prints_the_same_afterwards(mesofed: Any, tmp_path: Path) -> None:
    made = mesofed("release", "key", tmp_path / "keys")
    assert made.code == 0, made.text
    public = made.out.splitlines()[0]
    assert (tmp_path / "keys" / "release.pub").read_text().strip() == public
    assert f"--server-key {public}" in made.out
    assert mesofed("release", "key", tmp_path / "keys").out == made.out


def test_rotate_replaces_the_key_and_a_release_carries_the_chain(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    old = mesofed("release", "key", tmp_path).out.splitlines()[0]
    done = mesofed("release", "rotate", tmp_path)
    assert done.code == 0, done.text
    new = done.out.splitlines()[0]
    assert new != old
    assert mesofed("release", "key", tmp_path).out.splitlines()[0] == new
    files = sign_release(federation.release_files(1), signer(tmp_path))
    assert verify_signature(files, old) == verify_signature(files, new) == new


def test_rotate_without_a_key_and_a_file_for_a_folder_end_in_a_sentence(
    mesofed: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for arguments in (
        ("rotate", tmp_path / "none"),
        ("rotate", tmp_path / "file"),
        ("key", tmp_path / "file"),
        ("show", tmp_path / "file"),
    ):
        done = mesofed("release", *arguments)
        assert (done.code, "Traceback" in done.text) == (1, False), arguments
        assert "Error: " in done.text
    assert mesofed("release", "rotate").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_show_of_a_folder_with_another_folder_in_it(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "r1"
    shutil.copytree(federation.run_dir / "releases" / "r1", folder)
    (folder / "more").mkdir()
    shown = mesofed("release", "show", folder)
    assert (shown.code, "Traceback" in shown.text) == (1, False)
    assert "more" in shown.text


def test_show_and_export_say_what_stands_before_questions(
    federation: Any, base: BaseModel, mesofed: Any, tmp_path: Path
) -> None:
    release = replace(federation.release(1, base), examples=Examples(2, 48, ("headline",)))
    folder = tmp_path / "r1"
    write_release_files(folder, federation.signed(release))
    shown = mesofed("release", "show", folder)
    assert "own items before headline: 2 items, cut to 48 tokens" in shown.text
    plain = mesofed("release", "show", federation.run_dir / "releases" / "r1")
    assert "own items before no question" in plain.text
    config = ("--config", federation.run_dir / "config.toml")
    for source, told in ((folder, True), (federation.run_dir / "releases" / "r1", False)):
        out = tmp_path / f"adapter-{told}"
        done = mesofed("release", "export", source, "--part", "population", "--out", out, *config)
        assert done.code == 0, done.text
        card = " ".join((out / "README.md").read_text(encoding="utf-8").split())
        words = "with up to 2 own items, cut to 48 tokens, before questions of headline"
        assert (words in card) == told
