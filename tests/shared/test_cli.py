"""The root command: light to start, and clear about what went wrong."""

import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = {
    "simulate",
    "compare",
    "report",
    "audit",
    "bench",
    "device",
    "release",
    "data",
    "models",
}


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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("audti",), "audit"),
        (("simulat",), "simulate"),
        (("device", "insepct"), "inspect"),
        (("release", "sho"), "show"),
    ],
    ids=str,
)
def test_a_misspelt_command_is_told_what_it_may_have_meant(
    typed: tuple[str, ...], meant: str, mesofed: Any
) -> None:
    done = mesofed(*typed)
    assert done.code == 2
    assert f"No such command '{typed[-1]}' (did you mean '{meant}'?)." in done.text
    assert done.text.count("did you mean") == 1


def test_a_word_like_no_command_gets_no_suggestion(mesofed: Any) -> None:
    done = mesofed("xyzzy")
    assert (done.code, "mean" in done.text) == (2, False)
    assert "No such command 'xyzzy'." in done.text


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
        file.write(person("ann") + person("bo") + person("cy"))
    done = mesofed("data", "check", path)
    assert done.code == 0, done.text
    assert "users 3" in done.text
    assert "history items 6" in done.text
    assert f"--set corpus.path={path}" in done.text


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


def test_of_a_missing_file_nothing_else_is_said(mesofed: Any, tmp_path: Path) -> None:
    people, missing = tmp_path / "people.jsonl", tmp_path / "none.jsonl"
    people.write_text(person("ann"), encoding="utf-8")
    for arguments, said in (
        ((missing,), f"{missing}: No such file or directory"),
        ((tmp_path,), f"{tmp_path}: Is a directory"),
        ((people, "--outputs", missing), f"{missing}: No such file or directory"),
    ):
        done = mesofed("data", "check", *arguments)
        assert (done.code, done.out) == (1, "")
        assert done.text == f"Error: Cannot read {said}."


def test_a_wrong_task(mesofed: Any, tmp_path: Path) -> None:
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


def test_too_few_people_for_a_simulation_are_said_to_be(mesofed: Any, tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(person("ann") + person("bo"), encoding="utf-8")
    done = mesofed("data", "check", path)
    assert done.code == 1
    assert "too few people for a simulation: it needs at least 3 users" in done.text
    assert "mesofed simulate" not in done.text


def test_problems_that_are_not_shown_are_counted(mesofed: Any, tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(person("ann") + "{\n" * 73, encoding="utf-8")
    done = mesofed("data", "check", path)
    assert (done.code, "73 problems" in done.text) == (1, True)
    assert done.out.count("people.jsonl:") == 20
    assert "and 53 more" in done.text
    assert "corpus.bad_input=skip" in done.text


def test_where_nothing_is_left_skipping_is_no_advice(mesofed: Any, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("{\n", encoding="utf-8")
    done = mesofed("data", "check", tmp_path / "none.jsonl")
    assert "No usable user is left" in done.text
    assert "bad_input" not in done.text


def run_cli(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, off a terminal; ``code`` runs after it."""
    script = (
        "import sys\n"
        "from shared.cli import main\n"
        f"sys.argv = ['mesofed', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    {code or 'pass'}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "FORCE_COLOR"}}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "--set", "x=1"),
        ("simulate", "nowhere.toml"),
        ("simulate", "--set", "corpus.source=jsonl", "--set", "corpus.path=nowhere.jsonl"),
        ("simulate", "--resume", "nowhere"),
        ("report", "nowhere"),
        ("device", "ask", "nowhere", "hello"),
        ("device", "export", "nowhere", "--out", "out"),
        ("device", "inspect", "nowhere"),
        ("device", "ask", "nowhere", "hello", "--method", "mezo"),
        ("release", "show", "nowhere"),
        ("release", "export", "nowhere", "--part", "population", "--out", "out"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_before_anything_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    heavy = "{'torch', 'transformers', 'flwr', 'sklearn', 'matplotlib', 'peft'}"
    done = run_cli(*arguments, code=f"print('LOADED', sorted({heavy} & set(sys.modules)))")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_looking_at_a_vault_loads_no_library_of_models(tmp_path: Path) -> None:
    people = tmp_path / "texts"
    people.mkdir()
    (people / "one.txt").write_text("Some words about nothing.\n\nAnd some more of them.\n")
    (tmp_path / "passphrase").write_text("long enough to be one\n")
    vault, locked = str(tmp_path / "vault"), f"--passphrase-file={tmp_path / 'passphrase'}"
    loaded = "print('LOADED', sorted({'transformers', 'peft', 'sklearn'} & set(sys.modules)))"
    for arguments in (
        ("device", "init", vault, "--folder", str(people), "--lock=passphrase", locked),
        ("device", "inspect", vault, locked),
        ("device", "forget", vault, "--yes"),
    ):
        done = run_cli(*arguments, code=loaded)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "LOADED []", arguments


def test_off_a_terminal_an_error_is_a_hundred_columns_wide_and_paths_stay_whole(
    tmp_path: Path,
) -> None:
    long = tmp_path / ("a-long-name-" * 12)
    done = run_cli("report", str(long))
    lines = done.stderr.splitlines()
    assert len(lines) > 1
    assert str(long) in " ".join(lines)
    assert [line for line in lines if len(line) > 100] == [
        line for line in lines if str(long) in line
    ]


def test_the_next_command_can_be_copied_whatever_its_width(tmp_path: Path) -> None:
    path = tmp_path / ("a-long-name-" * 5) / "people.jsonl"
    path.parent.mkdir()
    path.write_text("".join(person(name) for name in ("ann", "bo", "cy")), encoding="utf-8")
    done = run_cli("data", "check", str(path))
    assert done.returncode == 0, done.stderr
    said = done.stdout[done.stdout.index("Sound. Next:") :].removeprefix("Sound. Next:")
    words = shlex.split(said.replace("\\\n", ""))
    assert words[1:] == [
        "simulate", "--set", "corpus.source=jsonl", "--set", f"corpus.path={path}",
        # Nobody has the four items that an anchor has by default.
        "--set", "bank.min_history=2",
    ]  # fmt: skip
    assert all(len(line) <= 100 for line in said.splitlines() if str(path) not in line)


def test_every_model_s_note_is_readable(mesofed: Any) -> None:
    lines = mesofed("models").out.splitlines()
    assert "tiny: random weights over bytes: for tests and trials, it knows nothing" in lines
