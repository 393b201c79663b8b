"""Deployment on loopback: a SuperLink, SuperNodes, and a device agent behind each of them."""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.agent_call import FrameError, ask_agent, receive_frame, send_frame
from client.inspection import sent
from client.ledger import ledger
from client.lock import unlock
from client.vault import Vault
from server.signing_keys import signer
from shared.config import RunConfig
from shared.errors import MesofedError
from shared.flower_environment import SWITCHES
from shared.protocol import REASONS, ROUTER_STATISTICS, Refusal, statistics_request
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import KEYS, MASKED, SHARES, UNMASK
from shared.statistic_vector import decode_mean

PASSPHRASE = "four quiet old ducks"
TEXTS = (
    "The river runs past the garden.\n\nA letter came by the night train.\n\nWinter again.\n",
    "Bread and butter at seven.\n\nThe market was loud and bright.\n\nNo road leads back.\n",
    "Snow on the roof.\n\nThe old clock stopped again.\n\nA kettle sang in the dark.\n",
    "Rain since noon.\n\nThe ferry left without us.\n\nThree plums in a bowl.\n",
)
MESOFED = (sys.executable, "-c", "from shared.cli import main; main()")


@pytest.fixture
def processes() -> dict[str, subprocess.Popen[bytes]]:
    """What the test has started, by the name of its log."""
    return {}


