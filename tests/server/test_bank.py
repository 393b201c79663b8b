"""The bank: each anchor's meta-LoRA is what it would be alone, over the population LoRA."""

import torch

from server.bank import train_bank
from shared.base_model import BaseModel
from shared.cohort import train_cohort
from shared.config import BankConfig
from shared.lora.algebra import base_weights, merged
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.samples import Sample, encode
from shared.seeding import derive_seed
from shared.training import Trainee

CONFIG = BankConfig(rank=2, epochs=2, batch_size=2, learning_rate=5e-3)


def population(base: BaseModel) -> Lora:
    generator = torch.Generator().manual_seed(4)
    return Lora(
        {
            m.name: Factors(
                0.1 * torch.randn(m.in_features, 3, generator=generator),
                0.1 * torch.randn(3, m.out_features, generator=generator),
            )
            for m in base.maps
        }
    )


def anchors(base: BaseModel) -> list[tuple[str, list[Sample]]]:
    return [
        (name, [encode(base, f"post: {name} {i}\ntag:", f"{name}{i}") for i in range(count)])
        for name, count in (("ann", 3), ("bo", 5), ("cy", 1))
    ]


def test_the_cohort_trains_each_anchor_as_if_alone(base: BaseModel) -> None:
    below, members = population(base), anchors(base)
    together = train_bank(base, below, members, CONFIG, seed=9)
    assert together.slab.rank == 2
    assert list(together.curves) == ["ann", "bo", "cy"]
    for index, member in enumerate(members):
        alone = train_bank(base, below, [member], CONFIG, seed=9)
        torch.testing.assert_close(
            together.slab.rows[index], alone.slab.rows[0], atol=2e-5, rtol=1e-3
        )
    assert not torch.allclose(together.slab.rows[0], together.slab.rows[1], atol=1e-2)


def test_meta_loras_are_trained_over_the_population_lora(base: BaseModel) -> None:
    below, (ann, *_) = population(base), anchors(base)
    trained = train_bank(base, below, [ann], CONFIG, seed=9)
    # The same training on a base model into whose weights the population LoRA has been added.
    trainee = Trainee("ann", tuple(ann[1]), derive_seed(9, "bank", "ann"))
    initial = Slab.initial(base.maps, 2, [derive_seed(trainee.seed, "start")])
    with merged(base_weights(base.model, [m.name for m in base.maps]), below):
        expected = train_cohort(base, [trainee], initial, CONFIG)
    torch.testing.assert_close(trained.slab.rows, expected.slab.rows, atol=2e-5, rtol=1e-3)
    without = train_cohort(base, [trainee], initial, CONFIG)
    assert not torch.allclose(trained.slab.rows, without.slab.rows, atol=1e-3)
