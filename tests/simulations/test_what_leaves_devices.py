"""What leaves the devices of a federation, byte by byte: statistics, no words and no adapter."""

import json
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file

from client.device import Device
from client.vault import Vault
from shared.corpus.user import ProfileItem
from shared.errors import MesofedError
from shared.protocol import REASONS, ProtocolError, Refusal
from simulations.federated import simulate
from simulations.local_grid import LocalGrid


def strings_of(user: Any) -> list[str]:
    texts = [user.user_id, *(item.text for item in user.history)]
    texts += [item.target for item in user.history if len(item.target) > 5]
    texts += [query.text for query in user.queries]
    return [text for text in texts if text]


def windows(tensors: dict[str, Any], size: int = 8) -> set[bytes]:
    """Every two neighbouring numbers of an adapter, as bytes."""
    found = set()
    for tensor in tensors.values():
        data = tensor.numpy().tobytes()
        found |= {data[i : i + size] for i in range(0, len(data) - size + 1, 4)}
    return {window for window in found if b"\0\0\0\0" not in window}


def test_nothing_that_a_person_wrote_or_learned_goes_up(federation: Any) -> None:
    assert len(federation.up) == len(federation.down) == 2 * 2 * 3
    everything = b"\n".join(federation.up)
    assert len(everything) < 12 * 1_500
    assert everything.count(b"router-statistics") == 6
    for user in federation.people.device:
        for text in strings_of(user):
            assert text.encode() not in everything, text
    sent = {everything[i : i + 8] for i in range(len(everything) - 7)}
    learned: set[bytes] = set()
    for path in federation.run_dir.glob("vaults/*/private/*/*.safetensors"):
        learned |= windows(load_file(path))
    for path in federation.run_dir.glob("vaults/*/embedding/*.safetensors"):
        learned |= windows(load_file(path))
    assert len(learned) > 5_000
    assert sent & learned == set()


def test_nothing_of_the_server_s_people_goes_down_in_words(federation: Any) -> None:
    everything = b"\n".join(set(federation.down))
    assert b"population.safetensors" in everything
    for user in federation.people.server:
        for text in strings_of(user):
            assert text.encode() not in everything, text


CANARY = "CANARY-19c4 my secret diary"


def test_a_planted_canary_stays_at_home_even_when_devices_raise_it(
    started: Any, federation: Any, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = started(devices=5, quorum=0.1)
    first = federation.people.device[0]
    planted = ProfileItem("h99", "headline", f"{CANARY} text", f"{CANARY} target")
    home = Vault(run / "vaults" / "0000")
    home.trust(federation.server_key)
    home.move_in(replace(first, user_id=f"{CANARY} id", history=(planted, *first.history)))
    errors: dict[str, BaseException] = {
        "0001": RuntimeError(CANARY),
        "0002": MesofedError(CANARY),
        "0003": ProtocolError(CANARY, Refusal.REPLY_BLOCKED),
        "0004": SystemExit(CANARY),
    }
    install = Device.install

    def install_or_raise(device: Device, files: Any) -> int:
        if device.vault.folder.name in errors:
            raise errors[device.vault.folder.name]
        return install(device, files)

    down: list[bytes] = []
    up: list[bytes] = []
    monkeypatch.setattr(Device, "install", install_or_raise)
    monkeypatch.setattr(LocalGrid, "_answer", recording(LocalGrid._answer, down, up))
    simulate(config, run)

    assert CANARY in (run / "vaults" / "0000" / "person.jsonl").read_text(encoding="utf-8")
    for name in errors:
        log = (run / "vaults" / f"{name}.errors.log").read_text(encoding="utf-8")
        assert CANARY in log, "the exception was really raised"
    assert len(up) == 5 + 1
    assert CANARY.encode() not in b"".join(up)
    assert b"CANARY" not in b"".join(up)
    assert b"Traceback" not in b"".join(up)
    record = (run / "statistics" / "r1.json").read_text(encoding="utf-8")
    assert "CANARY" not in record
    assert json.loads(record)["answered"] == 1
    assert [entry["reason"] for entry in json.loads(record)["refused"]] == [
        REASONS[Refusal.DEVICE_FAILED],
        REASONS[Refusal.REQUEST_REFUSED],
        REASONS[Refusal.REPLY_BLOCKED],
        REASONS[Refusal.DEVICE_FAILED],
    ]
    learned = windows(load_file(run / "vaults" / "0000" / "private" / "r1" / "oppu.safetensors"))
    sent = b"".join(up)
    assert not any(sent[i : i + 8] in learned for i in range(len(sent) - 7))
