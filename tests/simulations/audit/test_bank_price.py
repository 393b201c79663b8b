"""The bank without a budget is the release's own; a budget takes from attack and use alike."""

import json
from dataclasses import replace

import numpy as np
import pytest

from shared.config import RunConfig
from shared.retrieval import NO_EXAMPLES, Examples, history_with_examples
from shared.tasks import TASKS
from simulations.audit.bank_price import EPSILONS, Price, anchors_of, measure_price
from simulations.audit.federations import Ground, lay_ground
from simulations.audit.inference import _on_release, release_of
from simulations.audit.likelihood import item_losses, samples_of


@pytest.fixture(scope="module")
def ground_with_examples(
    audit_config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> Ground:
    """A ground whose release was trained with one own item before every question."""
    retrieval = audit_config.retrieval.model_copy(update={"items": 1, "tasks": tuple(TASKS)})
    config = audit_config.model_copy(update={"retrieval": retrieval})
    return lay_ground(config, tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def price(ground: Ground) -> Price:
    return measure_price(ground, release_of(ground))


def test_the_bank_without_a_budget_is_the_release_s_own(ground: Ground, price: Price) -> None:
    base, release, anchors = ground.base, release_of(ground), anchors_of(ground)
    log = json.loads((ground.server_run / "training" / "r1" / "bank.json").read_text())
    assert [person.given.user_id for person in anchors] == log["anchors"]
    losses = [
        item_losses(base, [release.population, lora], samples_of(base, p.kept, NO_EXAMPLES)).mean()
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


def test_a_release_with_examples_is_attacked_with_the_prompts_of_its_training(
    ground_with_examples: Ground,
) -> None:
    ground, base = ground_with_examples, ground_with_examples.base
    release, anchors = release_of(ground), anchors_of(ground)
    assert release.examples.count == 1
    price = measure_price(ground, release)

    def mean_loss(examples: Examples) -> float:
        return float(
            np.mean(
                [
                    item_losses(
                        base,
                        [release.population, lora],
                        history_with_examples(base, person.given.history, examples),
                    ).mean()
                    for lora, person in zip(release.bank, anchors, strict=True)
                ]
            )
        )

    # The bank that is trained here is the release's own, which the server has trained.
    assert price.banks[0].given_nll.mean == pytest.approx(mean_loss(release.examples), rel=1e-5)
    assert price.banks[0].given_nll.mean != pytest.approx(mean_loss(NO_EXAMPLES), rel=1e-4)
    on_bank, on_population, *_ = _on_release(ground, release)
    assert replace(on_bank, knows="") == replace(price.banks[0].attack, knows="")
    bare = replace(release, examples=NO_EXAMPLES)
    assert _on_release(ground, bare)[1].auc != on_population.auc
