"""The local engine behaves like a wire, and a device that hangs costs only itself."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.egress import egress_guard
from server.exchange import NO_ANSWER
from server.rounds import broadcast_release, gather_statistics
from shared.errors import MesofedError
from shared.protocol import (
    REASONS,
    Refusal,
    RouterStatistics,
    release_from_content,
    statistics_to_content,
)
from simulations.local_grid import LocalGrid, run_local

FILES = {"manifest.json": b"{}", "population.safetensors": b"\x02" * 5000}


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        count = context.state.get("count", MetricRecord({"n": 0}))["n"] + 1
        context.state["count"] = MetricRecord({"n": count})
        where = context.node_config
        values = MetricRecord(
            {
                "node": context.node_id,
                "partition": where["partition-id"],
                "partitions": where["num-partitions"],
                "count": count,
            }
        )
        return Message(RecordDict({"values": values}), reply_to=message)

    return app


def ask(grid: LocalGrid, node: int, content: RecordDict | None = None) -> Message:
    return Message(content if content is not None else RecordDict(), node, "query")


def test_nodes_are_numbered_from_one_and_keep_their_state() -> None:
    grid = LocalGrid(echo_app(), 3)
    assert grid.get_node_ids() == [1, 2, 3]
    for turn in (1, 2):
        replies = grid.send_and_receive([ask(grid, node) for node in (1, 2, 3)], timeout=10)
        replies.sort(key=lambda reply: reply.metadata.src_node_id)
        assert [dict(reply.content["values"]) for reply in replies] == [
            {"node": node, "partition": node - 1, "partitions": 3, "count": turn}
            for node in (1, 2, 3)
        ]


def test_a_message_without_a_device_is_left_out() -> None:
    grid = LocalGrid(echo_app(), 1)
    message = ask(grid, 1)
    assert grid.push_messages([ask(grid, 5), message]) == [message.metadata.message_id]
    assert message.metadata.message_id


def test_a_reply_is_pulled_once_and_only_by_its_message() -> None:
    grid = LocalGrid(echo_app(), 2)
    first, second = grid.push_messages([ask(grid, 1), ask(grid, 2)])
    deadline = time.monotonic() + 10
    pulled: list[Message] = []
    while not pulled and time.monotonic() < deadline:
        pulled = grid.pull_messages([second])
    assert [reply.metadata.reply_to_message_id for reply in pulled] == [second]
    assert grid.pull_messages([second]) == []
    while not (rest := grid.pull_messages([first])) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [reply.metadata.src_node_id for reply in rest] == [1]


def test_devices_share_bytes_but_not_records() -> None:
    app = ClientApp()
    arrived: dict[int, RecordDict] = {}

    @app.query()
    def query(message: Message, context: Context) -> Message:
        arrived[context.node_id] = message.content
        message.content["m"]["n"] = context.node_id
        message.content["a"]["x"].dtype = f"changed by {context.node_id}"
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, 2)
    content = RecordDict(
        {"a": ArrayRecord({"x": Array(np.arange(9))}), "m": MetricRecord({"n": 0})}
    )
    grid.send_and_receive([ask(grid, node, content) for node in (1, 2)], timeout=10)
    assert content["m"]["n"] == 0
    assert content["a"]["x"].dtype == "int64"
    for node in (1, 2):
        assert arrived[node]["m"]["n"] == node
        assert arrived[node]["a"]["x"].dtype == f"changed by {node}"
    assert arrived[1]["a"]["x"].data is arrived[2]["a"]["x"].data
    assert arrived[1]["a"]["x"].data is not content["a"]["x"].data
    assert arrived[1]["a"]["x"].data == content["a"]["x"].data


def test_content_that_was_changed_between_two_messages_crosses_as_it_is_then() -> None:
    arrived: list[RecordDict] = []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        arrived.append(message.content)
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, 1)
    numbers = [1, 2]
    content = RecordDict({"a": ArrayRecord({"x": Array(np.arange(3))})})
    content["m"] = MetricRecord({"n": numbers})
    for change in (
        lambda: None,
        lambda: content["m"]["n"].append(3),
        lambda: content["m"].update(n=[1.0, 2.0, 3.0]),
        lambda: content["a"].update(x=Array(np.arange(3) + 1)),
        lambda: setattr(content["a"]["x"], "shape", (3, 1)),
    ):
        change()
        grid.send_and_receive([ask(grid, 1, content)], timeout=10)
    assert [repr(list(c["m"]["n"])) for c in arrived] == [
        "[1, 2]",
        "[1, 2, 3]",
        *["[1.0, 2.0, 3.0]"] * 3,
    ]
    assert [c["a"]["x"].data == content["a"]["x"].data for c in arrived] == [False] * 3 + [True] * 2
    assert [list(c["a"]["x"].shape) for c in arrived] == [[3]] * 4 + [[3, 1]]


def test_what_cannot_be_serialised_does_not_cross() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        record = MetricRecord()
        record.__dict__["_data"] = {"object": object()}
        return Message(RecordDict({"m": record}), reply_to=message)

    grid = LocalGrid(app, 1)
    (reply,) = grid.send_and_receive([ask(grid, 1)], timeout=10)
    assert reply.error.code == 2


def test_an_unguarded_exception_is_told_as_on_flower_s_engines() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        raise ValueError("told")

    grid = LocalGrid(app, 1)
    (reply,) = grid.send_and_receive([ask(grid, 1)], timeout=10)
    assert (reply.error.code, "told" in str(reply.error.reason)) == (2, True)
    assert reply.metadata.src_node_id == 1


def misbehaving_app(release_hang: threading.Event) -> ClientApp:
    """Partition 0 is well; 1 raises; 2 answers garbage; 3 hangs; the rest is well."""
    app = ClientApp(mods=[egress_guard])

    @app.train("install_release")
    def install(message: Message, context: Context) -> Message:
        assert release_from_content(message.content) == (1, FILES)
        part = context.node_config["partition-id"]
        if part == 1:
            raise RuntimeError("private text")
        if part == 2:
            return Message(RecordDict({"x": MetricRecord({"y": 1.0})}), reply_to=message)
        if part == 3:
            release_hang.wait()
        return Message(RecordDict(), reply_to=message)

    @app.query("router_statistics")
    def router_statistics(message: Message, context: Context) -> Message:
        statistics = RouterStatistics(1, (0.5, 0.5), (1.0,), 0.0, 1.0)
        return Message(statistics_to_content(statistics), reply_to=message)

    return app


def test_devices_that_raise_answer_garbage_or_hang_cost_only_themselves(tmp_path: Path) -> None:
    hang = threading.Event()
    grid = LocalGrid(
        misbehaving_app(hang),
        6,
        {"run-dir": str(tmp_path), "config": ""},
        concurrency=1,
        patience_seconds=0.2,
    )
    installed = broadcast_release(
        grid, FILES, 1, nodes=grid.get_node_ids(), needed=3, deadline_seconds=2.5
    )
    assert list(installed.answers) == [1, 5, 6]
    assert [(e.node, e.reason) for e in installed.refused] == [
        (2, REASONS[Refusal.DEVICE_FAILED]),
        (3, REASONS[Refusal.REPLY_BLOCKED]),
        (4, NO_ANSWER),
    ]
    assert "private text" in (tmp_path / "vaults" / "0001.errors.log").read_text(encoding="utf-8")
    # The hanging device stays busy: it cannot be asked, the others can.
    gathered = gather_statistics(
        grid,
        1,
        experts=2,
        anchors=1,
        nodes=(1, 4, 5, 6),
        needed=3,
        deadline_seconds=1.5,
    )
    assert list(gathered.answers) == [1, 5, 6]
    assert [(e.node, e.reason) for e in gathered.refused] == [(4, NO_ANSWER)]
    hang.set()


def at_once(devices: int, seconds: float, patience_seconds: float) -> int:
    """Return how many of so many devices are at work at once, each for so long, three asked for."""
    app = ClientApp()
    lock, now, most = threading.Lock(), 0, 0

    @app.query()
    def query(message: Message, context: Context) -> Message:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(seconds)
        with lock:
            now -= 1
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, devices, concurrency=3, patience_seconds=patience_seconds)
    replies = grid.send_and_receive([ask(grid, n) for n in range(1, devices + 1)], timeout=60)
    assert len(replies) == devices
    return most


def test_no_more_devices_work_at_once_than_asked() -> None:
    assert 2 <= at_once(12, seconds=0.02, patience_seconds=60) <= 3


def test_a_long_wait_for_a_turn_lets_no_crowd_in() -> None:
    # Each of 40 devices waits longer than anybody's patience, but something moves all the time.
    assert at_once(40, seconds=0.1, patience_seconds=0.6) <= 3


def test_slow_devices_let_in_one_more_at_a_time() -> None:
    # Nothing moves for four times the patience: they could all hang, but for all we know do not.
    assert 4 <= at_once(20, seconds=0.8, patience_seconds=0.2) <= 10


def test_a_device_that_comes_back_takes_up_its_turn_again() -> None:
    app, lock, back = ClientApp(), threading.Lock(), threading.Event()
    now, most = 0, 0

    @app.query()
    def query(message: Message, context: Context) -> Message:
        nonlocal now, most
        if context.node_id == 1 and not back.is_set():
            back.wait()
            return Message(RecordDict(), reply_to=message)
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, 6, concurrency=1, patience_seconds=0.2)
    (hanging,) = grid.push_messages([ask(grid, 1)])
    others = grid.send_and_receive([ask(grid, node) for node in range(2, 7)], timeout=20)
    assert (len(others), most) == (5, 1)
    back.set()
    deadline = time.monotonic() + 20
    while not grid.pull_messages([hanging]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(grid.send_and_receive([ask(grid, n) for n in range(1, 7)], timeout=20)) == 6
    assert most == 1


def test_a_device_works_on_one_message_at_a_time() -> None:
    app = ClientApp()
    inside = threading.Lock()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        alone = inside.acquire(blocking=False)
        time.sleep(0.02)
        if alone:
            inside.release()
        return Message(RecordDict({"m": MetricRecord({"alone": int(alone)})}), reply_to=message)

    grid = LocalGrid(app, 1)
    replies = grid.send_and_receive([ask(grid, 1) for _ in range(5)], timeout=20)
    assert [reply.content["m"]["alone"] for reply in replies] == [1] * 5


def test_a_hanging_device_does_not_keep_the_process_alive() -> None:
    code = (
        "import simulations.local_grid as g, threading\n"
        "from flwr.app import Message, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "@app.query()\n"
        "def query(m, c): threading.Event().wait()\n"
        "grid = g.LocalGrid(app, 1)\n"
        "print(len(grid.send_and_receive([Message(RecordDict(), 1, 'query')], timeout=0.2)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["0"]


def test_a_run_gives_both_apps_its_folder_and_passes_errors_on(tmp_path: Path) -> None:
    server, seen = ServerApp(), []
    client = ClientApp()

    @client.query()
    def query(message: Message, context: Context) -> Message:
        seen.append(context.run_config["run-dir"])
        return Message(RecordDict(), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        seen.append(context.run_config["run-dir"])
        list(grid.send_and_receive([Message(RecordDict(), 1, "query")], timeout=10))
        raise MesofedError("the quorum")

    with pytest.raises(MesofedError, match="the quorum"):
        run_local(server, client, tmp_path, 1)
    assert seen == [str(tmp_path)] * 2


def test_the_local_engine_opens_no_socket_and_looks_up_no_name() -> None:
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(e) if e.startswith('socket.') else None)\n"
        "import simulations.local_grid as g\n"
        "from flwr.app import Message, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "app.query()(lambda m, c: Message(RecordDict(), reply_to=m))\n"
        "grid = g.LocalGrid(app, 2)\n"
        "n = len(grid.send_and_receive([Message(RecordDict(), i, 'query') for i in (1, 2)]))\n"
        "assert n == 2\n"
        "print([e for e in opened if e in ('socket.connect', 'socket.getaddrinfo')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_message_costs_little() -> None:
    grid = LocalGrid(echo_app(), 50)
    grid.send_and_receive([ask(grid, node) for node in range(1, 51)], timeout=30)
    started = time.monotonic()
    for _ in range(4):
        replies = grid.send_and_receive([ask(grid, node) for node in range(1, 51)], timeout=30)
        assert len(replies) == 50
    # Ray needs 3 to 4 ms a message once it is warm; a tenth of a second is for a busy machine.
    assert (time.monotonic() - started) / 200 < 0.1
