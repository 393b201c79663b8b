"""Averages of LoRAs: apart and exact, against dense matrices."""

import pytest
import torch

from shared.lora.lora import LinearMap
from shared.lora.slab import Slab
from shared.training import Trainee
from simulations.baselines.federated_averaging import (
    FEDERATED,
    averaged_apart,
    laid_side_by_side,
    shares,
)
from simulations.comparison.scene import Scene

MAPS = (LinearMap("one", 5, 3), LinearMap("two", 3, 4))


def random_slab(users: int, rank: int, seed: int) -> Slab:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(users, Slab.parameters(MAPS, rank), generator=generator)
    return Slab(MAPS, rank, rows)


def test_shares_are_of_samples() -> None:
    trainees = [Trainee("a", ("s",) * 3, 0), Trainee("b", ("s",), 0)]  # type: ignore[arg-type]
    assert shares(trainees).tolist() == [0.75, 0.25]


def test_fedit_averages_factors_and_so_not_updates() -> None:
    slab, weights = random_slab(3, 2, 1), torch.tensor([0.5, 0.3, 0.2])
    for name, factors in averaged_apart(slab, weights):
        own = [lora.factors[name] for lora in slab.loras()]
        a = sum(w * f.a for w, f in zip(weights, own, strict=True))
        b = sum(w * f.b for w, f in zip(weights, own, strict=True))
        torch.testing.assert_close(factors.a, a)
        torch.testing.assert_close(factors.b, b)
        exact = sum(w * f.delta() for w, f in zip(weights, own, strict=True))
        assert not torch.allclose(factors.delta(), exact, atol=0.1)


def test_flora_is_the_exact_average_on_top_of_what_was() -> None:
    before, slab = random_slab(1, 4, 2).lora(0), random_slab(3, 2, 3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    for name, factors in laid_side_by_side(before, slab, weights):
        own = [lora.factors[name].delta() for lora in slab.loras()]
        exact = before.factors[name].delta() + sum(
            w * delta for w, delta in zip(weights, own, strict=True)
        )
        torch.testing.assert_close(factors.delta(), exact)
        assert factors.rank == 4 + 3 * 2


@pytest.mark.parametrize("contender", FEDERATED, ids=lambda c: c.name)
def test_updates_leave_and_are_counted(contender: object, scene: Scene) -> None:
    answered = contender.answer(scene)  # type: ignore[attr-defined]
    assert contender.leaves == "a LoRA update every round"  # type: ignore[attr-defined]
    assert contender.settings == ("federated",)  # type: ignore[attr-defined]
    traffic = contender.traffic(scene)  # type: ignore[attr-defined]
    config, maps = scene.config.averaging, scene.base.maps
    population = 4 * Slab.parameters(maps, scene.config.population.rank)
    own = 4 * Slab.parameters(maps, config.rank)
    expected = {
        "fedavg-lora": (4 * population, 3 * population),
        "fedavg-local": (4 * population, 3 * population),
        "flora": (population + 3 * len(scene.people) * own, 3 * own),
    }[contender.name]  # type: ignore[attr-defined]
    assert (traffic.down, traffic.up) == expected
    for history, outcome in zip(scene.histories, answered.outcomes, strict=True):
        own_epochs = scene.config.private.epochs if contender.name == "fedavg-local" else 0  # type: ignore[attr-defined]
        assert outcome["tokens"] == (3 + own_epochs) * sum(map(len, history))
        assert outcome["seconds"] > 0
