"""What a federation on one machine leaves: files that agree with each other and the devices."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import simulations.federated
from client.vault import Vault
from shared.tasks import TASKS
from simulations.federated import evaluate_devices
from simulations.prepare import open_run

METHODS = ("population", "oppu", "meso-tuned")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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
