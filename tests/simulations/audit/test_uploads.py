"""The contrast: the uploads of `fedavg-lora` are the real ones, and the attacks on them work."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.cohort import train_cohort
from shared.lora.slab import Slab
from simulations.audit import uploads
from simulations.audit.attack import Scored
from simulations.audit.federations import Ground
from simulations.audit.groups import group_of
from simulations.audit.inference import release_of
from simulations.audit.uploads import attack_uploads, summed, uploaded
from simulations.comparison.config import AveragingConfig


def test_what_is_attacked_is_what_was_uploaded(ground: Ground) -> None:
    release = release_of(ground)
    rounds = uploaded(ground, release)
    assert len(rounds) == AveragingConfig().rounds > 1
    given = [release.population, *(done.average for done in rounds[:-1])]
    for number, (done, lora) in enumerate(zip(rounds, given, strict=True)):
        # Each device by itself, from the global LoRA of the round, on the given half alone.
        for place, client in enumerate(uploads._clients(ground, release, number)):
            assert len(client.samples) == len(ground.devices[place].given.history)
            start = Slab.of(ground.base.maps, [lora])
            alone = train_cohort(ground.base, [client], start, AveragingConfig()).slab
            torch.testing.assert_close(done.uploads.rows[place], alone.rows[0])


def test_scores_of_rounds_add_up() -> None:
    one = [Scored(np.array([1.0, 2.0]), np.array([0.5])), Scored(np.array([3.0]), np.array([1.0]))]
    two = [
        Scored(np.array([10.0, 20.0]), np.array([5.0])),
        Scored(np.array([0.0]), np.array([9.0])),
    ]
    first, second = summed([one, two])
    assert (first.members.tolist(), first.others.tolist()) == ([11.0, 22.0], [5.5])
    assert (second.members.tolist(), second.others.tolist()) == ([3.0], [10.0])


@pytest.mark.parametrize(("rate", "least", "most"), [(3e-2, 0.8, 1.0), (1e-12, 0.35, 0.65)])
def test_members_are_found_where_something_was_learned(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, rate: float, least: float, most: float
) -> None:
    settings = AveragingConfig(rounds=2, epochs=6, learning_rate=rate)
    monkeypatch.setattr(uploads, "AveragingConfig", lambda: settings)
    membership, group = attack_uploads(ground, release_of(ground))
    assert membership.contrast
    assert group.contrast
    assert membership.people == len(ground.devices)
    assert least <= membership.auc <= most


def test_groups_are_found_where_everybody_uploads_what_the_group_learned(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads are put in: of each device, a LoRA trained on the server's users of its group."""
    release, base = release_of(ground), ground.base
    settings = AveragingConfig(rounds=1, epochs=20, learning_rate=1e-2)
    monkeypatch.setattr(uploads, "AveragingConfig", lambda: settings)
    by_group = {
        group: tuple(p for p in ground.server if group_of(p) == group)
        for group in {group_of(person) for person in ground.devices}
    }
    pooled = {
        group: replace(
            people[0],
            given=replace(
                people[0].given, history=tuple(i for p in people for i in p.given.history)
            ),
        )
        for group, people in by_group.items()
    }
    stand_ins = tuple(pooled[group_of(person)] for person in ground.devices)
    rounds = uploaded(replace(ground, devices=stand_ins), release)
    monkeypatch.setattr(uploads, "uploaded", lambda ground, release: rounds)
    _, group = attack_uploads(ground, release)
    assert group.auc == 1.0
    swapped = [
        replace(done, uploads=Slab(base.maps, done.uploads.rank, _other(ground, done.uploads.rows)))
        for done in rounds
    ]
    monkeypatch.setattr(uploads, "uploaded", lambda ground, release: swapped)
    assert attack_uploads(ground, release)[1].auc == 0.0


def _other(ground: Ground, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows with those of the two groups exchanged."""
    own = [group_of(person) for person in ground.devices]
    other = [next(p for p, g in enumerate(own) if g != group) for group in own]
    return rows[other]
