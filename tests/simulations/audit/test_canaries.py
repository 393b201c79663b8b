"""Canaries are where they were planted, each device's its own, and trained values are read back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from client.device import Device
from client.vault import Vault
from shared.corpus.synthetic import synthetic_users
from simulations.audit.canaries import (
    PLANTED_METHOD,
    canary_tensors,
    canary_text,
    learned,
    plant,
    really_there,
)
from simulations.audit.federations import Ground, PeopleRun

PERSON = synthetic_users(2, groups=2, seed=1)[0]


def home(ground: Ground, vault: Vault) -> Device:
    return Device(ground.base, vault, (PLANTED_METHOD,), ground.config.private, seed=1)


def test_canaries_are_in_the_vault_and_nowhere_in_the_corpus(
    ground: Ground, tmp_path: Path
) -> None:
    vault = Vault(tmp_path / "0000")
    canaries = plant(home(ground, vault), PERSON, device=0, rounds=2)
    assert really_there(vault, canaries)
    assert len({canary.kind for canary in canaries}) == len(canaries) == 8
    person = vault.person()
    texts = {canary.kind: canary.text for canary in canaries}
    assert person.user_id == texts["user id"]
    assert person.history[:-1] == PERSON.history
    assert person.history[-1].target == texts["target"]
    assert texts["history text"] in person.history[-1].text
    kept = vault.load_private(2, PLANTED_METHOD)
    assert kept is not None
    (lora,) = [canary for canary in canaries if canary.values is not None]
    stored = torch.cat([t.flatten() for k, t in kept[0].items() if k != "weights"])
    assert lora.values is not None
    np.testing.assert_array_equal(np.sort(stored.double()), np.sort(lora.values))
    # Sizes leave something to know by after rounding to two decimals.
    assert np.abs(lora.values).min() >= 0.1


def test_what_is_missing_is_noticed(ground: Ground, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "0000")
    canaries = plant(home(ground, vault), PERSON, device=0, rounds=1)
    vault.move_in(PERSON)
    assert not really_there(vault, canaries)


def test_every_device_and_place_has_a_canary_of_its_own(ground: Ground) -> None:
    texts = {canary_text(1, device, kind) for device in range(20) for kind in ("a", "b")}
    assert len(texts) == 40
    assert canary_text(1, 0, "a") == canary_text(1, 0, "a") != canary_text(2, 0, "a")
    one, other = (canary_tensors(ground.base.maps, 1, device) for device in (0, 1))
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_what_a_device_learned_is_read_back(
    ground: Ground, people_runs: Callable[[str], PeopleRun]
) -> None:
    (embedding,) = learned(Vault(people_runs("off").run / "vaults" / "0000"), 0)
    # The user LoRA is trained under the planted method's name here, so the embedding is all.
    assert (embedding.kind, embedding.planted) == ("embedding", False)
    assert embedding.values is not None
    assert embedding.values.shape == (ground.base.width,)
