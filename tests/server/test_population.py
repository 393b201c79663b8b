"""The population LoRA learns what everybody's samples have in common."""

import pytest
import torch

from server.population import train_population
from shared.base_model import BaseModel
from shared.config import TrainingConfig
from shared.lora.algebra import base_weights, merged
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.samples import Sample, encode

CONFIG = TrainingConfig(rank=2, epochs=8, batch_size=4, learning_rate=2e-2)


def samples_of(base: BaseModel) -> list[Sample]:
    return [encode(base, f"post: {word}\ntag:", "gear") for word in ("a", "bb", "ccc", "dd", "e")]


def loss(base: BaseModel, lora: Lora, samples: list[Sample]) -> float:
    """Mean loss per answer token by transformers itself, with the LoRA in the weights."""
    total, tokens = 0.0, 0
    weights = base_weights(base.model, list(lora.factors))
    with merged(weights, lora), torch.no_grad():
        for sample in samples:
            ids = torch.tensor([[*sample.prompt, *sample.answer]])
            labels = torch.tensor([[-100] * len(sample.prompt) + list(sample.answer)])
            total += float(base.model(input_ids=ids, labels=labels).loss) * len(sample.answer)
            tokens += len(sample.answer)
    return total / tokens


def test_the_loss_of_everyone_falls(base: BaseModel) -> None:
    samples = samples_of(base)
    trained = train_population(base, samples, CONFIG, seed=1)
    untrained = Slab.initial(base.maps, CONFIG.rank, [1]).lora(0)  # changes nothing
    assert loss(base, trained.slab.lora(0), samples) < 0.7 * loss(base, untrained, samples)
    assert trained.tokens == CONFIG.epochs * sum(len(sample) for sample in samples)
    assert [step for step, _ in trained.curves["population"]] == list(range(16))


def test_the_next_release_goes_on_from_the_last(base: BaseModel) -> None:
    samples = samples_of(base)
    first = train_population(base, samples, CONFIG, seed=1)
    still = CONFIG.model_copy(update={"learning_rate": 1e-12, "epochs": 1, "batch_size": 8})
    second = train_population(base, samples, still, seed=2, start=first.slab.lora(0))
    torch.testing.assert_close(second.slab.rows, first.slab.rows, atol=1e-9, rtol=0)
    # One batch holds everyone, so its loss is the mean of the users' samples under the start.
    lengths = torch.tensor([len(s.answer) for s in samples], dtype=torch.float64)
    assert len(set(lengths.tolist())) == 1
    ((_, came),) = second.curves["population"]
    assert came == pytest.approx(loss(base, first.slab.lora(0), samples), rel=1e-4)


def test_only_the_seed_decides(base: BaseModel) -> None:
    samples = samples_of(base)
    rows = [train_population(base, samples, CONFIG, seed).slab.rows for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2], atol=1e-3)
