"""Hints of further commands can be pasted as they are."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.program import command, command_elsewhere, program


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a virtual environment that is not on the PATH."""
    script = tmp_path / ".venv" / "bin" / "mesofed"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    return tmp_path


def test_a_command_is_named_as_it_was_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for called in (".venv/bin/mesofed", str(folder / ".venv/bin/mesofed")):
        monkeypatch.setattr(sys, "argv", [called, "simulate"])
        assert program() == called


def test_on_the_path_the_bare_name_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{folder / '.venv/bin'}:/usr/bin")
    monkeypatch.setattr(sys, "argv", [str(folder / ".venv/bin/mesofed"), "simulate"])
    assert program() == "mesofed"


def test_under_another_command_it_is_the_one_beside_the_interpreter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-serverapp", "--insecure"])
    monkeypatch.setattr(sys, "executable", str(folder / ".venv/bin/python"))
    assert program() == str(folder / ".venv/bin/mesofed")
    (folder / ".venv/bin/mesofed").unlink()
    assert program() == "mesofed"


def test_arguments_survive_the_shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/mesofed"])
    assert command("report", Path("my runs/a")) == ".venv/bin/mesofed report 'my runs/a'"


def test_on_another_machine_it_has_the_bare_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/mesofed"])
    assert command_elsewhere("device", "init", "my vault") == "mesofed device init 'my vault'"


ROOT = Path(__file__).parents[2]
WRITTEN = re.compile(
    r"\bmesofed (simulate|report|compare|audit|bench|data|models|device|release) ?"
)


def said(source: str) -> Iterator[str]:
    """Yield every text in a module but docstrings."""
    tree = ast.parse(source)
    notes = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in notes:
            yield node.value


def test_no_hint_of_a_command_is_written_out() -> None:
    assert list(said('"""`mesofed audit`"""\nx = f"{y}`mesofed audit`"')) == ["`mesofed audit`"]
    found, read = [], 0
    for package in ("client", "server", "shared", "simulations"):
        for path in sorted((ROOT / package).rglob("*.py")):
            texts = [
                text for text in said(path.read_text(encoding="utf-8")) if WRITTEN.search(text)
            ]
            read += 1
            found += [str(path.relative_to(ROOT))] if texts else []
    assert read > 100
    # It writes the settings files in docs/, which are documents.
    assert found == ["shared/sample_settings.py"]
