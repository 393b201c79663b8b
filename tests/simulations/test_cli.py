"""`mesofed simulate` and `mesofed report`: what goes wrong ends in a sentence and a number."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import simulations.prepare
from shared.errors import MesofedError
from shared.run_record import RUN_FORMAT

ASK = (
    "What is the score of the following movie on a scale of 1 to 5? just answer with 1, 2, 3, 4, "
    "or 5 without further explanation. movie: "
)
HEADLINE = "Generate a headline for the following article:"
TINY = ("--set", "base.name=tiny", "--set", "base.format=fp32")


def no_traceback(outcome: Any) -> bool:
    return "Traceback" not in outcome.text and "Error:" in outcome.text


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("corpus.server_user=3", "corpus.server_user"),
        ("sed=3", "sed"),
        ("seed=-1", "seed"),
        ("seed=soon", "got 'soon'"),
        ('methods=["oppo"]', "oppo"),
        ("engine=cloud", "expected local or ray; got 'cloud'"),
        ("seed", "Expected --set section.field=value; got 'seed'"),
        ("seed.x.y=1", "seed"),
        ("corpus.source=jsonl", "needs corpus.path=FILE"),
        ("corpus.path=people.jsonl", "needs corpus.source=jsonl"),
        ("rounds.devices=3", "Expected rounds.devices=0 in a simulation"),
    ],
)
def test_a_wrong_setting_is_named(assignment: str, said: str, mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("simulate", *TINY, "--set", assignment, "--out", tmp_path / "run")
    assert done.code == 1, done.text
    assert no_traceback(done)
    assert said in done.text
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_not_there_or_not_toml(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("simulate", tmp_path / "none.toml", "--out", tmp_path / "run")
    assert (done.code, no_traceback(done)) == (1, True)
    assert "none.toml" in done.text
    (tmp_path / "bad.toml").write_text("seed = = 3", encoding="utf-8")
    done = mesofed("simulate", tmp_path / "bad.toml", "--out", tmp_path / "run")
    assert (done.code, no_traceback(done)) == (1, True)
    assert "Expected TOML in" in done.text
    assert not (tmp_path / "run").exists()


def test_a_corpus_file_that_is_not_there(mesofed: Any, tmp_path: Path) -> None:
    missing = tmp_path / "people.jsonl"
    done = mesofed(
        "simulate", *TINY, "--set", "corpus.source=jsonl", "--set", f"corpus.path={missing}",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert (done.code, no_traceback(done)) == (1, True)
    assert "people.jsonl" in done.text
    assert not (tmp_path / "run").exists()


def test_a_broken_corpus_names_file_and_line(mesofed: Any, tmp_path: Path) -> None:
    broken = tmp_path / "people.jsonl"
    good = {
        "user_id": "ann",
        "task": "LaMP_3",
        "profile": [{"id": "1", "text": "fine", "score": "4"}],
        "query": [
            {
                "id": "q",
                "input": f"{ASK}Well.",
                "gold": "5",
            }
        ],
    }
    broken.write_text(json.dumps(good) + '\n{"user_id": "bo", "task"\n', encoding="utf-8")
    done = mesofed(
        "simulate", *TINY, "--set", "corpus.source=jsonl", "--set", f"corpus.path={broken}",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert (done.code, no_traceback(done)) == (1, True)
    assert "people.jsonl:2" in done.text.replace(" ", "")
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_of_a_corpus_is_said(
    mesofed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(config: Any) -> None:
        raise MesofedError("Enough seen.")

    monkeypatch.setattr(simulations.prepare, "load_model", stop)
    people = [
        {
            "user_id": f"u{i}",
            "task": "LaMP_4",
            "profile": [{"id": f"{i}{j}", "text": f"{i}{j}.", "title": "Mine"} for j in range(4)],
            "query": [{"id": f"q{i}", "input": f"{HEADLINE} More.", "gold": "Mine too"}],
        }
        for i in range(3)
    ]
    lines = [json.dumps(person) for person in people]
    (tmp_path / "people.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
    done = mesofed(
        "simulate", *TINY, "--set", "corpus.source=jsonl", "--set", "corpus.bad_input=skip",
        "--set", f"corpus.path={tmp_path / 'people.jsonl'}", "--out", tmp_path / "run",
    )  # fmt: skip
    assert "Enough seen." in done.text
    told = done.text.replace("\n", " ")
    assert "Left out of the corpus: 1, the first at" in told
    assert "people.jsonl:2" in told
    assert "mesofed data check" in told


def test_a_bank_that_nobody_has_the_history_for_is_refused_at_once(
    mesofed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulations.prepare, "load_model", None)
    run = tmp_path / "run"
    done = mesofed("simulate", *TINY, "--set", "bank.min_history=99", "--out", run)
    assert done.code == 1
    assert no_traceback(done)
    told = " ".join(done.text.split())
    assert "at least 99 history items to be an anchor; the longest history among them" in told
    assert not run.exists()


def test_resuming_what_is_not_a_run(mesofed: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        done = mesofed("simulate", "--resume", folder)
        assert (done.code, no_traceback(done)) == (1, True)
        assert "Expected a run in" in done.text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "comparison.toml").write_text("")
    done = mesofed("report", tmp_path)
    assert f"compare --resume {tmp_path}" in " ".join(done.text.replace("\\\n", "").split())


@pytest.mark.parametrize(
    "more", [("--set", "seed=1"), ("--out", "elsewhere"), ("config.toml",)], ids=str
)
def test_a_resumed_run_keeps_its_settings(
    more: tuple[str, ...], mesofed: Any, federation: Any
) -> None:
    done = mesofed("simulate", "--resume", federation.run_dir, *more)
    assert (done.code, no_traceback(done)) == (1, True)
    assert "Expected --resume RUN alone" in done.text


def test_a_folder_that_holds_a_run_is_not_overwritten(mesofed: Any, federation: Any) -> None:
    before = (federation.run_dir / "config.toml").read_bytes()
    done = mesofed("simulate", *TINY, "--out", federation.run_dir)
    assert (done.code, no_traceback(done)) == (1, True)
    assert f"mesofed simulate --resume {federation.run_dir}" in done.text
    assert (federation.run_dir / "config.toml").read_bytes() == before


def test_a_wrong_option_is_wrong_usage(mesofed: Any) -> None:
    assert mesofed("simulate", "--users", "3").code == 2
    assert mesofed("report").code == 2


def test_resuming_a_finished_run_trains_nothing_and_prints_its_table(
    mesofed: Any, federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client.device
    import server.training

    def refuse(*args: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(server.training, "train_population", refuse)
    monkeypatch.setattr(client.device, "begin_personalising", refuse)
    run = tmp_path / "run"
    shutil.copytree(federation.run_dir, run)
    done = mesofed("simulate", "--resume", run)
    assert done.code == 0, done.text
    for method in federation.config.methods:
        assert method in done.out
    assert f"Report: {run / 'report.html'}" in done.out


@pytest.mark.parametrize("change", [{"run_format": 1}, {"run_format": None}])
def test_a_run_of_a_version_that_answers_otherwise_is_reported_and_not_resumed(
    mesofed: Any, federation: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(federation.run_dir, run)
    record = json.loads((run / "run.json").read_text(encoding="utf-8")) | change
    kept = {name: value for name, value in record.items() if value is not None}
    (run / "run.json").write_text(json.dumps(kept), encoding="utf-8")
    done = mesofed("simulate", "--resume", run)
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert f"Expected a run of format {RUN_FORMAT}" in done.text
    assert "it is of format 1" in done.text
    assert mesofed("report", run).code == 0


def test_report_writes_the_report_anew(mesofed: Any, federation: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(federation.run_dir, run)
    for name in ("report.html", "summary.json", "metrics.jsonl"):
        (run / name).unlink()
    done = mesofed("report", run)
    assert done.code == 0, done.text
    for name in ("summary.json", "metrics.jsonl"):
        assert (run / name).read_bytes() == (federation.run_dir / name).read_bytes()
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")
    assert f"Report: {run / 'report.html'}" in done.out
    markdown = mesofed("report", run, "--markdown")
    assert markdown.code == 0
    assert "| " in markdown.out
    assert "|---" in markdown.out.replace(" ", "").replace(":", "")


def test_report_of_what_is_not_a_run(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("report", tmp_path)
    assert (done.code, no_traceback(done)) == (1, True)
    assert "Expected a run in" in done.text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "comparison.toml").write_text("")
    done = mesofed("report", tmp_path)
    assert f"compare --resume {tmp_path}" in " ".join(done.text.replace("\\\n", "").split())


def test_a_sum_that_could_never_be_opened_is_refused_before_anything_is_trained(
    mesofed: Any, tmp_path: Path
) -> None:
    few = ("--set", "privacy.mode=central", "--set", "corpus.device_users=2")
    done = mesofed("simulate", *TINY, *few, "--out", tmp_path / "run")
    assert done.code == 1, done.text
    assert no_traceback(done)
    assert "Expected at least 3 devices for privacy.mode=central" in done.text
    assert "got 2" in done.text
    assert not (tmp_path / "run").exists()
