"""Nothing leaves Mesofed's devices; the contrasts leak and are caught; so would Mesofed be."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from client.egress import egress_guard
from shared.run_settings import partition
from shared.wire import BY_TYPE
from simulations.audit import leaking_apps
from simulations.audit.egress import (
    EXPECTED,
    FEWEST_HONEST,
    Egress,
    honest_devices,
    measure_egress,
    measure_ours,
)
from simulations.audit.federations import Ground
from simulations.audit.leaking_apps import FAULTS, tried

MODES = ("off", "local", "central")
REQUESTS = {
    "off": ("train.install_release", "query.router_statistics"),
    "local": ("train.install_release", "query.noised_statistics"),
    "central": (
        "train.install_release",
        "query.secagg_keys",
        "query.secagg_shares",
        "query.secagg_masked",
        "query.secagg_unmask",
    ),
}


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(grounds: Callable[[str], Ground], mode: str) -> dict[str, Egress]:
    return {egress.federation: egress for egress in measure_egress(grounds(mode))}


def test_the_modes_together_try_every_message_of_the_protocol() -> None:
    for mode in MODES:
        wanted = tried(mode)
        assert {request for request, _ in wanted} == set(REQUESTS[mode])
        assert {fault for _, fault in wanted} == set(FAULTS)
        assert len(set(wanted)) == len(wanted)
        for request in REQUESTS[mode]:
            assert sum(tried_of == request for tried_of, _ in wanted) >= 2
    assert {request for requests in REQUESTS.values() for request in requests} == set(BY_TYPE)


def test_no_canary_leaves_mesofed_s_devices(
    grounds: Callable[[str], Ground], found: dict[str, Egress], mode: str
) -> None:
    ours, wanted = found["mesofed"], tried(mode)
    honest = honest_devices(wanted)
    assert ours.passed
    assert ours.finds == ()
    assert ours.devices == honest + len(wanted)
    assert ours.held_back == len(ours.faults) == len(wanted)
    assert ours.never_run == ()
    assert ours.honest_failed == 0
    # A device is asked up to the request in which its fault is stopped, an honest one to the end.
    order = REQUESTS[mode]
    answers = [order.index(request) + 1 for request, _ in wanted]
    assert ours.replies == honest * len(order) + sum(answers)
    assert ours.searched["messages"] > 100 * ours.replies
    assert ours.searched["files"] > 100_000
    kinds = {"history text", "target", "item id", "user id", "query", "gold", "file name"}
    kinds |= {"user LoRA", "embedding", "trained meso"}
    assert ours.canaries == dict.fromkeys(kinds, ours.devices)
    record = json.loads(
        (grounds(mode).folder / "egress-mesofed" / "statistics" / "r1.json").read_text()
    )
    # Of a secure sum those too are in it whom the guard stopped when it was opened.
    last = sum(request == order[-1] for request, _ in wanted) if mode == "central" else 0
    assert record["answered"] == honest + last
    assert record.get("sum") == ("taken" if mode == "central" else None)


def test_the_contrasts_leak_and_the_search_finds_it(found: dict[str, Egress]) -> None:
    for name, kinds in EXPECTED.items():
        egress = found[name]
        assert egress.passed
        assert not egress.missed
        assert {(f.device, f.kind) for f in egress.finds} == {(d, k) for d in (0, 1) for k in kinds}
        assert "messages" in {find.source for find in egress.finds}
    assert "files" in {find.source for find in found["uploads"].finds}
    assert "logs" in {find.source for find in found["unguarded"].finds}


def test_a_contrast_in_which_nothing_is_found_fails(found: dict[str, Egress]) -> None:
    uploads, ours = found["uploads"], found["mesofed"]
    only = tuple(find for find in uploads.finds if find.kind != "user LoRA")
    silent = replace(uploads, finds=only)
    assert not silent.passed
    assert silent.missed == {"user LoRA"}
    one = tuple(find for find in uploads.finds if (find.device, find.kind) != (1, "embedding"))
    assert not replace(uploads, finds=one).passed
    assert replace(uploads, finds=one).missed == {"embedding"}
    assert not replace(ours, finds=uploads.finds[:1]).passed
    assert not replace(ours, held_back=3).passed
    assert not replace(ours, never_run=ours.faults[:1]).passed
    assert not replace(ours, honest_failed=1).passed


def open_door(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    return call_next(message, context)


def test_without_the_guard_every_fault_would_be_found(
    own_ground: Callable[[str], Ground], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaking_apps, "egress_guard", open_door)
    wanted = tried(mode)
    honest = honest_devices(wanted)
    faults = dict(enumerate(wanted, start=honest))
    leaked = measure_ours(own_ground(mode), honest, faults)
    assert not leaked.passed
    assert {find.device for find in leaked.finds} == set(faults)
    assert leaked.held_back == 0
    assert leaked.never_run == ()
    assert leaked.honest_failed == 0


def test_a_fault_that_no_request_comes_to_is_not_called_stopped(
    own_ground: Callable[[str], Ground],
) -> None:
    # Nobody asks for a secure sum in mode off, and one fault is on a device of that mode.
    faults = {
        FEWEST_HONEST: ("query.secagg_unmask", "raises an exception"),
        FEWEST_HONEST + 1: ("query.router_statistics", "raises an exception"),
    }
    ours = measure_ours(own_ground("off"), FEWEST_HONEST, faults)
    assert ours.finds == ()
    assert ours.never_run == ("raises an exception (query.secagg_unmask)",)
    assert ours.held_back == 1
    assert not ours.passed


def test_a_sum_that_too_few_can_open_is_not_called_an_audit(
    own_ground: Callable[[str], Ground],
) -> None:
    # With so few honest devices most of a neighbourhood is gone when the sum is to be opened, and
    # its last stage comes to nobody.
    wanted = tried("central")
    ours = measure_ours(own_ground("central"), 5, dict(enumerate(wanted, start=5)))
    assert {fault.split("(")[1] for fault in ours.never_run} == {"query.secagg_unmask)"}
    assert ours.honest_failed == 5
    assert not ours.passed


def test_a_handler_without_a_fault_stops_nothing(
    own_ground: Callable[[str], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmless(request: Message, reply: Message, vault: object) -> Message:
        return reply

    monkeypatch.setitem(leaking_apps.FAULTS, "raises an exception", harmless)
    ours = measure_ours(
        own_ground("off"),
        FEWEST_HONEST,
        {FEWEST_HONEST: ("query.router_statistics", "raises an exception")},
    )
    assert ours.never_run == ()
    assert ours.held_back == 0
    assert not ours.passed


def closed_for_one(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The guard, before a handler that fails on the first device whatever it is asked."""

    def failing(message: Message, context: Context) -> Message:
        reply = call_next(message, context)
        if partition(context) == 0:
            raise OSError("no space left on device")
        return reply

    return egress_guard(message, context, failing)


def test_a_device_that_fails_without_a_fault_fails_the_audit(
    own_ground: Callable[[str], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaking_apps, "egress_guard", closed_for_one)
    ours = measure_ours(
        own_ground("off"),
        FEWEST_HONEST,
        {FEWEST_HONEST: ("query.router_statistics", "raises an exception")},
    )
    assert ours.held_back == 1
    assert ours.honest_failed == 1
    assert not ours.passed
