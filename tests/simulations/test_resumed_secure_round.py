"""A central round whose server stops at any stage is resumed: same sum, nobody charged twice."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message

from client.ledger import ledger
from client.vault import Vault
from simulations.federated import simulate
from simulations.local_grid import LocalGrid

STAGES = ("secagg_keys", "secagg_shares", "secagg_masked", "secagg_unmask")


class StoppedError(RuntimeError):
    pass


@pytest.mark.parametrize("stage", STAGES)
def test_a_round_that_stopped_in_the_middle_of_a_stage_goes_on(
    started: Any, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    privacy = {"mode": "central", "epsilon": 20.0, "delta": 1e-5, "honest_share": 0.67}
    config, run = started(5, privacy=privacy)
    pushed, asked = LocalGrid.push_messages, 0

    def stops(grid: LocalGrid, messages: Iterable[Message]) -> list[str]:
        nonlocal asked
        several = list(messages)
        asked += several[0].metadata.message_type == f"query.{stage}"
        if asked == 3:
            raise StoppedError
        return pushed(grid, several)

    with monkeypatch.context() as patch:
        patch.setattr(LocalGrid, "push_messages", stops)
        with pytest.raises(StoppedError):
            simulate(config, run)
    assert not (run / "statistics" / "r1.json").exists()

    simulate(config, run)
    record = json.loads((run / "statistics" / "r1.json").read_text(encoding="utf-8"))
    assert (record["answered"], record["refused"]) == (5, [])
    charged = [len(ledger(Vault(run / "vaults" / f"{index:04d}"))) for index in range(5)]
    assert charged == [1] * 5
