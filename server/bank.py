"""The Meta-LoRA bank: one meta-LoRA per anchor user, over the population LoRA (MTA, stage 1b)."""

from collections.abc import Sequence

import torch

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
) -> Trained:
    """Train the meta-LoRAs of all anchors, each on its own samples, as one cohort.

    Parameters
    ----------
    anchors : sequence of (name, samples)
        The anchor users.
    """
    trainees = [
        Trainee(name, tuple(samples), derive_seed(seed, "bank", name)) for name, samples in anchors
    ]
    initial = Slab.initial(
        base.maps, config.rank, [derive_seed(trainee.seed, "start") for trainee in trainees]
    )
    fusion = FusionWeights((population,), torch.ones(len(trainees), 1))
    return train_cohort(base, trainees, initial, config, fusion)
