"""What differential privacy of the bank costs and buys, measured on the same anchors.

Each bank is trained from the same start on the same items. Their kept items tell what the anchors'
meta-LoRAs are still good for, the attack what they still give away.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.bank import train_bank
from server.private_training import PrivatelyTrained
from server.training_budget import Budget
from shared.base_model import BaseModel
from shared.compute import compute
from shared.corpus.user import ProfileItem
from shared.lora.lora import Lora
from shared.progress import stage
from shared.release import Release
from shared.retrieval import Examples
from shared.seeding import derive_seed
from simulations.audit.attack import TRAINED_ON, Attack, judge
from simulations.audit.federations import Ground
from simulations.audit.likelihood import item_losses, membership_by_likelihood, samples_of
from simulations.audit.people import Halved
from simulations.report.statistics import Estimate, bootstrap_mean

EPSILONS = (8.0, 1.0)
"""Budgets that are tried, beside none and the one that is configured."""

BANK = "meta-LoRA bank"
KNOWN_ANCHOR = "the release, the item, and which meta-LoRA is the person's"


@dataclass(frozen=True)
class BankPrice:
    """One bank.

    Attributes
    ----------
    epsilon : float or None
        The budget; None for a bank without.
    delta : float or None
    noise_multiplier : (float, float) or None
        Least and most over the anchors.
    kept_nll : Estimate
        Of the anchors' kept items with their meta-LoRAs, in nats per token, over anchors.
    given_nll : Estimate
        Of the items that they were trained on.
    attack : Attack
        Membership by likelihood.
    """

    epsilon: float | None
    delta: float | None
    noise_multiplier: tuple[float, float] | None
    kept_nll: Estimate
    given_nll: Estimate
    attack: Attack


@dataclass(frozen=True)
class Price:
    """Banks with and without differential privacy, and the population LoRA alone as the floor.

    Attributes
    ----------
    anchors : int
    population_nll : Estimate
        Of the anchors' kept items without any meta-LoRA.
    banks : tuple of BankPrice
        Without a budget first, then from the largest budget to the smallest.
    """

    anchors: int
    population_nll: Estimate
    banks: tuple[BankPrice, ...]


def anchors_of(ground: Ground) -> list[Halved]:
    """Return the people whose meta-LoRAs the release holds, in its order; the server knows."""
    log = _bank_log(ground.server_run)
    by_id = {person.given.user_id: person for person in ground.server}
    return [by_id[name] for name in log["anchors"]]


def measure_price(ground: Ground, release: Release) -> Price:
    """Train banks with several budgets on the release's anchors, and attack each."""
    anchors, config = anchors_of(ground), ground.config.bank
    wanted = sorted({*EPSILONS, *([config.dp_epsilon] if config.dp_epsilon else [])}, reverse=True)
    budgets: list[float | None] = [None, *wanted]
    banks = []
    with stage("banks with privacy", len(budgets), "banks") as progress:
        for epsilon in budgets:
            banks.append(compute(lambda e=epsilon: _priced(ground, release, anchors, e)))  # type: ignore[misc]
            progress.advance(1)
    alone = compute(
        lambda: [
            _mean_loss(ground.base, [release.population], p.kept, release.examples) for p in anchors
        ]
    )
    return Price(len(anchors), bootstrap_mean(alone), tuple(banks))


def _priced(
    ground: Ground, release: Release, anchors: list[Halved], epsilon: float | None
) -> BankPrice:
    base, config, examples = ground.base, ground.config, release.examples
    bank = config.bank.model_copy(update={"dp_epsilon": epsilon or 0.0})
    members = [(p.given.user_id, samples_of(base, p.given.history, examples)) for p in anchors]
    with base.lock:
        # The seed of the release's own bank: without a change of budget it is the very same.
        trained = train_bank(
            base, release.population, members, bank, derive_seed(config.seed, "release", 1)
        )
    loras = trained.slab.loras()
    stacks = [[release.population, lora] for lora in loras]
    noises = [b.noise_multiplier for b in _budgets(trained)]
    return BankPrice(
        epsilon=epsilon,
        delta=bank.dp_delta if epsilon else None,
        noise_multiplier=(min(noises), max(noises)) if noises else None,
        kept_nll=bootstrap_mean(
            [_mean_loss(base, s, p.kept, examples) for s, p in zip(stacks, anchors, strict=True)]
        ),
        given_nll=bootstrap_mean(
            [
                _mean_loss(base, s, p.given.history, examples)
                for s, p in zip(stacks, anchors, strict=True)
            ]
        ),
        attack=judge(
            BANK,
            TRAINED_ON,
            KNOWN_ANCHOR,
            membership_by_likelihood(base, [release.population], loras, anchors, examples),
            config.seed,
        ),
    )


def _budgets(trained: object) -> list[Budget]:
    return list(trained.budgets.values()) if isinstance(trained, PrivatelyTrained) else []


def _mean_loss(
    base: BaseModel, loras: list[Lora], items: tuple[ProfileItem, ...], examples: Examples
) -> float:
    return float(np.mean(item_losses(base, loras, samples_of(base, items, examples))))


def _bank_log(run: Path) -> dict[str, list[str]]:
    log: dict[str, list[str]] = json.loads(
        (run / "training" / "r1" / "bank.json").read_text(encoding="utf-8")
    )
    return log
