"""`mesofed release`: what a release holds, and its parts as PEFT adapters."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.base_model import BaseModel
from shared.lora.peft_format import load_peft


def test_show_says_what_is_in_a_release(federation: Any, mesofed: Any) -> None:
    shown = mesofed("release", "show", federation.run_dir / "releases" / "r2")
    assert shown.code == 0
    assert "release 2" in shown.text
    assert "2 of rank 2" in shown.text  # experts
    assert "3 of rank 2" in shown.text  # anchors
    for name in ("population", "experts", "bank", "router"):
        assert f"{name}.safetensors" in shown.text
    assert "All files are what manifest.json names." in shown.text


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
    assert "bank.safetensors of release 1 is not what its manifest names" in shown.text
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
    assert mesofed(*arguments, "--config", federation.run_dir / "config.toml").code == 0


def test_export_leaves_a_folder_with_other_things_alone(
    federation: Any, mesofed: Any, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    folder = federation.run_dir / "releases" / "r1"
    done = mesofed("release", "export", folder, "--part", "population", "--out", tmp_path)
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "thesis.tex" in done.text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
