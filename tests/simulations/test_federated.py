"""The whole federation on one machine: what it leaves, what leaves devices, what a kill costs."""

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

import client.app
import simulations.federated
from client.device import Device
from client.egress import egress_guard
from client.vault import Vault
from server.rounds import NO_ANSWER
from shared.config import RunConfig
from shared.corpus.user import ProfileItem
from shared.errors import MesofedError
from shared.protocol import REASONS, ProtocolError, Refusal
from shared.tasks import TASKS
from simulations.federated import evaluate_devices, open_run, prepare, simulate
from simulations.local_grid import LocalGrid

METHODS = ("population", "oppu", "meso-tuned")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# What a run leaves


def test_a_run_leaves_all_its_files(federation: Any) -> None:
    run = federation.run_dir
    stages = [f"training/r{k}/{s}" for k in (1, 2) for s in ("population", "experts", "bank")]
    expected = {
        *("run.json", "config.toml", "corpus.json", "summary.json", "metrics.jsonl"),
        "report.html",
        *(f"{stage}{suffix}" for stage in stages for suffix in (".json", ".safetensors")),
        *(f"releases/r{k}/manifest.json" for k in (1, 2)),
        *(f"statistics/r{k}.json" for k in (1, 2)),
        *(f"results/{d:04d}.json" for d in range(3)),
        *(f"vaults/{d:04d}/person.jsonl" for d in range(3)),
        *(
            f"vaults/{d:04d}/private/r{k}/{method}.safetensors"
            for d in range(3)
            for k in (1, 2)
            for method in METHODS[1:]
        ),
    }
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert expected - found == set()
    assert not [name for name in found if name.endswith((".tmp", ".errors.log"))]


def test_server_and_devices_are_different_people(federation: Any) -> None:
    corpus = read(federation.run_dir / "corpus.json")
    server, device = set(corpus["server_users"]), set(corpus["device_users"])
    assert (len(server), len(device), server & device) == (10, 3, set())
    assert set(corpus["groups"]) == server | device
    living = [
        read(federation.run_dir / "vaults" / f"{d:04d}" / "person.jsonl")["user_id"]
        for d in range(3)
    ]
    assert living == corpus["device_users"]
    # The logs of the server's training know nobody else.
    for stage in ("experts", "bank"):
        log = read(federation.run_dir / "training" / "r2" / f"{stage}.json")
        assert set(log.get("gates", {})) | set(log.get("anchors", ())) <= server


def test_the_record_says_what_the_run_was(federation: Any) -> None:
    record = read(federation.run_dir / "run.json")
    assert record["command"] == ["pytest"]
    assert record["seed"] == 5
    assert record["base"]["name"] == "tiny"
    assert record["paths"]["run"] == str(federation.run_dir)
    assert record["packages"]["torch"]
    assert open_run(federation.run_dir) == federation.config


def test_the_statistics_are_those_of_the_devices(federation: Any) -> None:
    for release in (1, 2):
        record = read(federation.run_dir / "statistics" / f"r{release}.json")
        assert (record["asked"], record["answered"], record["refused"]) == (3, 3, [])
        weights = [d["statistics"]["expert_weights"] for d in record["devices"]]
        for expert in range(2):
            mean = sum(own[expert] for own in weights) / 3
            assert record["mean"]["expert_weights"][expert] == pytest.approx(mean)
        for device in record["devices"]:
            vault = Vault(federation.run_dir / "vaults" / f"{device['node'] - 1:04d}")
            kept = vault.statistics(release)
            assert kept is not None
            for name, value in device["statistics"].items():
                assert value == pytest.approx(kept[name], abs=1e-4)
            assert device["bytes_down"] > 10_000
            assert 0 < device["bytes_up"] < 1_000


def test_the_results_hold_every_method_and_query(federation: Any) -> None:
    for index, user in enumerate(federation.people.device):
        result = read(federation.run_dir / "results" / f"{index:04d}.json")
        assert (result["user_id"], result["group"]) == (user.user_id, user.group)
        assert (result["history"], result["release"]) == (len(user.history), 2)
        assert tuple(result["methods"]) == METHODS
        golds = {query.query_id: (query.task, query.gold) for query in user.queries}
        for method, outcome in result["methods"].items():
            assert (outcome["private_parameters"] == 0) == (method == "population")
            came = {a["query_id"]: (a["task"], a["gold"]) for a in outcome["queries"]}
            assert came == golds
            for answer in outcome["queries"]:
                assert 0 < answer["nll"] < 20
                labels = TASKS[answer["task"]].labels
                assert labels is None or answer["prediction"] in labels
            values = [v for scores in outcome["scores"].values() for v in scores.values()]
            assert all(math.isfinite(value) for value in values)
            losses = [loss for _, loss in outcome["curve"]]
            assert all(0 < loss < 20 for loss in losses)


