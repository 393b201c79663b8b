"""The root command: light to start, and clear about what went wrong."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = {"simulate", "report", "device", "release", "data", "models"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        *((name, "--help") for name in sorted(COMMANDS)),
        ("device", "ask", "--help"),
        ("release", "export", "--help"),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from shared.cli import main\n"
        f"sys.argv = ['mesofed', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'flwr', 'sklearn', 'matplotlib', 'numpy', 'ray'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert "Usage: mesofed" in done.stdout


def test_help_lists_every_command(mesofed: Any) -> None:
    shown = mesofed("--help")
    assert shown.code == 0
    for name in COMMANDS:
        assert f"│ {name} " in shown.out
    assert "130 stopped by Ctrl-C" in shown.text


def test_an_unknown_command_is_wrong_usage(mesofed: Any) -> None:
    done = mesofed("simulat")
    assert done.code == 2
    assert "No such command 'simulat'" in done.text


ASK = (
    "What is the score of the following movie on a scale of 1 to 5? just answer with 1, 2, 3, 4, "
    "or 5 without further explanation. movie: "
)


def person(user_id: str, **changes: Any) -> str:
    record = {
        "user_id": user_id,
        "task": "LaMP_3",
        "profile": [
            {"id": "1", "text": "a fine film", "score": "4"},
            {"id": "2", "text": "a dull film", "score": "2"},
        ],
        "query": [{"id": "q", "input": f"{ASK}A long film.", "gold": "5"}],
        **changes,
    }
    return json.dumps(record) + "\n"


def test_a_sound_file_is_described(mesofed: Any, tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(person("ann") + person("bo"))
    done = mesofed("data", "check", path)
    assert done.code == 0, done.text
    assert "users 2" in done.text
    assert "history items 4" in done.text
    assert f"--set corpus.source=jsonl --set corpus.path={path}" in done.text


@pytest.mark.parametrize(
    ("second", "where"),
    [
        ('{"user_id": \n', ":2"),
        (person("ann"), ":2"),  # the same id twice
        (person("bo", profile=[]), ":2"),
        (person("bo", query=[{"id": "q", "input": f"{ASK}It is.", "gold": "9"}]), ":2"),
        (person("bo", task="LaMP_99"), ":2"),
    ],
    ids=["broken JSON", "duplicate", "empty profile", "unknown label", "unknown task"],
)
def test_a_bad_line_is_named_with_what_was_expected(
    second: str, where: str, mesofed: Any, tmp_path: Path
) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(person("ann") + second + person("cy"), encoding="utf-8")
    done = mesofed("data", "check", path)
    assert done.code == 1
    assert "problem" in done.text
    assert f"people.jsonl{where}" in done.text
    assert "expected" in done.text
    assert "Traceback" not in done.text
    assert "users 2" in done.text


def test_a_missing_file_and_a_wrong_task(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("data", "check", tmp_path / "none.jsonl")
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "none.jsonl" in done.text
    path = tmp_path / "people.jsonl"
    path.write_text(person("ann"), encoding="utf-8")
    done = mesofed("data", "check", path, "--task", "no_task")
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "no_task" in done.text
    done = mesofed("data", "check", path, "--task", "news_headline")
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "expected" in done.text


def test_brackets_in_an_error_are_no_markup(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("simulate", "--resume", tmp_path / "[bold]run[/bold]")
    assert done.code == 1
    assert "[bold]run[/bold]" in done.text


def test_models_lists_the_embedded_ones(mesofed: Any) -> None:
    done = mesofed("models")
    assert done.code == 0, done.text
    (tiny,) = (line for line in done.out.splitlines() if line.split()[:1] == ["tiny"])
    assert "yes" in tiny.split()
    assert any(line.split()[:1] == ["smollm2"] for line in done.out.splitlines())


def test_a_command_stopped_early_ends_with_130(
    mesofed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shared.corpus.load

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(shared.corpus.load, "check_file", interrupted)
    done = mesofed("data", "check", tmp_path / "people.jsonl")
    assert (done.code, "Traceback" in done.text) == (130, False)