@pytest.fixture
def start(
    tmp_path: Path, processes: dict[str, subprocess.Popen[bytes]]
) -> Iterator[Callable[..., Path]]:
    """Start a program of the virtual environment; its output goes to the file that is returned."""
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
            processes[log] = subprocess.Popen(
                [*map(str, command)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        return path

    yield begin
    for process in reversed(processes.values()):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    for process in processes.values():
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


def wait_for_line(line: str, log: Path, seconds: float = 120) -> None:
    wait_until(lambda: line in log.read_text(encoding="utf-8"), log, seconds)


def start_agent(start: Callable[..., Path], folder: Path, name: str, log: str) -> Path:
    return start(
        log,
        *(*MESOFED, "device", "start", folder / f"vault-{name}"),
        *("--config", folder / "device.toml", "--socket", folder / f"{name}.sock"),
    )


def start_devices(
    start: Callable[..., Path], folder: Path, names: str, settings: Mapping[str, Any]
) -> None:
    """Give each device a vault with texts of its own, and an agent with settings of its own."""
    key = signer(folder / "keys").public
    own = {name: settings[name] for name in ("seed", "threads", "base", "private", "privacy")}
    (folder / "device.toml").write_text(tomli_w.dumps({**own, "methods": ["meso"]}))
    logs = {}
    for name, text in zip(names, TEXTS, strict=False):
        (folder / name).mkdir()
        (folder / name / "diary.txt").write_text(text, encoding="utf-8")
        logs[name] = start(
            f"init-{name}",
            *(*MESOFED, "device", "init", folder / f"vault-{name}", "--folder", folder / name),
            *("--server-key", key, "--lock", "passphrase"),
        )
    for name, log in logs.items():
        vault = Vault(folder / f"vault-{name}")
        wait_until(lambda vault=vault: vault.exists, log)
    for log in [start_agent(start, folder, name, f"agent-{name}") for name in names]:
        wait_for_line("Listening at", log)


def start_nodes(
    start: Callable[..., Path], folder: Path, port: int, sockets: Mapping[str, Path]
) -> None:
    """Start a SuperNode beside each agent, and wait until all have registered."""
    logs = [
        start(
            f"node-{name}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
            *("--port", free_port(), "--node-config", f'agent="{path}"'),
        )
        for name, path in sockets.items()
    ]
    for log in logs:
        wait_for_line("SuperNode ID", log)


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
    port, run = free_port(), tmp_path / "run"
    settings = federation.config.model_dump(mode="json")
    settings |= {"privacy": {"mode": mode, "epsilon": 20.0}}
    start_devices(start, tmp_path, names, settings)
    start_superlink(start, tmp_path, port)
    start_nodes(start, tmp_path, port, {name: tmp_path / f"{name}.sock" for name in names})
    rounds = {"count": 1, "devices": len(names), "quorum": 1.0, "deadline_seconds": 100.0}
    settings |= {"rounds": rounds, "release": {"keys": str(tmp_path / "keys")}}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(settings))
    where = f'run-dir="{run}" config="{tmp_path / "run.toml"}"'
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
    with pytest.raises(MesofedError, match="could not be asked"):
        ask_agent(tmp_path / "nobody.sock", ROUTER_STATISTICS, statistics_request(1))


@contextmanager
def relay(path: Path, agent: Path, before: Callable[[str], None]) -> Iterator[Path]:
    """Listen in an agent's place and pass on; ``before`` is told what a SuperNode is to ask."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed: the test is over
                return
            with (
                connection,
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as onward,
                contextlib.suppress(OSError, FrameError),  # the agent is gone, and so is the call
            ):
                asked = receive_frame(connection)
                before(str(asked.header["request"]))
                onward.connect(str(agent))
                send_frame(onward, asked.header, asked.content)
                answered = receive_frame(onward)
                send_frame(connection, answered.header, answered.content)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sum_whose_agents_are_killed_opens_without_them_or_not_at_all(
    start: Callable[..., Path],
    processes: dict[str, subprocess.Popen[bytes]],
    small_config: RunConfig,
    tmp_path: Path,
) -> None:
    names, port, run = "abcd", free_port(), tmp_path / "run"
    settings = small_config.model_dump(mode="json")
    settings |= {"privacy": {"mode": "central", "epsilon": 20.0}}
    start_devices(start, tmp_path, names, settings)
    homes = {}
    for name in names:
        vault = tmp_path / f"vault-{name}"
        homes[name] = Vault(vault, unlock(vault, lambda: PASSPHRASE))

    doomed = {"c", "d"}  # as soon as they are asked for their masked vectors
    summed: dict[str, tuple[int, ...]] = {}

    def before(name: str, request: str) -> None:
        if request == MASKED and name in doomed:
            process = processes[f"agent-{name}"]
            process.kill()
            process.wait()
        elif request == UNMASK:
            # What the device has put under masks: its own word, before the session is deleted.
            kept = homes[name].session(1)
            if kept is not None:
                summed[name] = DeviceSession.from_bytes(kept).vector or ()

    with contextlib.ExitStack() as relays:
        sockets = {
            name: relays.enter_context(
                relay(
                    tmp_path / f"{name}-relay.sock",
                    tmp_path / f"{name}.sock",
                    functools.partial(before, name),
                )
            )
            for name in names
        }
        start_superlink(start, tmp_path, port)
        start_nodes(start, tmp_path, port, sockets)
        rounds = {"count": 1, "devices": 4, "quorum": 0.7, "deadline_seconds": 100.0}
        settings |= {"rounds": rounds, "release": {"keys": str(tmp_path / "keys")}}
        (tmp_path / "run.toml").write_text(tomli_w.dumps(settings))
        where = f'run-dir="{run}" config="{tmp_path / "run.toml"}"'
        command = ("flwr", "run", ".", "ours", "--stream", "--run-config", where)

        # Two are left of the three that a sum needs.
        log = start("run", *command)
        wait_for_line("Exit Code", log, 240)
        failed = REASONS[Refusal.NO_AGENT]
        few = f"at least 3 of 4 devices to answer {MASKED} of release 1; 2 did (2 x {failed})"
        assert few in log.read_text(encoding="utf-8")
        assert not (run / "statistics").exists()
        assert summed == {}
        assert [len(ledger(homes[name])) for name in names] == [1, 1, 0, 0]

        # One of the two is back: three are left, and the one who is gone has masks in their sum.
        doomed.clear()
        wait_for_line("Listening at", start_agent(start, tmp_path, "c", "agent-c-again"))
        log = start("again", *command)
        statistics = run / "statistics" / "r1.json"
        wait_until(statistics.is_file, log, 240)

    record = json.loads(statistics.read_text(encoding="utf-8"))
    assert (record["asked"], record["joined"], record["answered"]) == (4, 4, 3)
    assert record["sum"] == "taken"
    gone = {(entry["node"], entry["reason"]) for entry in record["refused"]}
    assert [reason for _, reason in gone] == [failed]
    assert {node for node, _ in gone}.isdisjoint(device["node"] for device in record["devices"])
    assert set(summed) == {"a", "b", "c"}
    total = [sum(column) for column in zip(*summed.values(), strict=True)]
    mean = decode_mean(total, 3, small_config.experts.count)
    assert record["mean"] == {
        "expert_weights": list(mean.expert_weights),
        "anchor_weights": list(mean.anchor_weights),
        "best_similarity": mean.best_similarity,
        "entropy": mean.entropy,
    }
    assert [len(ledger(homes[name])) for name in names] == [1, 1, 1, 0]
    assert [homes[name].session(1) is None for name in names] == [True, True, True, False]


@pytest.mark.slow
def test_a_run_that_fails_says_why_in_a_line_and_is_a_failed_run(
    start: Callable[..., Path], tmp_path: Path
) -> None:
    port, missing = free_port(), tmp_path / "nowhere.toml"
    start_superlink(start, tmp_path, port)
    where = f'run-dir="{tmp_path / "run"}" config="{missing}"'
    log = start("run", "flwr", "run", ".", "ours", "--stream", "--run-config", where)
    wait_for_line("Exit Code: 201", log)
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
