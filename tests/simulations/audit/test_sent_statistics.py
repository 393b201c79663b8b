"""What the audit takes for seen is what the server has; in a secure sum it has nobody's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import boundary
from client.inspection import sent
from client.vault import Vault
from shared.config import RunConfig
from shared.privacy import calibrate
from shared.protocol import RouterStatistics
from shared.secure_aggregation import masks
from shared.statistic_vector import UNITS, decode_mean, encode
from simulations.audit.federations import Ground, lay_ground, run_people, vault_folder_of
from simulations.audit.inference import measure_inference
from simulations.audit.sent_statistics import Seen, look_at, sent_vector, sent_vectors

Runs = Callable[[str], Path]
Grounds = Callable[[str], Ground]


def record_of(run: Path) -> Any:
    return json.loads((run / "statistics" / "r1.json").read_text(encoding="utf-8"))


def before_noise(run: Path, devices: int) -> list[RouterStatistics]:
    kept: list[Any] = [Vault(vault_folder_of(run, d)).statistics(1) for d in range(devices)]
    return [
        RouterStatistics(
            1,
            tuple(one["expert_weights"]),
            tuple(one["anchor_weights"]),
            one["best_similarity"],
            one["entropy"],
        )
        for one in kept
    ]


def test_in_mode_off_it_is_what_the_server_wrote_down(ground: Ground, people_runs: Runs) -> None:
    run, devices = people_runs("off"), len(ground.devices)
    vectors = sent_vectors(run, devices)
    # The local engine's device d is node d + 1.
    for entry in record_of(run)["devices"]:
        statistics = RouterStatistics(**entry["statistics"])
        assert vectors[entry["node"] - 1] * UNITS == pytest.approx(encode(statistics))
    seen = look_at(run, devices, "off")
    assert seen == Seen("off", devices, single=devices, bare=devices, sum=None)
    assert seen.failures == ()


def test_in_mode_local_it_is_with_the_noise(ground: Ground, people_runs: Runs) -> None:
    run, devices = people_runs("local"), len(ground.devices)
    vectors = sent_vectors(run, devices)
    total = [round(number * UNITS) for number in np.sum(vectors, axis=0)]
    own = before_noise(run, devices)
    mean = decode_mean(total, devices, len(own[0].expert_weights))
    record = record_of(run)
    assert record["mean"]["expert_weights"] == pytest.approx(list(mean.expert_weights))
    assert record["mean"]["anchor_weights"] == pytest.approx(list(mean.anchor_weights))
    # The noise itself: its size over all devices is what the round's record says of it.
    noise = np.concatenate(
        [v - np.array(encode(o)) / UNITS for v, o in zip(vectors, own, strict=True)]
    )
    declared = record["privacy"]["noise_of_mean"] * devices**0.5
    assert 0.6 * declared < noise.std() < 1.5 * declared
    seen = look_at(run, devices, "local")
    assert seen == Seen("local", devices, single=devices, bare=0, sum=None)
    assert seen.failures == ()


def test_noise_that_is_missing_fails_the_audit(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "local_vector", lambda statistics, *_: encode(statistics))
    ground = own_ground("local")
    devices = len(ground.devices)
    seen = look_at(run_people(ground), devices, "local")
    assert seen.bare == devices
    assert seen.failures == (f"{devices} devices sent statistics without noise",)


def test_in_mode_central_there_is_the_sum_alone(
    ground: Ground, grounds: Grounds, people_runs: Runs
) -> None:
    run, devices = people_runs("central"), len(ground.devices)
    assert [sent_vector(run, device) for device in range(devices)] == [None] * devices
    # Masked vectors were sent, so there was something to read.
    for device in range(devices):
        requests = [entry["request"] for entry in sent(Vault(vault_folder_of(run, device)))]
        assert requests.count("query.secagg_masked") == 1
    seen, record = look_at(run, devices, "central"), record_of(run)
    assert (seen.single, seen.bare, seen.failures) == (0, 0, ())
    assert seen.sum is not None
    assert seen.sum.devices == record["answered"] == devices
    assert list(seen.sum.expert_weights or ()) == record["mean"]["expert_weights"]
    truth = np.mean([own.expert_weights for own in before_noise(run, devices)], axis=0)
    assert seen.sum.true_expert_weights == pytest.approx(tuple(truth))
    assert seen.sum.noise_of_mean == record["privacy"]["noise_of_mean"] > 0
    with pytest.raises(RuntimeError, match="have sent no statistics"):
        sent_vectors(run, devices)
    targets = {attack.target for attack in measure_inference(grounds("central"), run)}
    assert targets == {"meta-LoRA bank", "population LoRA", "uploaded user LoRA"}


def test_the_noise_is_that_of_a_round_of_the_run(audit_config: RunConfig, tmp_path: Path) -> None:
    """The audit runs one round, of a budget for three, and of fewer devices than a sum may need."""
    privacy = audit_config.privacy.model_copy(update={"mode": "central", "minimum_devices": 50})
    rounds = audit_config.rounds.model_copy(update={"count": 3})
    ground = lay_ground(
        audit_config.model_copy(update={"privacy": privacy, "rounds": rounds}), tmp_path
    )
    record = record_of(run_people(ground))
    assert record["answered"] == len(ground.devices) < 50
    wanted = calibrate(privacy.epsilon, privacy.delta, 3)
    assert wanted > 1.5 * calibrate(privacy.epsilon, privacy.delta, 1)
    assert record["privacy"]["noise_multiplier"] == pytest.approx(wanted, rel=1e-6)


def test_masks_that_hide_nothing_fail_the_audit(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(key: bytes, length: int) -> masks.Ring:
        return np.zeros(length, dtype=np.uint64)

    monkeypatch.setattr(masks, "mask", bare)
    ground = own_ground("central")
    devices = len(ground.devices)
    seen = look_at(run_people(ground), devices, "central")
    assert seen.single == devices
    assert seen.failures == (f"{devices} devices sent statistics that can be read alone",)
    assert replace(seen, single=0).failures == ()
