"""`mesofed bench`: table, JSON, page, one next step; what goes wrong ends in a sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.benchmarks.bench import measure
from simulations.benchmarks.catalogue import ROWS, Row, chosen
from simulations.benchmarks.machine import describe_machine
from simulations.benchmarks.measurement import (
    Bar,
    Equality,
    Figure,
    Finding,
    Settings,
)
from simulations.benchmarks.page import render_page
from simulations.benchmarks.results import Results
from simulations.benchmarks.table import render_results
from simulations.benchmarks.wording import headline, next_step, spread, value

MET = Figure("train 8 users", "PEFT loop", (4.0, 4.4, 5.0), Bar(4.0, at_least=True), 5.8)
MISSED = Figure(
    "peak memory", "PEFT <fp32>", (1.4, 1.5, 1.6), Bar(1.3, False), higher_is_better=False
)
EXACT = Figure("trained LoRAs", "alone", (0.0,), Bar(0.0, False), unit="difference")
FORMATS = [
    {
        "format": form,
        "footprint_bytes": 5 << 20,
        "footprint": 1.0,
        "decode": 1.0,
        "training_step": 1.0,
        "loss": 3.0,
        "training_loss": 3.0,
        "gradient_cosine": 1.0,
    }
    for form in ("fp32", "bf16", "int8", "nf4")
]


@pytest.fixture
def results() -> Results:
    found = Results(Settings("smollm2", 3, 1), describe_machine(Settings(threads=1)))
    found.findings["train-all"] = Finding(
        (MET, MISSED), (Equality("gradients", 1e-6, 1e-4),), {"PEFT loop": (4.0, 4.4, 5.0)}
    )
    found.findings["alone"] = Finding((EXACT,))
    found.findings["round"] = Finding(skipped="the peer needs Ray")
    found.findings["quantised"] = Finding(facts={"formats": FORMATS})
    return found


def printed(results: Results) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render_results(results))
    return capture.get().splitlines()


def test_the_table_fits_and_says_what_is_met(results: Results) -> None:
    lines = printed(results)
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    said = "\n".join(lines)
    assert re.search(r"train 8 users.* 4\.40x\s+4\.00–5\.00x\s+≥4x\s+5\.80x\s+✓", said)
    assert re.search(r"peak memory.* 1\.50x\s+1\.40–1\.60x\s+≤1\.3x\s+✗", said)
    assert re.search(r"trained LoRAs.* 0\s+bit-equal\s+✓", said)
    assert any("Left out: round: the peer needs Ray." in line for line in lines)
    assert any(line.startswith("nf4") for line in lines)


def test_every_row_fits_the_table() -> None:
    widest = Figure(
        "8 experts + private, 8 users, fp32", "reload, wrap, set, get", (4000.0, 5000.0)
    )
    found = Results(Settings(), describe_machine(Settings()), {"mixture": Finding((widest,))})
    assert "…" not in "".join(printed(found))
    assert max(map(len, printed(found))) <= 100


def test_the_json_holds_every_number(results: Results, tmp_path: Path) -> None:
    read = json.loads(results.write(tmp_path).read_text(encoding="utf-8"))
    assert read["settings"] == {"model": "smollm2", "rounds": 3, "threads": 1}
    assert {"device", "threads", "packages", "git_commit", "platform"} <= set(read["machine"])
    assert read["machine"]["packages"]["torch"]
    figure = read["rows"]["train-all"]["figures"][0]
    assert (figure["min"], figure["median"], figure["max"]) == (4.0, 4.4, 5.0)
    assert figure["values"] == [4.0, 4.4, 5.0]
    assert (figure["met"], figure["bar"]) == (True, {"value": 4.0, "at_least": True})
    assert read["rows"]["train-all"]["checked"][0]["bound"] == 1e-4
    assert read["rows"]["round"]["skipped"] == "the peer needs Ray"


def test_the_page_needs_nothing_from_outside(results: Results) -> None:
    page = render_page(results)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert "url(http" not in page
    assert page.count("<svg") == 2
    assert "PEFT &lt;fp32&gt;" in page
    assert "2 of 3 bars met" in page
    assert "Left out: round" in page


def test_numbers_are_written_to_be_read() -> None:
    assert [value(n) for n in (0.984, 4.1, 14.26, 212.4)] == ["0.98x", "4.10x", "14.3x", "212x"]
    assert (value(0.0, "difference"), value(2.2e-6, "difference")) == ("0", "2e-06")
    assert value(0.0123, "nats") == "0.012"
    assert spread(MET) == "4.00–5.00x"
    assert spread(EXACT) == ""


def test_there_is_one_next_step() -> None:
    assert "docs/performance.md" in next_step((MET, MISSED), "out")
    assert "out/benchmark.json" in next_step((MET, EXACT), "out")
    free = Figure("what", "peer", (1.0,))
    assert "smollm2" in next_step((free,), "out")
    assert "smollm2" in headline((free,), "a machine")


def test_rows_are_found_by_name_and_in_order() -> None:
    assert [row.name for row in chosen(("stack", "train-qv"))] == ["train-qv", "stack"]
    assert chosen(()) == tuple(row for row in ROWS if not row.by_name_only)
    assert all(callable(row.load()) for row in ROWS)


def test_other_models_have_no_bars(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(Row, "load", lambda row: lambda settings, on_round: Finding((MET,)))
    assert measure(ROWS[0], settings).figures[0].bar is None
    assert measure(ROWS[0], Settings()).figures[0].bar == MET.bar


def test_the_command_measures_and_writes(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed(
        "bench", "--model", "tiny", "--rounds", "2", "--only", "next-user", "--only", "alone",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.text
    assert "bit-equal" in done.text
    assert "Next: " in done.text
    read = json.loads((tmp_path / "out" / "benchmark.json").read_text(encoding="utf-8"))
    assert list(read["rows"]) == ["alone", "next-user"]
    assert len(read["rows"]["next-user"]["figures"][0]["values"]) == 2
    assert (tmp_path / "out" / "benchmark.html").exists()


def test_an_unknown_row_is_named(mesofed: Any, tmp_path: Path) -> None:
    done = mesofed("bench", "--only", "trian", "--out", tmp_path / "out")
    assert done.code == 1
    assert "trian" in done.text
    assert "train-qv" in done.text
    assert not (tmp_path / "out").exists()
