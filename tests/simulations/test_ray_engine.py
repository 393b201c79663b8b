"""The same apps on Flower's Ray simulation."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.egress import egress_guard
from server.rounds import broadcast_release, gather_statistics, wait_for_devices
from shared.config import RunConfig, dump_config
from shared.errors import MesofedError
from shared.protocol import (
    REASONS,
    Refusal,
    RouterStatistics,
    release_from_content,
    statistics_to_content,
)
from shared.run_settings import RUN_DIR_VARIABLE, vault_folder
from simulations.federated import simulate
from simulations.local_grid import run_local
from simulations.prepare import prepare
from simulations.ray_engine import run_on_ray

FILES = {"manifest.json": b"{}", "population.safetensors": b"\x03" * 2000}
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is an optional extra"
)


def stub_app() -> ClientApp:
    """Return devices without a model: partition 2 raises, the others weigh by their partition.

    Nested, so that it travels to the worker processes by value.
    """
    app = ClientApp(mods=[egress_guard])

    @app.train("install_release")
    def install(message: Message, context: Context) -> Message:
        release_from_content(message.content)
        if context.node_config["partition-id"] == 2:
            raise RuntimeError("private text")
        vault = vault_folder(context)
        vault.mkdir(parents=True)
        (vault / "pid").write_text(str(os.getpid()), encoding="utf-8")
        return Message(RecordDict(), reply_to=message)

    @app.query("router_statistics")
    def router_statistics(message: Message, context: Context) -> Message:
        share = context.node_config["partition-id"] / 10
        statistics = RouterStatistics(1, (share, 1 - share), (1.0,), 0.0, 1.0)
        return Message(statistics_to_content(statistics), reply_to=message)

    return app


@needs_ray
@pytest.mark.slow
def test_devices_run_in_worker_processes_and_the_server_here(tmp_path: Path) -> None:
    server = ServerApp()
    outcome: dict[str, object] = {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = wait_for_devices(grid, 4, 120)
        installed = broadcast_release(grid, FILES, 1, nodes=nodes, needed=3, deadline_seconds=120)
        gathered = gather_statistics(
            grid,
            1,
            experts=2,
            anchors=1,
            nodes=tuple(installed.answers),
            needed=3,
            deadline_seconds=60,
        )
        outcome["asked"] = len(installed.asked)
        outcome["refused"] = [entry.reason for entry in installed.refused]
        outcome["shares"] = sorted(s.expert_weights[0] for s in gathered.answers.values())

    before = dict(os.environ)
    run_on_ray(server, stub_app(), tmp_path, devices=4, workers=1)
    assert outcome == {
        "asked": 4,
        "refused": [REASONS[Refusal.DEVICE_FAILED]],
        "shares": [0.0, 0.1, 0.3],
    }
    written = sorted(tmp_path.glob("vaults/*/pid"))
    assert [path.parent.name for path in written] == ["0000", "0001", "0003"]
    assert str(os.getpid()) not in {path.read_text(encoding="utf-8") for path in written}
    assert "private text" in (tmp_path / "vaults" / "0002.errors.log").read_text(encoding="utf-8")
    for name in (RUN_DIR_VARIABLE, "PYTHONPATH"):
        assert os.environ.get(name) == before.get(name)


@needs_ray
@pytest.mark.slow
def test_an_error_of_the_server_comes_out_as_it_is(tmp_path: Path) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        raise MesofedError("the quorum was missed")

    with pytest.raises(MesofedError, match="the quorum was missed"):
        run_on_ray(server, stub_app(), tmp_path, devices=1, workers=1)


def small_run(folder: Path, devices: int = 2, **privacy: object) -> None:
    config = RunConfig.model_validate(
        {
            "threads": 1,
            "methods": ("population", "oppu", "meso"),
            "corpus": {
                "server_users": 6,
                "device_users": devices,
                "max_history": 4,
                "max_queries": 1,
            },
            "privacy": privacy,
            "base": {"name": "tiny", "format": "fp32", "max_tokens": 64},
            "population": {"epochs": 1},
            "experts": {"epochs": 1, "count": 2},
            "bank": {"epochs": 1, "anchors": 2, "top_k": 2},
            "private": {"epochs": 1},
        }
    )
    folder.mkdir()
    (folder / "config.toml").write_text(dump_config(config), encoding="utf-8")


@needs_ray
@pytest.mark.slow
def test_local_and_ray_give_the_same_statistics_and_the_same_private_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.app import app as client_app
    from server.app import app as server_app

    # Workers get one thread each from Ray; sums in another order would round differently.
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    local, ray = tmp_path / "local", tmp_path / "ray"
    small_run(local)
    small_run(ray)
    torch.set_num_threads(1)
    try:
        run_local(server_app, client_app, local, devices=2)
        run_on_ray(server_app, client_app, ray, devices=2, workers=1)
    finally:
        torch.set_num_threads(threads)

    def statistics(run: Path) -> tuple[object, object]:
        record = json.loads((run / "statistics" / "r1.json").read_text(encoding="utf-8"))
        assert record["answered"] == 2
        # The engines give their nodes other numbers.
        return record["mean"], sorted(str(device["statistics"]) for device in record["devices"])

    assert statistics(local) == statistics(ray)
    kept = [p for p in sorted(local.rglob("*.safetensors")) if "training" not in p.parts]
    assert len([path for path in kept if "private" in path.parts]) == 4
    for path in kept:
        twin = ray / path.relative_to(local)
        assert twin.read_bytes() == path.read_bytes(), path.relative_to(local)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", "central"])
def test_local_and_ray_give_the_same_noised_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from client.app import app as client_app
    from server.app import app as server_app

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    local, ray = tmp_path / "local", tmp_path / "ray"
    for run in (local, ray):
        small_run(run, devices=3, mode=mode, epsilon=20.0)
    run_local(server_app, client_app, local, devices=3)
    run_on_ray(server_app, client_app, ray, devices=3, workers=1)

    def record(run: Path) -> object:
        found = json.loads((run / "statistics" / "r1.json").read_text(encoding="utf-8"))
        assert (found["answered"], found["refused"]) == (3, [])
        return found["mean"], found["privacy"]

    assert record(local) == record(ray)


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    with pytest.raises(MesofedError, match=r"pip install 'mesofed\[ray\]'"):
        run_on_ray(ServerApp(), stub_app(), tmp_path, devices=1)
    config = RunConfig.model_validate({"engine": "ray", "base": {"name": "tiny"}})
    with pytest.raises(MesofedError, match=r"constraints\.txt -e '\.\[ray\]'"):
        prepare(config, tmp_path / "run", ["pytest"])
    assert not (tmp_path / "run").exists()


def test_ray_is_not_loaded_before_it_is_used() -> None:
    import subprocess

    code = "import simulations.ray_engine, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@needs_ray
@pytest.mark.slow
def test_on_ray_the_whole_run_comes_out_the_same(
    federation: Any, lasting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray gives each worker one thread, as the federation here has.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = federation.config.model_copy(update={"engine": "ray"})
    run = tmp_path / "run"
    prepare(config, run, ["pytest"])
    simulate(config, run)
    here, there = lasting(run), lasting(federation.run_dir)
    # The engines give their nodes other numbers.
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
