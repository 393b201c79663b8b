"""What a command says fits its width; what is to be copied is whole."""

import io
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shared.console import output, say, shell_lines, wrapped

WORDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1))


def test_prose_is_broken_between_words_and_nothing_is_lost() -> None:
    text = "Expected a run in runs/one-two; there is none. Name the folder that was printed."
    for width in range(10, 90):
        lines = wrapped(text, width).split("\n")
        assert " ".join(lines) == text
        assert all(len(line) <= width or " " not in line for line in lines)
    assert wrapped(text, len(text)) == text


def test_a_line_of_a_list_goes_on_below_itself() -> None:
    text = "Not valid:\n  seed: one two three\n  x: y"
    assert wrapped(text, 14) == "Not valid:\n  seed: one\n    two three\n  x: y"


def test_a_long_path_stays_whole() -> None:
    path = "/a-b/" + "long-name/" * 12
    assert wrapped(f"Cannot read {path}: it is gone.", 40) == f"Cannot read\n{path}:\nit is gone."


def test_a_command_that_fits_stays_in_its_sentence() -> None:
    assert wrapped("Next: `mesofed report a`", 60) == "Next: mesofed report a"
    text = "Go on with `mesofed report a`, or stop."
    assert wrapped(text, 60) == text


def test_a_command_that_does_not_fit_gets_its_own_line() -> None:
    text = "Go on with `mesofed report a-folder`, or stop here."
    assert wrapped(text, 30) == "Go on with\n  mesofed report a-folder\nor stop here."


def test_a_command_that_is_too_wide_is_one_command_to_the_shell(tmp_path: Path) -> None:
    arguments = [
        "--set",
        "a.b=[\"x y\", 'z']",
        "a folder/x",
        "--out",
        "it's",
        *["--set", "c=1"] * 9,
    ]
    lines = shell_lines(shlex.join(["printf", r"%s\n", *arguments]), 40)
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (arguments, "")
    assert not any(line.rstrip(" \\").endswith(("--set", "--out")) for line in lines)


@given(WORDS.filter(bool), st.integers(8, 100))
def test_any_command_survives(words: list[str], width: int) -> None:
    lines = shell_lines(shlex.join(words), width)
    assert (
        shlex.split(" ".join(line.removesuffix("\\") for line in lines[:-1]) + lines[-1]) == words
    )


@pytest.mark.parametrize(("columns", "terminal", "width"), [(60, True, 60), (60, False, 100)])
def test_off_a_terminal_it_is_a_hundred_columns(columns: int, terminal: bool, width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=columns, force_terminal=terminal, no_color=True)
    say(console, "word " * 50)
    lines = file.getvalue().splitlines()
    assert width - 5 <= max(map(len, lines)) <= width


def test_results_are_a_hundred_columns_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert output().width == 100
