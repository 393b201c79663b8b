"""The population LoRA: what everyone shares, learned from all of the server corpus."""

from collections.abc import Sequence

from shared.base_model import BaseModel
from shared.cohort import Trained, train_cohort
from shared.config import TrainingConfig
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.samples import Sample
from shared.seeding import derive_seed
from shared.training import Trainee


def train_population(
    base: BaseModel,
    samples: Sequence[Sample],
    config: TrainingConfig,
    seed: int,
    start: Lora | None = None,
) -> Trained:
    """Train one LoRA on everybody's samples: a cohort whose one member is everyone.

    Parameters
    ----------
    start : Lora, optional
        The population LoRA of the release before, to go on from.
    """
    trainee = Trainee("population", tuple(samples), derive_seed(seed, "population"))
    if start is None:
        initial = Slab.initial(base.maps, config.rank, [derive_seed(trainee.seed, "start")])
    else:
        initial = Slab.of(base.maps, [start])
    return train_cohort(base, [trainee], initial, config)
