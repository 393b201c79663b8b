"""The Meta-LoRA bank: one meta-LoRA per anchor user, over the population LoRA (MTA, stage 1b)."""

from collections.abc import Sequence

import torch

from server.private_training import train_privately
from shared.base_model import BaseModel
from shared.cohort import FusionWeights, Trained, train_cohort
from shared.config import BankConfig
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.samples import Sample
from shared.seeding import derive_seed
from shared.training import Trainee


def train_bank(
    base: BaseModel,
    population: Lora,
    anchors: Sequence[tuple[str, Sequence[Sample]]],
    config: BankConfig,
    seed: int,
    noise_seed: int | None = None,
    releases: int = 1,
) -> Trained:
    """Train the meta-LoRAs of all anchors, each on its own samples, as one cohort.

    Parameters
    ----------
    anchors : sequence of (name, samples)
        The anchor users.
    noise_seed : int, optional
        Of the noise that ``config.dp_epsilon`` asks for; by default it follows from ``seed``, so
        that simulations can be repeated.
    releases : int
        Banks of the same anchors that share the privacy budget.
    """
    trainees = [
        Trainee(name, tuple(samples), derive_seed(seed, "bank", name)) for name, samples in anchors
    ]
    initial = Slab.initial(
        base.maps, config.rank, [derive_seed(trainee.seed, "start") for trainee in trainees]
    )
    if config.dp_epsilon:
        secret = derive_seed(seed, "noise") if noise_seed is None else noise_seed
        return train_privately(base, trainees, initial, config, population, secret, releases)
    fusion = FusionWeights((population,), torch.ones(len(trainees), 1))
    return train_cohort(base, trainees, initial, config, fusion)
