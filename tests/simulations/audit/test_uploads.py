"""The contrast: the uploads of `fedavg-lora` are the real ones, and the attacks on them work."""

import numpy as np
import pytest
import torch

from shared.lora.lora import Lora
from simulations.audit import uploads
from simulations.audit.attack import Scored
from simulations.audit.federations import Ground
from simulations.audit.inference import release_of
from simulations.audit.uploads import attack_uploads, summed, updates, uploaded
from simulations.comparison.config import AveragingConfig


def dense(lora: Lora) -> dict[str, torch.Tensor]:
    return {name: (f.a.double() @ f.b.double()) for name, f in lora.factors.items()}


def test_what_is_attacked_is_what_was_uploaded(ground: Ground) -> None:
    release = release_of(ground)
    rounds = uploaded(ground, release)
    assert len(rounds) == AveragingConfig().rounds > 1
    given = [release.population, *(done.average for done in rounds[:-1])]
    for done, lora in zip(rounds, given, strict=True):
        assert all(torch.equal(w, dense(lora)[name]) for name, w in dense(done.start).items())
    for done in rounds:
        loras = done.uploads.loras()
        assert len(loras) == len(ground.devices)
        start = dense(done.start)
        for upload, update in zip(loras, updates(done), strict=True):
            sent, added = dense(upload), dense(update)
            for name, weight in sent.items():
                torch.testing.assert_close(start[name] + added[name], weight, rtol=0, atol=1e-6)
        assert len({tuple(row.tolist()[:50]) for row in done.uploads.rows}) == len(loras)


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
