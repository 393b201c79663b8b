"""Nothing leaves Mesofed's devices; the contrasts leak and are caught; so would Mesofed be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from server.app import app as server_app
from simulations.audit import egress as measured
from simulations.audit import leaking_apps
from simulations.audit.egress import EXPECTED, HONEST, Egress, measure_egress
from simulations.audit.federations import Ground
from simulations.audit.leaking_apps import TRIED, guarded_app


@pytest.fixture(scope="module")
def found(ground: Ground) -> dict[str, Egress]:
    return {egress.federation: egress for egress in measure_egress(ground)}


def test_no_canary_leaves_mesofed_s_devices(found: dict[str, Egress]) -> None:
    ours = found["mesofed"]
    assert ours.passed
    assert ours.finds == ()
    assert ours.devices == HONEST + len(TRIED)
    assert ours.held_back == len(ours.faults) == len(TRIED)
    # Everybody answers twice, but for those whose first answer was held back.
    assert ours.replies == 2 * ours.devices - 2
    assert ours.searched["messages"] > 100 * ours.replies
    assert ours.searched["files"] > 100_000
    kinds = {"history text", "target", "item id", "user id", "query", "gold", "file name"}
    kinds |= {"user LoRA", "embedding", "trained meso"}
    assert ours.canaries == dict.fromkeys(kinds, ours.devices)


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
    uploads = found["uploads"]
    only = tuple(find for find in uploads.finds if find.kind != "user LoRA")
    silent = replace(uploads, finds=only)
    assert not silent.passed
    assert silent.missed == {"user LoRA"}
    assert not replace(found["mesofed"], finds=uploads.finds[:1]).passed
    assert not replace(found["mesofed"], held_back=3).passed


def open_door(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    return call_next(message, context)


def test_without_the_guard_every_fault_would_be_found(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaking_apps, "egress_guard", open_door)
    faults = dict(enumerate(TRIED, start=1))
    monkeypatch.setattr(measured, "found", _named(measured.found, "open"))
    app = guarded_app(faults)
    leaked = measured._searched(ground, "mesofed", app, server_app, 1 + len(faults), faults)
    assert not leaked.passed
    assert {find.device for find in leaked.finds} == set(faults)
    assert leaked.held_back == 0


def _named(found: Callable[..., Path], name: str) -> Callable[..., Path]:
    """Let the federation have another folder than the one of the fixture."""
    return lambda ground, _, methods, devices: found(ground, name, methods, devices)
