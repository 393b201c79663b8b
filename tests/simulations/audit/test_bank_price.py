"""The bank without a budget is the release's own; a budget takes from attack and use alike."""

import json

import numpy as np
import pytest

from simulations.audit.bank_price import EPSILONS, Price, anchors_of, measure_price
from simulations.audit.federations import Ground
from simulations.audit.inference import release_of
from simulations.audit.likelihood import item_losses, samples_of


@pytest.fixture(scope="module")
def price(ground: Ground) -> Price:
    return measure_price(ground, release_of(ground))


def test_the_bank_without_a_budget_is_the_release_s_own(ground: Ground, price: Price) -> None:
    release, anchors = release_of(ground), anchors_of(ground)
    log = json.loads((ground.server_run / "training" / "r1" / "bank.json").read_text())
    assert [person.given.user_id for person in anchors] == log["anchors"]
    losses = [
        item_losses(ground.base, [release.population, lora], samples_of(ground.base, p.kept)).mean()
        for lora, p in zip(release.bank, anchors, strict=True)
    ]
    plain = price.banks[0]
    assert plain.epsilon is None
    assert plain.kept_nll.mean == pytest.approx(np.mean(losses), rel=1e-5)
    assert plain.given_nll.mean < price.population_nll.mean


def test_budgets_cost_what_they_buy(price: Price) -> None:
    assert [bank.epsilon for bank in price.banks] == [None, *EPSILONS]
    plain, *private = price.banks
    least = [bank.noise_multiplier[0] for bank in private if bank.noise_multiplier]
    assert least == sorted(least)
    assert len(least) == len(EPSILONS)
    assert all(bank.given_nll.mean > plain.given_nll.mean for bank in private)
    assert all(bank.attack.auc < plain.attack.auc for bank in private)