def test_the_table_is_the_mean_over_the_results(federation: Any) -> None:
    results = [read(p) for p in sorted((federation.run_dir / "results").glob("*.json"))]
    table = read(federation.run_dir / "summary.json")["table"]
    rows = {(row["method"], row["task"]): row for row in table}
    tasks = {query.task for user in federation.people.device for query in user.queries}
    assert set(rows) == {(method, task) for method in METHODS for task in tasks}
    for (method, task), row in rows.items():
        scores = [r["methods"][method]["scores"].get(task) for r in results]
        asked = [score for score in scores if score is not None]
        assert row["users"] == len(asked)
        for name, value in row["metrics"].items():
            assert value == pytest.approx(sum(s[name] for s in asked) / len(asked))


def test_every_measurement_is_a_line(federation: Any) -> None:
    lines = [
        json.loads(line)
        for line in (federation.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    stages = {(line["round"], line["stage"]) for line in lines}
    trained = {(k, s) for k in (1, 2) for s in ("population", "experts", "bank")}
    assert trained | {(2, "private training"), (2, "evaluation")} <= stages
    log = read(federation.run_dir / "training" / "r1" / "population.json")
    curve = [
        [line["step"], line["value"]]
        for line in lines
        if (line["round"], line["stage"], line["name"]) == (1, "population", "loss")
    ]
    assert curve == log["curves"]["population"]


# Evaluation in batches


def written(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "results").iterdir()}


@pytest.fixture
def evaluated(federation: Any, tmp_path: Path) -> Path:
    """What the evaluation reads of a run and writes in it, to be changed at will."""
    for part in ("vaults", "results"):
        shutil.copytree(federation.run_dir / part, tmp_path / part)
    return tmp_path


def test_a_batch_that_was_cut_short_is_evaluated_to_the_same_bytes(
    federation: Any, evaluated: Path
) -> None:
    before = written(evaluated)
    (evaluated / "results" / "0001.json").unlink()
    evaluate_devices(federation.config, evaluated, federation.people)
    assert written(evaluated) == before


def test_a_finished_batch_is_not_evaluated_again(
    federation: Any, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    evaluate = simulations.federated.evaluate_stacks

    def noted(base: Any, people: Any, stacks: Any) -> Any:
        asked.append([person.user_id for person in people])
        return evaluate(base, people, stacks)

    monkeypatch.setattr(simulations.federated, "evaluate_stacks", noted)
    evaluate_devices(federation.config, evaluated, federation.people)
    assert asked == []
    # Two devices a batch, and the second batch has lost its result.
    monkeypatch.setattr(simulations.federated, "DEVICES_AT_ONCE", 2)
    (evaluated / "results" / "0002.json").unlink()
    evaluate_devices(federation.config, evaluated, federation.people)
    assert asked == [[federation.people.device[2].user_id]] * len(METHODS)


def test_devices_evaluated_in_other_batches_give_the_same_answers(
    federation: Any, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: json.loads(data) for name, data in written(evaluated).items()}
    shutil.rmtree(evaluated / "results")
    monkeypatch.setattr(simulations.federated, "DEVICES_AT_ONCE", 2)
    evaluate_devices(federation.config, evaluated, federation.people)
    came = {name: json.loads(data) for name, data in written(evaluated).items()}
    assert losses_of(came) == pytest.approx(losses_of(expected), abs=1e-5)
    assert came == expected


def losses_of(results: dict[str, Any]) -> list[float]:
    """Take the losses out of results, in the order of devices, methods and queries."""
    return [
        answer.pop("nll")
        for name in sorted(results)
        for method in METHODS
        for answer in results[name]["methods"][method]["queries"]
    ]


def test_a_device_that_sent_no_statistics_is_left_out(federation: Any, evaluated: Path) -> None:
    (evaluated / "vaults" / "0000" / "statistics" / "r2.json").unlink()
    expected = json.loads(written(evaluated)["0001.json"])
    shutil.rmtree(evaluated / "results")
    evaluate_devices(federation.config, evaluated, federation.people)
    assert set(written(evaluated)) == {"0001.json", "0002.json"}
    came = json.loads(written(evaluated)["0001.json"])
    assert (came["user_id"], came["statistics"]) == (expected["user_id"], expected["statistics"])
    for method in METHODS:
        assert came["methods"][method]["scores"] == expected["methods"][method]["scores"]


# What leaves a device


def strings_of(user: Any) -> list[str]:
    texts = [user.user_id, *(item.text for item in user.history)]
    texts += [item.target for item in user.history if len(item.target) > 5]
    texts += [query.text for query in user.queries]
    return [text for text in texts if text]


def windows(tensors: dict[str, Any], size: int = 8) -> set[bytes]:
    """Every two neighbouring numbers of an adapter, as bytes."""
    found = set()
    for tensor in tensors.values():
        data = tensor.numpy().tobytes()
        found |= {data[i : i + size] for i in range(0, len(data) - size + 1, 4)}
    return {window for window in found if b"\0\0\0\0" not in window}


def test_nothing_that_a_person_wrote_or_learned_goes_up(federation: Any) -> None:
    assert len(federation.up) == len(federation.down) == 2 * 2 * 3
    everything = b"\n".join(federation.up)
    assert len(everything) < 12 * 1_500
    assert everything.count(b"router-statistics") == 6
    for user in federation.people.device:
        for text in strings_of(user):
            assert text.encode() not in everything, text
    sent = {everything[i : i + 8] for i in range(len(everything) - 7)}
    learned: set[bytes] = set()
    for path in federation.run_dir.glob("vaults/*/private/*/*.safetensors"):
        learned |= windows(load_file(path))
    for path in federation.run_dir.glob("vaults/*/embedding/*.safetensors"):
        learned |= windows(load_file(path))
    assert len(learned) > 5_000
    assert sent & learned == set()


def test_nothing_of_the_server_s_people_goes_down_in_words(federation: Any) -> None:
    everything = b"\n".join(set(federation.down))
    assert b"population.safetensors" in everything
    for user in federation.people.server:
        for text in strings_of(user):
            assert text.encode() not in everything, text


CANARY = "CANARY-19c4 my secret diary"


@pytest.fixture
def started(federation: Any, tmp_path: Path) -> Callable[..., tuple[RunConfig, Path]]:
    """Return a prepared run of one round whose release has been trained already."""

    def make(devices: int, **rounds: Any) -> tuple[RunConfig, Path]:
        corpus = {**federation.config.corpus.model_dump(), "device_users": devices}
        config = RunConfig.model_validate(
            {
                **federation.config.model_dump(),
                "methods": ("population", "oppu"),
                "corpus": corpus,
                "rounds": {"count": 1, "deadline_seconds": 300.0, **rounds},
            }
        )
        run = tmp_path / "run"
        prepare(config, run, ["pytest"])
        for part in ("training", "releases"):
            shutil.copytree(federation.run_dir / part / "r1", run / part / "r1")
        return config, run

    return make


def test_a_planted_canary_stays_at_home_even_when_devices_raise_it(
    started: Any, federation: Any, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = started(devices=5, quorum=0.1)
    first = federation.people.device[0]
    planted = ProfileItem("h99", "headline", f"{CANARY} text", f"{CANARY} target")
    Vault(run / "vaults" / "0000").move_in(
        replace(first, user_id=f"{CANARY} id", history=(planted, *first.history))
    )
    errors: dict[str, BaseException] = {
        "0001": RuntimeError(CANARY),
        "0002": MesofedError(CANARY),
        "0003": ProtocolError(CANARY, Refusal.REPLY_BLOCKED),
        "0004": SystemExit(CANARY),
    }
    install = Device.install

    def install_or_raise(device: Device, files: Any) -> int:
        if device.vault.folder.name in errors:
            raise errors[device.vault.folder.name]
        return install(device, files)

    down: list[bytes] = []
    up: list[bytes] = []
    monkeypatch.setattr(Device, "install", install_or_raise)
    monkeypatch.setattr(LocalGrid, "_answer", recording(LocalGrid._answer, down, up))
    simulate(config, run)

    assert CANARY in (run / "vaults" / "0000" / "person.jsonl").read_text(encoding="utf-8")
    for name in errors:
        log = (run / "vaults" / f"{name}.errors.log").read_text(encoding="utf-8")
        assert CANARY in log, "the exception was really raised"
    assert len(up) == 5 + 1
    assert CANARY.encode() not in b"".join(up)
    assert b"CANARY" not in b"".join(up)
    assert b"Traceback" not in b"".join(up)
    record = (run / "statistics" / "r1.json").read_text(encoding="utf-8")
    assert "CANARY" not in record
    assert json.loads(record)["answered"] == 1
    assert [entry["reason"] for entry in json.loads(record)["refused"]] == [
        REASONS[Refusal.DEVICE_FAILED],
        REASONS[Refusal.REQUEST_REFUSED],
        REASONS[Refusal.REPLY_BLOCKED],
        REASONS[Refusal.DEVICE_FAILED],
    ]
    learned = windows(load_file(run / "vaults" / "0000" / "private" / "r1" / "oppu.safetensors"))
    sent = b"".join(up)
    assert not any(sent[i : i + 8] in learned for i in range(len(sent) - 7))


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


def lasting(run: Path) -> dict[str, Any]:
    """What two runs of the same settings have in common: everything but times and paths."""
    kept: dict[str, Any] = {}
    for pattern in ("releases/**/*", "training/**/*.safetensors", "vaults/**/*.safetensors"):
        for path in run.glob(pattern):
            if path.is_file() and not path.name.startswith("."):
                kept[str(path.relative_to(run))] = path.read_bytes()
    for pattern in ("statistics/*.json", "results/*.json", "training/**/*.json", "corpus.json"):
        for path in run.glob(pattern):
            kept[str(path.relative_to(run))] = timeless(read(path))
    kept["config.toml"] = (run / "config.toml").read_bytes()
    table = read(run / "summary.json")["table"]
    kept["summary.json"] = timeless(table)
    kept["person"] = [p.read_bytes() for p in sorted(run.glob("vaults/*/person.jsonl"))]
    return kept


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def assert_same_run(came: Path, expected: Path) -> None:
    here, there = lasting(came), lasting(expected)
    assert set(here) == set(there)
    assert [name for name in here if here[name] != there[name]] == []


# A process that starts the run again and again and dies at the next of these writes: before the
# file has its name (the temporary one stays behind), or right after.
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
KILLER = """
import json, os, signal, sys
from pathlib import Path
# All that takes time to import, once for all the children.
import matplotlib.figure, rouge_score.rouge_scorer, sklearn.cluster, sklearn.metrics
from shared.base_model import load_base
from simulations.federated import open_run, simulate

run, kills = Path(sys.argv[1]), json.loads(sys.argv[2])
config = open_run(run)
load_base(config.base, config.adapt)
rename = Path.replace

def dying_at(moment, name):
    def replace(self, target):
        hit = Path(target) == run / name
        if hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return replace

for kill in [*kills, None]:
    child = os.fork()
    if child == 0:
        if kill is not None:
            Path.replace = dying_at(*kill)
        simulate(config, run)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(kill, status, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill cheaply")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    federation: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    prepare(federation.config, run, ["pytest"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLER, str(run), json.dumps(KILLS)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    ended = [int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()]
    assert ended == [signal.SIGKILL] * len(KILLS) + [0], done.stdout + done.stderr
    assert_same_run(run, federation.run_dir)
    # A write that was cut short leaves its temporary file, which nobody takes for a file.
    assert list(run.rglob(".*.tmp"))


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


def test_the_command_is_stopped_killed_and_resumed(federation: Any, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    start = Command("simulate", "--out", str(run), *federation.assignments())
    code, output = start.stop_after(run / "training" / "r1" / "population.json", signal.SIGINT)
    assert code == 130, output
    assert f"Stopped. Continue: mesofed simulate --resume '{run}'" in output
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
    assert_same_run(run, federation.run_dir)
    assert read(run / "run.json")["command"][1:4] == ["simulate", "--out", str(run)]


# Ray


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an optional extra")
def test_on_ray_the_whole_run_comes_out_the_same(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray gives each worker one thread, as the federation here has.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = federation.config.model_copy(update={"engine": "ray"})
    run = tmp_path / "run"
    prepare(config, run, ["pytest"])
    simulate(config, run)
    here, there = lasting(run), lasting(federation.run_dir)
    # Ray numbers its nodes at random, and the numbers decide the order of the record.
    for release in (1, 2):
        name = f"statistics/r{release}.json"
        mine, expected = here.pop(name), there.pop(name)
        assert mine["mean"] == expected["mean"]
        assert sorted(str(d["statistics"]) for d in mine["devices"]) == sorted(
            str(d["statistics"]) for d in expected["devices"]
        )
    assert here.pop("config.toml") != there.pop("config.toml")
    assert set(here) == set(there)
    assert [name for name in here if here[name] != there[name]] == []
