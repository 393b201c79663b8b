"""The command as a whole: cells, what they share, and going on after a kill."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared.errors import MesofedError
from shared.progress import shown
from shared.tasks import TASKS
from simulations.comparison.catalogue import CONTENDERS
from simulations.comparison.cell import read_cells
from simulations.comparison.compare import conclude, prepare, run
from simulations.comparison.results import Block

TIMES = ("seconds", "added_ms")


def without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_times(own) for key, own in data.items() if key not in TIMES}
    return [without_times(own) for own in data] if isinstance(data, list) else data


def cells(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): without_times(json.loads(path.read_text()))
        for path in sorted((folder / "cells").rglob("*.json"))
    }


def test_there_is_a_cell_for_each_method_where_it_makes_sense(comparison: Any) -> None:
    found = {(c.method, c.slice, c.setting) for c in read_cells(comparison.folder)}
    expected = {
        (name, slice_name, setting)
        for name in comparison.config.methods
        for slice_name in ("all", "sparse-2")
        for setting in CONTENDERS[name].settings
        if (slice_name, setting) != ("sparse-2", "centralized")
    }
    assert found == expected
    assert ("fedavg-lora", "all", "centralized") not in found


def test_what_methods_have_in_common_is_trained_once(comparison: Any) -> None:
    populations = list((comparison.folder / "artefacts").rglob("population.json"))
    # One a seed and setting, whatever the slices and methods.
    assert len(populations) == 2
    federated = {c.method: c for c in read_cells(comparison.folder) if c.slice == "sparse-2"}
    assert {p.history for c in federated.values() for p in c.people} == {2}


def test_what_no_method_needs_is_not_trained(comparison: Any, tmp_path: Path) -> None:
    alike = ("population", "rag-1", "oppu", "fedavg-lora")
    methods = (*alike, "rag-1-tuned", "user-majority")
    config = comparison.config.model_copy(update={"methods": methods, "slices": ("all",)})
    prepare(config, tmp_path, ["pytest"])
    run(config, tmp_path)
    stages = {path.name for path in (tmp_path / "artefacts").rglob("training/r1/*.json")}
    assert stages == {"population.json"}
    before, found = cells(comparison.folder), cells(tmp_path)
    both = [name for name in before if name in found]
    assert {name: found[name] for name in both} == {name: before[name] for name in both}
    assert {Path(name).stem for name in both} == {*alike, "user-majority"}
    conclude(config, tmp_path)
    assert 'id="heat-map"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="heat-map"' in (comparison.folder / "report.html").read_text(encoding="utf-8")


def test_everybody_is_asked_the_same_by_every_method(comparison: Any) -> None:
    for block in comparison.results.blocks:
        rows = comparison.results.of(block)
        assert len({tuple(row.scores) for row in rows}) == 1
        assert len({row.queries for row in rows}) == 1


def test_costs_are_those_of_the_method(comparison: Any) -> None:
    row = {m: comparison.results.row(m, Block("tagging", "all", "federated")) for m in CONTENDERS}
    central = comparison.results.row("meso", Block("tagging", "all", "centralized"))
    assert row["population"].cost.private_bytes == 0
    assert row["population"].cost.bytes_up == 0
    labels = len(TASKS["tagging"].labels or ()) + len(TASKS["rating"].labels or ())
    assert 0 < row["meso-code"].cost.private_bytes <= 4 * (2 * 2 + 3 * 2 + labels)
    assert row["meso"].cost.private_bytes < row["oppu"].cost.private_bytes
    assert 0 < row["meso"].cost.bytes_up < 1000 < row["fedavg-lora"].cost.bytes_up
    assert row["rag-1"].cost.prompt_tokens > 0
    assert central.cost.bytes_up > 0
    assert central.cost.bytes_down == 0


def test_a_lost_cell_is_made_again_and_comes_out_the_same(comparison: Any, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(comparison.folder, folder)
    before = cells(folder)
    lost = ["cells/all/federated/5/meso.json", "cells/sparse-2/federated/5/per-pcs.json"]
    for name in lost:
        (folder / name).unlink()
    kept = (folder / "cells/all/federated/5/oppu.json").stat().st_mtime_ns
    run(comparison.config, folder)
    assert cells(folder) == before
    assert (folder / "cells/all/federated/5/oppu.json").stat().st_mtime_ns == kept


def test_a_cell_says_how_far_it_is(
    comparison: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(comparison.folder, folder)
    for setting in ("federated", "centralized"):
        (folder / "cells" / "all" / setting / "5" / "meso.json").unlink()
    monkeypatch.setattr("shared.progress.SIGN_OF_LIFE", 0.0)
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    with shown(console):
        run(comparison.config, folder)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if "meso, federated" in line]
    shares = [int(share) for share in re.findall(r"(\d+)% done", "\n".join(lines))]
    assert shares == sorted(shares)
    assert len(shares) > 2
    assert shares[-1] == 100
    assert 50 in shares  # everybody has trained, and nobody has been asked yet


def test_a_comparison_without_anybody_to_be_an_anchor_is_refused_before_anything_is_trained(
    comparison: Any, tmp_path: Path
) -> None:
    bank = comparison.config.bank.model_copy(update={"min_history": 5})
    for methods, refused in ((("population", "oppu"), False), (("population", "per-pcs"), True)):
        config = comparison.config.model_copy(update={"bank": bank, "methods": methods})
        folder = tmp_path / methods[-1]
        with pytest.raises(MesofedError, match="min_history") if refused else nullcontext():
            prepare(config, folder, ["pytest"])
        assert (folder / "comparison.toml").exists() != refused


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on_to_the_same_cells(comparison: Any, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    program = [sys.executable, "-c", "from shared.cli import main; main()", "compare"]
    command = [*program, str(comparison.settings), "--out", str(folder)]
    for wanted in (1, 9, 19):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(folder.glob("cells/*/*/*/*.json"))) < wanted:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = [*program, "--resume", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert cells(folder) == cells(comparison.folder)


def test_the_command_says_what_to_do(
    comparison: Any, mesofed: Callable[..., Any], tmp_path: Path
) -> None:
    resumed = mesofed("compare", "--resume", comparison.folder)
    assert resumed.code == 0
    assert "Tagging, everybody, federated" in resumed.out
    assert "Next: open" in resumed.out
    again = mesofed("compare", comparison.settings, "--out", comparison.folder)
    assert again.code == 1
    assert f"--resume {comparison.folder}" in again.text
    nowhere = mesofed("compare", "--resume", tmp_path)
    assert nowhere.code == 1
    assert "Expected a comparison in" in nowhere.text
    wrong = mesofed("compare", "--set", 'methods=["mesa"]', "--out", tmp_path / "x")
    assert wrong.code == 1
    assert "expected some of base, population" in wrong.text
    assert wrong.text.count("got 'mesa' (did you mean 'meso'?)") == wrong.text.count("got") == 1
    assert not (tmp_path / "x").exists()


def test_a_comparison_of_an_older_format_is_not_gone_on_with(
    comparison: Any, mesofed: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "older"
    shutil.copytree(comparison.folder, folder)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del record["comparison_format"]
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    before = cells(folder)
    resumed = mesofed("compare", "--resume", folder)
    assert resumed.code == 1
    assert "it is of format 1" in resumed.text
    assert cells(folder) == before
