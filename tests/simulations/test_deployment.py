"""Deployment on loopback: a SuperLink, two SuperNodes, and a device agent behind each of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.agent_call import ask_agent
from client.inspection import sent
from client.ledger import ledger
from client.lock import unlock
from client.vault import Vault
from server.signing_keys import signer
from shared.errors import MesofedError
from shared.flower_environment import SWITCHES
from shared.protocol import ROUTER_STATISTICS, statistics_request
from shared.secure_aggregation.messages import KEYS, MASKED, SHARES, UNMASK

PASSPHRASE = "four quiet old ducks"
TEXTS = (
    "The river runs past the garden.\n\nA letter came by the night train.\n\nWinter again.\n",
    "Bread and butter at seven.\n\nThe market was loud and bright.\n\nNo road leads back.\n",
    "Snow on the roof.\n\nThe old clock stopped again.\n\nA kettle sang in the dark.\n",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Start a program of the virtual environment; its output goes to the file that is returned."""
    processes: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        **SWITCHES,
        "FLWR_HOME": str(tmp_path / "flower"),
        "MESOFED_PASSPHRASE": PASSPHRASE,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def begin(log: str, *command: object) -> Path:
        path = tmp_path / f"{log}.log"
        with path.open("wb") as output:
            processes.append(
                subprocess.Popen(
                    [*map(str, command)],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=Path(__file__).parents[2],
                    start_new_session=True,
                )
            )
        return path

    yield begin
    for process in reversed(processes):
        os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(done: Callable[[], bool], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3_000:]
        time.sleep(0.2)


def start_superlink(start: Callable[..., Path], folder: Path, port: int) -> None:
    """Start a SuperLink, which ``flwr run`` finds under the name of ours."""
    (folder / "flower").mkdir()
    link = {"address": f"127.0.0.1:{port}", "insecure": True}
    connections = {"superlink": {"default": "ours", "ours": link}}
    (folder / "flower" / "config.toml").write_text(tomli_w.dumps(connections))
    log = start("link", "flower-superlink", "--insecure", "--port", port)
    wait_until(lambda: reachable(port), log)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "names"), [("off", "ab"), ("central", "abc")])
def test_a_round_over_sockets_and_sealed_vaults(
    start: Callable[..., Path], federation: Any, tmp_path: Path, mode: str, names: str
) -> None:
    mesofed = [sys.executable, "-c", "from shared.cli import main; main()"]
    port, run = free_port(), tmp_path / "run"
    key = signer(tmp_path / "keys").public

    # The devices: their own texts, their own settings, an agent each.
    settings = federation.config.model_dump(mode="json")
    settings |= {"privacy": {"mode": mode, "epsilon": 20.0}}
    own = {name: settings[name] for name in ("seed", "threads", "base", "private", "privacy")}
    (tmp_path / "device.toml").write_text(tomli_w.dumps({**own, "methods": ["meso"]}))
    for name, text in zip(names, TEXTS, strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").write_text(text, encoding="utf-8")
        vault, path = tmp_path / f"vault-{name}", tmp_path / f"{name}.sock"
        log = start(
            f"init-{name}",
            *(*mesofed, "device", "init", vault, "--folder", tmp_path / name),
            *("--server-key", key, "--lock", "passphrase"),
        )
        wait_until(lambda vault=vault: Vault(vault).exists, log)
        log = start(
            f"agent-{name}",
            *(*mesofed, "device", "start", vault),
            *("--config", tmp_path / "device.toml", "--socket", path),
        )
        wait_until(path.exists, log)

    # The server: a SuperLink, and a SuperNode beside each agent.
    start_superlink(start, tmp_path, port)
    for name in names:
        agent = f'agent="{tmp_path / name}.sock"'
        start(
            f"node-{name}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
            *("--port", free_port(), "--node-config", agent),
        )
    rounds = {"count": 1, "devices": len(names), "quorum": 1.0, "deadline_seconds": 100.0}
    settings |= {"rounds": rounds, "release": {"keys": str(tmp_path / "keys")}}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(settings))
    where = f'run-dir="{run}" config="{tmp_path / "run.toml"}"'
    time.sleep(10)  # until the nodes have registered
    log = start("run", "flwr", "run", ".", "ours", "--stream", "--run-config", where)
    statistics = run / "statistics" / "r1.json"
    wait_until(statistics.is_file, log, 200)

    record = json.loads(statistics.read_text(encoding="utf-8"))
    everyone = len(names)
    assert (record["asked"], record["answered"], record["refused"]) == (everyone, everyone, [])
    came = {
        json.dumps(d["statistics"]["expert_weights"]) for d in record["devices"] if mode == "off"
    }
    if mode == "central":
        assert record["sum"] == "taken"
        assert 19 < record["privacy"]["epsilon_in_total"] <= 20
    went = set()
    for name in names:
        vault = tmp_path / f"vault-{name}"
        home = Vault(vault, unlock(vault, lambda: PASSPHRASE))
        installed, *asked = sent(home)
        assert installed["records"] == {}
        if mode == "off":
            assert [entry["request"] for entry in asked] == [ROUTER_STATISTICS]
            went.add(json.dumps(asked[0]["records"]["router-statistics"]["expert-weights"]))
        else:
            assert [entry["request"] for entry in asked] == [KEYS, SHARES, MASKED, UNMASK]
            assert [entry.mechanism for entry in ledger(home)] == ["central"]
            assert home.session(1) is None
        wait_until(lambda home=home: home.load_private(1, "meso") is not None, log)
        for path in vault.rglob("*"):
            assert path.is_dir() or b"river" not in path.read_bytes()
    assert came == went
    for path in run.rglob("*"):  # the server has nothing of theirs
        assert path.is_dir() or not any(t[:20].encode() in path.read_bytes() for t in TEXTS)

    # An agent that is gone is told, and the socket with it.
    shutil.rmtree(tmp_path / "flower", ignore_errors=True)
    with pytest.raises(MesofedError, match="Expected a device agent"):
        ask_agent(tmp_path / "nobody.sock", ROUTER_STATISTICS, statistics_request(1))


@pytest.mark.slow
def test_a_run_that_fails_says_why_in_a_line_and_is_a_failed_run(
    start: Callable[..., Path], tmp_path: Path
) -> None:
    port, missing = free_port(), tmp_path / "nowhere.toml"
    start_superlink(start, tmp_path, port)
    where = f'run-dir="{tmp_path / "run"}" config="{missing}"'
    log = start("run", "flwr", "run", ".", "ours", "--stream", "--run-config", where)
    wait_until(lambda: "Exit Code: 201" in log.read_text(encoding="utf-8"), log)
    said = log.read_text(encoding="utf-8")
    assert f"Cannot read the config {missing}: No such file or directory.\n" in said
    assert "Traceback" not in said

    def listed() -> str:
        path = start("list", "flwr", "list", "ours", "--format", "json")
        wait_until(lambda: path.read_text(encoding="utf-8").rstrip().endswith("}"), path)
        return path.read_text(encoding="utf-8")

    wait_until(lambda: "finished:" in listed(), log)
    (run,) = json.loads(listed())["runs"]
    assert run["status"] == "finished:failed"
    assert f"Cannot read the config {missing}" in run["status-details"]


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
