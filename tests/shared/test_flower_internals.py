"""Fails loudly when an upgrade of Flower moves one of the private hooks that Mesofed uses."""

import importlib.metadata
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from shared import flower_internals
from shared.flower_environment import SWITCHES


@pytest.fixture
def request_message() -> Message:
    flower_internals.become_server(run_id=7)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"bytes": Array(np.arange(5, dtype=np.uint8))}),
            "metrics": MetricRecord({"share": [0.25, 0.75], "count": 3}),
            "config": ConfigRecord({"text": "é", "flag": True, "raw": b"\x00\xff"}),
        }
    )
    return Message(content, 42, "query.probe", ttl=60.0, group_id="g")


def test_flower_is_of_the_family_the_hooks_were_checked_against() -> None:
    installed = importlib.metadata.version("flwr")
    assert installed.startswith(f"{flower_internals.FLOWER_FAMILY}."), (
        f"flwr {installed} is new: check every hook in shared/flower_internals.py against it, "
        "then move FLOWER_FAMILY and the pin in pyproject.toml."
    )


def test_a_process_without_identity_cannot_create_messages_and_with_it_can() -> None:
    code = (
        "from flwr.app import Message, RecordDict\n"
        "from shared.flower_internals import become_server\n"
        "try:\n    Message(RecordDict(), 1, 'query.x')\n"
        "except RuntimeError:\n    become_server(9)\n"
        "m = Message(RecordDict(), 5, 'query.x').metadata\n"
        "print(m.run_id, m.src_node_id, m.dst_node_id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["9", "1", "5"]


def test_a_named_message_is_answered_under_its_name(request_message: Message) -> None:
    flower_internals.name_message(request_message, "m1")
    assert request_message.metadata.message_id == "m1"
    reply = Message(RecordDict(), reply_to=request_message)
    assert reply.metadata.reply_to_message_id == "m1"
    assert reply.metadata.src_node_id == 42


def test_content_survives_the_wire(request_message: Message) -> None:
    data = flower_internals.content_to_bytes(request_message.content)
    arrived = flower_internals.content_from_bytes(data)
    assert arrived["arrays"]["bytes"].numpy().tolist() == [0, 1, 2, 3, 4]
    assert dict(arrived["metrics"]) == {"share": [0.25, 0.75], "count": 3}
    assert dict(arrived["config"]) == {"text": "é", "flag": True, "raw": b"\x00\xff"}
    assert flower_internals.content_bytes(request_message) == len(data)


def test_content_is_serialised_as_flower_does_it(request_message: Message) -> None:
    content = request_message.content
    content["more"] = ArrayRecord({k: Array(np.ones((2, 300))) for k in ("x", "y")})
    content["none"] = ArrayRecord({"empty": Array(np.zeros(0))})
    content["hollow"] = ArrayRecord()
    expected = recorddict_to_proto(content).SerializeToString()
    assert flower_internals.content_to_bytes(content) == expected
    assert flower_internals.content_bytes(request_message) == len(expected)
    assert content["more"]["y"].data  # what was to be sent is whole


def test_messages_and_errors_survive_the_wire(request_message: Message) -> None:
    flower_internals.name_message(request_message, "m2")
    delivered = flower_internals.deliver(request_message, RecordDict())
    assert delivered.metadata.message_id == "m2"
    assert delivered.metadata.dst_node_id == 42
    assert delivered.metadata is not request_message.metadata
    assert not delivered.content
    reply = flower_internals.over_the_wire(Message(Error(101, "why"), reply_to=delivered))
    assert (reply.error.code, reply.error.reason) == (101, "why")
    assert reply.metadata.reply_to_message_id == "m2"
    # A tag and 101 in zigzag, which is 202 and so takes two bytes; a tag, a length and "why".
    assert flower_internals.content_bytes(reply) == 3 + 5


def test_flower_tells_the_server_the_text_of_an_exception() -> None:
    error = flower_internals.error_of_exception(ValueError("secret"))
    assert error.code == 2
    assert "secret" in str(error.reason)


def test_an_empty_run_has_its_number() -> None:
    assert flower_internals.empty_run(11).run_id == 11


def test_quiet_flower_silences_the_console_and_gives_it_back(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("flwr")
    # A command that ran in this process has silenced the whole logger.
    caplog.set_level(logging.INFO, logger="flwr")
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    with flower_internals.quiet_flower():
        logger.error("hidden")
    logger.info("shown")
    output = capsys.readouterr().err
    assert "hidden" not in output
    assert "shown" in output


def test_an_error_that_can_be_mended_is_logged_by_its_text_and_any_other_with_its_traceback() -> (
    None
):
    code = (
        "from logging import ERROR\n"
        "from flwr.supercore import log\n"
        "from shared.errors import MesofedError\n"
        "from shared.flower_internals import plain_errors\n"
        "plain_errors()\n"
        "for error in (MesofedError('100 % of 2 are needed.'), ValueError('a bug')):\n"
        "    try:\n        raise error\n"
        "    except Exception as raised:\n"
        # As Flower's ServerApp process does it.
        "        log(ERROR, '%s raised an exception', 'ServerApp', exc_info=raised)\n"
        "    print()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    mended, _, bug = done.stdout.partition("are needed.")
    assert mended.endswith("100 % of 2 ")
    assert ("Traceback" in mended, "ServerApp raised an exception" in mended) == (False, False)
    assert "Traceback" in bug
    assert "ValueError: a bug" in bug


def test_engines_switch_telemetry_off_before_flower_reads_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    for engine in ("local_grid", "ray_engine"):
        code = (
            f"import simulations.{engine}, os\n"
            "from flwr.supercore import telemetry\n"
            "print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ['RAY_USAGE_STATS_ENABLED'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.stdout.split() == ["0", "0"], done.stderr


def test_a_simulation_s_nodes_are_numbered_by_partition_and_no_others() -> None:
    from flwr.server.superlink.fleet.vce.vce_api import _register_nodes
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    def registered() -> dict[int, int]:
        state = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        return _register_nodes(3, state)

    for _ in range(2):
        with flower_internals.numbered_nodes():
            assert registered() == {2: 0, 3: 1, 4: 2}
    assert min(registered()) > 4
