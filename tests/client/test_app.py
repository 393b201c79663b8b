"""The shim: what Flower starts for each message loads no model and passes requests on."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client.agent import Agent
from client.app import app
from client.device import Device
from shared.flower_internals import become_server, name_message, over_the_wire
from shared.protocol import (
    INSTALL_RELEASE,
    REASONS,
    ROUTER_STATISTICS,
    Refusal,
    release_to_content,
    statistics_from_content,
    statistics_request,
)

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "client.device", "client.vault")
HEAVY += ("client.seal", "client.lock", "shared.base_model", "pickle5", "keyring")


def message(request: str, content: RecordDict) -> Message:
    become_server(1)
    made = Message(content, 5, request, group_id="g")
    name_message(made, "m1")
    return made


def in_a_new_process(code: str, *arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CALL = """
import json, sys, time
begin = time.process_time()
import flwr.app, flwr.clientapp
flower = time.process_time()
from client.app import app
from shared.flower_internals import become_server, name_message
from shared.protocol import ROUTER_STATISTICS, statistics_request
from flwr.app import Context, Message, RecordDict
become_server(1)
message = Message(statistics_request(1), 5, ROUTER_STATISTICS, group_id="g")
name_message(message, "m1")
reply = app(message, Context(1, 5, {"agent": sys.argv[1]}, RecordDict(), {}))
assert not reply.has_error(), reply.error
end = time.process_time()
print(json.dumps({
    "modules": sorted(sys.modules),
    "flower": flower - begin,
    "own": end - flower,
    "release": reply.content["router-statistics"]["release"],
}))
"""


def test_importing_the_shim_loads_no_model() -> None:
    code = "import json, sys, client.app, client.agent_call; print(json.dumps(sorted(sys.modules)))"
    modules = set(in_a_new_process(code))
    assert "client.agent_call" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_a_call_through_the_shim_loads_no_model_either(
    sealed_device: Device, serving: Any, short_path: Path, federation: Any
) -> None:
    agent = Agent(sealed_device, short_path / "agent.sock")
    with serving(agent):
        installed = message(INSTALL_RELEASE, release_to_content(federation.release_files(1), 1))
        context = make_context(agent.path)
        assert app(installed, context).content == RecordDict()
        found = in_a_new_process(CALL, agent.path)
    assert found["release"] == 1
    assert [name for name in HEAVY if name in found["modules"]] == []
    print(f"shim: {found['own']:.3f} s of its own, beside {found['flower']:.3f} s for Flower")
    # Of the processor, since on a busy machine a wall clock measures the others.
    assert found["own"] < 1


def test_an_answer_does_not_wait_until_the_agent_has_trained(
    sealed_device: Device, serving: Any, short_path: Path, federation: Any, until: Any
) -> None:
    """It waits for the step of training that is being computed, at most."""
    private = sealed_device.private.model_copy(update={"epochs": 60})
    device = replace(sealed_device, private=private)
    agent, trained = (
        Agent(device, short_path / "agent.sock"),
        lambda: device.vault.load_private(1, "oppu"),
    )
    context = make_context(agent.path)
    with serving(agent):
        begin = time.monotonic()
        app(message(INSTALL_RELEASE, release_to_content(federation.release_files(1), 1)), context)
        asked = time.monotonic()
        reply = app(message(ROUTER_STATISTICS, statistics_request(1)), context)
        answered = time.monotonic()
        assert trained() is None
        assert not reply.has_error()
        until(trained, 200)
    print(f"asked while it trains: {answered - asked:.3f} s of {time.monotonic() - begin:.2f} s")


def make_context(agent: object) -> Any:
    from flwr.app import Context

    return Context(1, 5, {"agent": str(agent)}, RecordDict(), {"run-dir": "/nowhere"})


def test_the_shim_passes_answers_and_refusals_on(
    sealed_device: Device, serving: Any, short_path: Path, federation: Any
) -> None:
    agent = Agent(sealed_device, short_path / "agent.sock")
    context = make_context(agent.path)

    def asked(request: str, content: RecordDict) -> Message:
        return over_the_wire(app(message(request, content), context))

    with serving(agent):
        early = asked(ROUTER_STATISTICS, statistics_request(1))
        installed = asked(INSTALL_RELEASE, release_to_content(federation.release_files(1), 1))
        answer = asked(ROUTER_STATISTICS, statistics_request(1))
        other = asked(ROUTER_STATISTICS, statistics_request(2))
    gone = asked(ROUTER_STATISTICS, statistics_request(1))
    assert installed.content == RecordDict()
    assert statistics_from_content(answer.content) == sealed_device.statistics()
    for reply, refusal in (
        (early, Refusal.OTHER_RELEASE),
        (other, Refusal.OTHER_RELEASE),
        (gone, Refusal.NO_AGENT),
    ):
        assert (reply.error.code, reply.error.reason) == (refusal, REASONS[refusal])
    assert not (short_path / "vaults").exists()


def test_a_server_cannot_name_another_agent_or_folder(
    short_path: Path, federation: Any, sealed_device: Device, serving: Any
) -> None:
    """The socket comes from the node's own configuration; what a run says of it is not read."""
    agent = Agent(sealed_device, short_path / "agent.sock")
    context = make_context(short_path / "mine.sock")
    context.run_config = {"agent": str(agent.path), "run-dir": str(federation.run_dir)}
    with serving(agent):
        reply = app(message(ROUTER_STATISTICS, statistics_request(1)), context)
    assert reply.error.code == Refusal.NO_AGENT
    assert agent.device.vault.sent.entries() == []
    assert not list(agent.device.vault.folder.glob("errors"))


@pytest.mark.parametrize("config", [{}, {"agent": ""}])
def test_a_node_without_an_agent_is_none_of_a_real_device(
    config: dict[str, Any], tmp_path: Path
) -> None:
    from flwr.app import Context

    context = Context(1, 5, config, RecordDict(), {"run-dir": str(tmp_path), "config": ""})
    reply = app(message(ROUTER_STATISTICS, statistics_request(1)), context)
    assert reply.error.code == Refusal.REQUEST_REFUSED
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
