"""A federation in each privacy mode: the means are those of the devices' noised statistics."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import client.app
from client.egress import egress_guard
from client.ledger import ledger
from client.vault import Vault
from server.app import app as server_app
from shared.errors import MesofedError
from shared.noise import discrete_gaussian, simulated_randomness
from shared.privacy import calibrate, noise_variance, share_variance
from shared.protocol import REASONS, Refusal, RouterStatistics
from shared.secure_aggregation.messages import KEYS, MASKED, SHARES, UNMASK
from shared.statistic_vector import clip, decode_mean, encode
from simulations.federated import simulate
from simulations.local_grid import LocalGrid, run_local
from simulations.ray_engine import run_on_ray

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


def expected_mean(
    run: Path, seed: int, devices: Sequence[int], variance: int, *, cut: bool
) -> dict[str, Any]:
    """Work the mean out from the vaults, which no server can open, and the run's seed."""
    total: list[int] = []
    for index in devices:
        name = f"{index:04d}"
        statistics = own_statistics(Vault(run / "vaults" / name))
        experts, anchors = len(statistics.expert_weights), len(statistics.anchor_weights)
        generator = simulated_randomness(seed, name)(1)
        vector = [value + discrete_gaussian(variance, generator) for value in encode(statistics)]
        if cut:
            vector = clip(vector, experts, anchors, 3 * (isqrt(variance) + 1))
        total = [a + b for a, b in zip(total, vector, strict=True)] if total else vector
    mean = decode_mean(total, len(devices), experts)
    return {
        "expert_weights": list(mean.expert_weights),
        "anchor_weights": list(mean.anchor_weights),
        "best_similarity": mean.best_similarity,
        "entropy": mean.entropy,
    }


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
    everyone = range(DEVICES)
    assert record["mean"] == expected_mean(
        run, config.seed, everyone, variance, cut=mode == "local"
    )
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


def vanishing(stages: Mapping[int, str]) -> ClientApp:
    """Return the real ClientApp, but for partitions that are gone when a stage of a sum comes.

    Nested, so that it travels to the worker processes of Ray by value.
    """
    app = ClientApp(mods=[egress_guard])
    app.train("install_release")(client.app.install_release)

    def handle(message: Message, context: Context) -> Message:
        stage = message.metadata.message_type
        if stages.get(int(str(context.node_config["partition-id"]))) == stage:
            raise ConnectionError("gone")
        reply: Message = getattr(client.app, stage.removeprefix("query."))(message, context)
        return reply

    for stage in (KEYS, SHARES, MASKED, UNMASK):
        app.query(stage.removeprefix("query."))(handle)
    return app


def gather(engine: str, run: Path, devices: int, stages: Mapping[int, str]) -> None:
    if engine == "ray":
        run_on_ray(server_app, vanishing(stages), run, devices, workers=1)
    else:
        run_local(server_app, vanishing(stages), run, devices)


@pytest.mark.parametrize(
    "engine",
    [
        "local",
        pytest.param(
            "ray",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    importlib.util.find_spec("ray") is None, reason="Ray is an optional extra"
                ),
            ],
        ),
    ],
)
def test_too_few_open_no_sum_and_resumed_it_opens_without_those_who_are_gone(
    started: Any, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in Ray's worker, as in this process
    devices = 7
    config, run = started(devices, privacy={"mode": "central", **BUDGET}, quorum=0.6)

    # Five are needed, and three go between their shares and their masked vectors.
    failed = REASONS[Refusal.DEVICE_FAILED]
    few = rf"at least 5 of 7 devices to answer {MASKED} of release 1; 4 did \(3 x {failed}\)"
    with pytest.raises(MesofedError, match=few):
        gather(engine, run, devices, {0: MASKED, 1: MASKED, 6: MASKED})
    assert not (run / "statistics").exists()
    missed = json.loads((run / "missed" / "r1.json").read_text(encoding="utf-8"))
    assert (missed["needed"], missed["asked"], missed["answered"]) == (5, 7, 4)
    charged = [len(ledger(Vault(run / "vaults" / f"{index:04d}"))) for index in range(devices)]
    assert charged == [0, 0, 1, 1, 1, 1, 0]

    # Two of them are back. One is not, and another goes before the masks are taken off.
    gather(engine, run, devices, {1: MASKED, 5: UNMASK})
    record = record_of(run)
    assert (record["asked"], record["joined"], record["answered"]) == (7, 7, 6)
    assert record["sum"] == "taken"
    first = {"local": 1, "ray": 2}[engine]  # 1 is the SuperLink's on Ray
    assert record["refused"] == [{"node": first + gone, "reason": failed} for gone in (1, 5)]
    honest = 5 - 2  # two of the seven may be dishonest
    variance = share_variance(calibrate(20.0, 1e-5, 1), honest)
    left = [0, 2, 3, 4, 5, 6]
    assert record["mean"] == expected_mean(run, config.seed, left, variance, cut=False)
    charged = [len(ledger(Vault(run / "vaults" / f"{index:04d}"))) for index in range(devices)]
    assert charged == [1, 0, 1, 1, 1, 1, 1]
