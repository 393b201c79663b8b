"""Reading a run directory: the missing is left out, the broken is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import MesofedError
from simulations.report.read import read_run

Writer = Callable[..., Path]


def test_everything_is_read(fake_run: Writer) -> None:
    folder = fake_run()
    run = read_run(folder)
    first = json.loads((folder / "results/0000.json").read_text())
    assert [device.user_id for device in run.devices] == [f"walker-{n:03d}" for n in range(12)]
    assert run.methods == ("base", "population", "oppu", "proper-folded", "mta-exact", "meso")
    assert run.tasks == ("tagging", "rating", "headline")
    device = run.devices[0]
    assert device.router is not None
    assert list(device.router.expert_weights) == first["statistics"]["expert-weights"]
    asked = first["methods"]["meso"]["queries"]
    assert [a.prediction for a in device.methods["meso"].answers] == [
        q["prediction"] for q in asked
    ]
    assert [stage.stage for stage in run.training] == ["population", "experts", "bank"]
    assert len(run.training[2].curves) == 8
    assert run.rounds[0].answered == 12
    assert run.rounds[0].refused == (("99", "malformed statistics"),)


def test_statistics_may_be_spelled_as_on_the_wire_or_in_python(fake_run: Writer) -> None:
    folder = fake_run()
    wire = read_run(folder)
    path = folder / "results/0003.json"
    data = json.loads(path.read_text())
    data["statistics"] = {name.replace("-", "_"): v for name, v in data["statistics"].items()}
    path.write_text(json.dumps(data))
    assert read_run(folder).devices == wire.devices


def test_rounds_come_in_numeric_order(fake_run: Writer) -> None:
    folder = fake_run()
    for number in (2, 10):
        text = (folder / "statistics/r1.json").read_text()
        (folder / f"statistics/r{number}.json").write_text(text)
    assert [round_.release for round_ in read_run(folder).rounds] == [1, 2, 10]


def test_unfinished_run_is_read_as_far_as_it_goes(fake_run: Writer) -> None:
    run = read_run(fake_run(devices=0, training=False, statistics=False))
    assert (run.devices, run.training, run.rounds, run.methods) == ((), (), (), ())


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match=r"run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"user_id": "a"', "0001.json"),
        ('{"user_id": "a", "release": 1, "methods": {}}', "'history'"),
        ('{"user_id": "a", "history": "many", "release": 1, "methods": {}}', "many"),
        ("[]", "0001.json"),
    ],
)
def test_a_broken_file_is_named(fake_run: Writer, broken: str, says: str) -> None:
    folder = fake_run()
    (folder / "results/0001.json").write_text(broken)
    with pytest.raises(MesofedError, match=says) as caught:
        read_run(folder)
    assert "0001.json" in str(caught.value)


def test_two_results_of_one_user_are_refused(fake_run: Writer) -> None:
    with pytest.raises(MesofedError, match="one result per user"):
        read_run(fake_run(user=lambda number: "same", devices=2))
