"""What failures cost: bad devices nothing but themselves, a kill at any point nothing but time."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import client.app
import simulations.federated
from client.egress import egress_guard
from server.exchange import NO_ANSWER
from shared.config import RunConfig
from shared.errors import MesofedError
from shared.protocol import REASONS, Refusal
from simulations.federated import simulate
from simulations.prepare import prepare


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Bad devices


def federation_of(trouble: dict[int, Callable[[Message, Context], Message]]) -> ClientApp:
    """Return the real ClientApp, but for partitions that have their own way to install."""
    app = ClientApp(mods=[egress_guard])

    @app.train("install_release")
    def install(message: Message, context: Context) -> Message:
        part = int(context.node_config["partition-id"])
        return trouble.get(part, client.app.install_release)(message, context)

    app.query("router_statistics")(client.app.router_statistics)
    return app


def test_bad_devices_cost_the_round_nothing_but_themselves(
    started: Any, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = started(devices=5, quorum=0.3, deadline_seconds=5.0)
    for_ever = threading.Event()

    def raises(message: Message, context: Context) -> Message:
        raise ValueError("broken")

    def garbage(message: Message, context: Context) -> Message:
        content = RecordDict({"x": MetricRecord({"y": 1.0}), "z": ConfigRecord({"s": "t"})})
        content["release"] = ArrayRecord({})
        return Message(content, reply_to=message)

    def silent(message: Message, context: Context) -> Message:
        for_ever.wait()
        return garbage(message, context)

    app = federation_of({1: raises, 2: garbage, 3: silent})
    monkeypatch.setattr(simulations.federated, "client_app", app)
    summary = simulate(config, run)
    for_ever.set()
    record = read(run / "statistics" / "r1.json")
    assert (record["asked"], record["answered"]) == (5, 2)
    assert [(entry["node"], entry["reason"]) for entry in record["refused"]] == [
        (2, REASONS[Refusal.DEVICE_FAILED]),
        (3, REASONS[Refusal.REPLY_BLOCKED]),
        (4, NO_ANSWER),
    ]
    assert [device["node"] for device in record["devices"]] == [1, 5]
    assert sorted(p.name for p in (run / "results").iterdir()) == ["0000.json", "0004.json"]
    assert {row.users for row in summary.rows} <= {1, 2}
    assert (run / "report.html").is_file()
    # The good device has what it would have had among good ones.
    private = Path("private") / "r1" / "oppu.safetensors"
    here, there = (r / "vaults" / "0000" / private for r in (run, federation.run_dir))
    assert here.read_bytes() == there.read_bytes()


def test_a_missed_quorum_ends_the_run_and_the_mended_run_goes_on(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = started(devices=2, quorum=1.0)

    def raises(message: Message, context: Context) -> Message:
        raise ValueError("broken")

    monkeypatch.setattr(simulations.federated, "client_app", federation_of({1: raises}))
    with pytest.raises(MesofedError, match=r"at least 2 of 2 devices to install.*1 did"):
        simulate(config, run)
    assert not (run / "statistics" / "r1.json").exists()
    monkeypatch.setattr(simulations.federated, "client_app", federation_of({}))
    simulate(config, run)
    assert read(run / "statistics" / "r1.json")["answered"] == 2
    assert len(list((run / "results").iterdir())) == 2


# A kill at any point


def differing(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    return [name for name in {**here, **there} if here.get(name) != there.get(name)]


def dying_at(moment: str, path: Path) -> Callable[[Path, Path], Path]:
    """Return a ``Path.replace`` that ends the process at the write of one file.

    Either before the file has its name (the temporary one stays behind), or right after.
    """
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target) == path and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        if Path(target) == path:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return replace


def run_and_kill(config: RunConfig, run: Path, moment: str = "", name: str = "") -> int:
    """Go on with a run in a process of its own until the kill, or the end; return how it ended."""
    child = os.fork()
    if child == 0:
        try:
            if name:
                Path.replace = dying_at(moment, run / name)  # type: ignore[method-assign]
            simulate(config, run)
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 120
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"the run hangs on its way to {name or 'its end'}")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill cheaply")


@needs_fork
def test_a_round_that_is_killed_again_and_again_ends_with_the_same_bytes(
    started: Any, lasting: Any, tmp_path: Path
) -> None:
    config, run = started(devices=3)
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    assert run_and_kill(config, whole) == 0
    for moment, name in (
        ("before", "vaults/0002/private/r1/oppu.json"),
        ("before", "vaults/0000/installed.json"),
        ("before", "statistics/r1.json"),
        ("after", "results/0001.json"),
        ("before", "report.html"),
    ):
        assert run_and_kill(config, run, moment, name) == -signal.SIGKILL, name
    assert run_and_kill(config, run) == 0
    assert differing(lasting(run), lasting(whole)) == []
    # A write that was cut short leaves its temporary file, which nobody takes for a file.
    assert list(run.rglob(".*.tmp"))


KILLS = (
    ("after", "training/r1/population.safetensors"),
    ("before", "training/r1/experts.json"),
    ("before", "releases/r1/manifest.json"),
    ("before", "vaults/0002/private/r1/oppu.json"),
    ("before", "statistics/r1.json"),
    ("after", "training/r2/bank.json"),
    ("before", "releases/r2/router.safetensors"),
    ("before", "vaults/0000/installed.json"),
    ("after", "vaults/0001/private/r2/meso-tuned.safetensors"),
    ("before", "results/0001.json"),
    ("before", "report.html"),
)


@pytest.mark.slow
@needs_fork
def test_a_whole_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    federation: Any, lasting: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    prepare(federation.config, run, ["pytest"])
    for moment, name in KILLS:
        assert run_and_kill(federation.config, run, moment, name) == -signal.SIGKILL, name
    assert run_and_kill(federation.config, run) == 0
    assert differing(lasting(run), lasting(federation.run_dir)) == []


class Command:
    """The console command in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        code = "from shared.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    def stop_after(self, path: Path, number: signal.Signals) -> tuple[int, str]:
        """Send a signal as soon as a file is there; return exit code and output."""
        deadline = time.monotonic() + 120
        while not path.exists():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=180)
        return self.process.returncode, output


@pytest.mark.slow
def test_the_command_is_stopped_killed_and_resumed(
    federation: Any, lasting: Any, tmp_path: Path
) -> None:
    run = tmp_path / "my run"
    start = Command("simulate", "--out", str(run), *federation.assignments())
    code, output = start.stop_after(run / "training" / "r1" / "population.json", signal.SIGINT)
    assert code == 130, output
    # The command as it can be typed here: with its folder, where that is not on the path.
    # A long one goes on in the next line, as a shell reads it.
    told = output.partition("\nStopped. Continue:")[2].replace("\\\n", "")
    program, *arguments = shlex.split(told)
    assert Path(program).name == "mesofed"
    assert arguments == ["simulate", "--resume", str(run)]
    assert "Traceback" not in output
    assert not (run / "report.html").exists()

    again = Command("simulate", "--resume", str(run))
    first = run / "vaults" / "0000" / "private" / "r1" / "oppu.json"
    code, output = again.stop_after(first, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert not (run / "statistics" / "r2.json").exists()

    code, output = Command("simulate", "--resume", str(run)).end()
    assert code == 0, output
    assert str(run / "report.html") in output
    assert "meso-tuned" in output
    assert "Warning" not in output
    assert differing(lasting(run), lasting(federation.run_dir)) == []
    assert read(run / "run.json")["command"][1:4] == ["simulate", "--out", str(run)]
