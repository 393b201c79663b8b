"""A federation in each privacy mode: the means are those of the devices' noised statistics."""

import json
from math import isqrt
from pathlib import Path
from typing import Any

import pytest

from client.ledger import ledger
from client.vault import Vault
from shared.errors import MesofedError
from shared.noise import discrete_gaussian, simulated_randomness
from shared.privacy import calibrate, noise_variance, share_variance
from shared.protocol import RouterStatistics
from shared.statistic_vector import clip, decode_mean, encode
from simulations.federated import simulate
from simulations.local_grid import LocalGrid

DEVICES = 5
BUDGET = {"epsilon": 20.0, "delta": 1e-5, "honest_share": 0.67}


def own_statistics(vault: Vault) -> RouterStatistics:
    kept: Any = vault.statistics(1)
    return RouterStatistics(
        kept["release"],
        tuple(kept["expert_weights"]),
        tuple(kept["anchor_weights"]),
        kept["best_similarity"],
        kept["entropy"],
    )


def expected_mean(run: Path, seed: int, variance: int, *, cut: bool) -> Any:
    """Work the mean out from the vaults, which no server can open, and the run's seed."""
    total: list[int] = []
    for index in range(DEVICES):
        name = f"{index:04d}"
        statistics = own_statistics(Vault(run / "vaults" / name))
        experts, anchors = len(statistics.expert_weights), len(statistics.anchor_weights)
        generator = simulated_randomness(seed, name)(1)
        vector = [value + discrete_gaussian(variance, generator) for value in encode(statistics)]
        if cut:
            vector = clip(vector, experts, anchors, 3 * (isqrt(variance) + 1))
        total = [a + b for a, b in zip(total, vector, strict=True)] if total else vector
    return decode_mean(total, DEVICES, experts)


def record_of(run: Path) -> Any:
    return json.loads((run / "statistics" / "r1.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("mode", ["local", "central"])
def test_the_server_learns_the_noised_means_exactly_and_no_device_s_numbers(
    started: Any, recording: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    config, run = started(DEVICES, privacy={"mode": mode, **BUDGET})
    down: list[bytes] = []
    up: list[bytes] = []
    monkeypatch.setattr(LocalGrid, "_answer", recording(LocalGrid._answer, down, up))
    simulate(config, run)
    record = record_of(run)
    assert (record["asked"], record["answered"], record["refused"]) == (DEVICES, DEVICES, [])
    assert record.get("joined") == (DEVICES if mode == "central" else None)

    multiplier = calibrate(20.0, 1e-5, 1)
    honest = 3 - 1  # 3 devices are needed, and one of the 5 may be dishonest
    own, share = noise_variance(multiplier), share_variance(multiplier, honest)
    variance = own if mode == "local" else share
    mean = expected_mean(run, config.seed, variance, cut=mode == "local")
    assert record["mean"] == {
        "expert_weights": list(mean.expert_weights),
        "anchor_weights": list(mean.anchor_weights),
        "best_similarity": mean.best_similarity,
        "entropy": mean.entropy,
    }
    assert all(set(d) == {"node", "bytes_down", "bytes_up"} for d in record["devices"])

    privacy = record["privacy"]
    assert privacy["mode"] == mode
    assert privacy["noise_multiplier"] == pytest.approx(multiplier, rel=1e-6)
    assert 19.5 < privacy["epsilon_of_round"] == privacy["epsilon_in_total"] <= 20.0
    everything = b"\n".join(up)
    assert b"router-statistics" not in everything
    assert len(up) == DEVICES * (2 if mode == "local" else 5)
    for index in range(DEVICES):
        vault = Vault(run / "vaults" / f"{index:04d}")
        (entry,) = ledger(vault)
        assert entry.mechanism == mode
        for value in encode(own_statistics(vault))[:-2]:
            if value > 255:
                assert value.to_bytes(8, "little") not in everything
    assert not list((run / "sums").glob("*"))
    page = " ".join((run / "report.html").read_text(encoding="utf-8").split())
    spent = f"{privacy['epsilon_of_round']:.3g}"
    assert f"Privacy of round 1, mode {mode}: epsilon {spent} at delta 1e-05." in page
    assert f"one person over all rounds: epsilon {spent} of 20 at delta 1e-05." in page


def test_a_device_with_another_mode_than_the_server_s_answers_nothing(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = started(3, privacy={"mode": "local", **BUDGET})
    import client.simulated

    mine = config.model_copy(update={"privacy": config.privacy.model_copy(update={"mode": "off"})})
    real = client.simulated.resolve_run

    def other(context: Any) -> Any:
        from dataclasses import replace

        return replace(real(context), config=mine)

    monkeypatch.setattr(client.simulated, "resolve_run", other)
    with pytest.raises(MesofedError, match="3 x the device's own privacy mode answers no such"):
        simulate(config, run)
    assert not (run / "statistics").exists()


def test_a_budget_for_one_round_does_not_pay_for_a_run_that_is_begun_anew(
    started: Any,
) -> None:
    """The record of a finished round is lost: devices say the same again, for nothing more."""
    config, run = started(3, privacy={"mode": "local", **BUDGET})
    simulate(config, run)
    record = record_of(run)
    (run / "statistics" / "r1.json").unlink()
    simulate(config, run)
    again = record_of(run)
    assert again["mean"] == record["mean"]
    for index in range(3):
        assert len(ledger(Vault(run / "vaults" / f"{index:04d}"))) == 1
