"""Losses are those of transformers; a LoRA tells what it was trained on, a random one does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from server.bank import train_bank
from shared import tiny
from shared.base_model import BaseModel
from shared.config import BankConfig
from shared.corpus.synthetic import synthetic_users
from shared.lora.lora import Factors, Lora
from shared.retrieval import NO_EXAMPLES, Examples
from shared.samples import Sample
from simulations.audit.attack import judge
from simulations.audit.federations import Ground
from simulations.audit.likelihood import (
    gains,
    item_losses,
    membership_by_likelihood,
    samples_of,
)
from simulations.audit.people import Halved, halve


@pytest.fixture
def base(ground: Ground) -> BaseModel:
    return ground.base


def random_lora(base: BaseModel, seed: int, size: float = 0.1) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    return Lora(
        {
            m.name: Factors(
                size * torch.randn(m.in_features, 2, generator=generator),
                size * torch.randn(2, m.out_features, generator=generator),
            )
            for m in base.maps
        }
    )


def people() -> list[Halved]:
    users = [user for user in synthetic_users(24, groups=2, seed=9) if len(user.history) > 15]
    return [halve(user, 1) for user in users[:6]]


def plain_loss(base: BaseModel, loras: list[Lora], sample: Sample) -> float:
    model = tiny.build_model()
    for m in base.maps:
        weight = model.get_submodule(m.name).weight
        weight.data += sum(lora.factors[m.name].delta() for lora in loras)
    ids = torch.tensor([sample.prompt + sample.answer])
    labels = ids.clone()
    labels[0, : len(sample.prompt)] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def test_losses_are_those_of_transformers_in_the_order_of_the_samples(base: BaseModel) -> None:
    loras = [random_lora(base, 1), random_lora(base, 2)]
    samples = samples_of(base, people()[0].given.history, NO_EXAMPLES)
    assert len({len(sample) for sample in samples}) > 1
    expected = [plain_loss(base, loras, sample) for sample in samples]
    assert item_losses(base, loras, samples) == pytest.approx(expected, rel=1e-4)
    gain = gains(base, loras[:1], loras[1], samples)
    without = [plain_loss(base, loras[:1], sample) for sample in samples]
    assert gain == pytest.approx(np.array(without) - np.array(expected), abs=1e-3)


def test_a_trained_lora_tells_its_items_from_others_of_the_same_person(base: BaseModel) -> None:
    config = BankConfig(rank=4, epochs=4, learning_rate=1e-2)
    persons = people()
    below = random_lora(base, 3, size=0.01)
    members = [(p.given.user_id, samples_of(base, p.given.history, NO_EXAMPLES)) for p in persons]
    with base.lock:
        loras = train_bank(base, below, members, config, seed=1).slab.loras()
    found = judge(
        "", "", "", membership_by_likelihood(base, [below], loras, persons, NO_EXAMPLES), 1
    )
    assert found.above_chance
    assert found.members == found.others == sum(len(p.kept) for p in persons)
    noise = [random_lora(base, seed) for seed in range(len(persons))]
    guess = judge(
        "", "", "", membership_by_likelihood(base, [below], noise, persons, NO_EXAMPLES), 1
    )
    assert not guess.above_chance
    assert guess.auc < found.auc
    # One person alone is compared with the parts below.
    (alone,) = membership_by_likelihood(base, [below], loras[:1], persons[:1], NO_EXAMPLES)
    first = samples_of(base, persons[0].given.history, NO_EXAMPLES)
    assert alone.members == pytest.approx(gains(base, [below], loras[0], first))


def test_samples_have_the_items_before_them_that_training_had(base: BaseModel) -> None:
    examples = Examples(count=1, tokens=64)
    user = next(u for u in synthetic_users(24, groups=2, seed=9) if len(u.history) > 15)
    person = halve(user, 1)
    for half in (person.given.history, person.kept):
        samples = samples_of(base, half, examples)
        bare = samples_of(base, half, NO_EXAMPLES)
        # Answers are the same. The first of a task has nothing before it; each other has one item
        # of its own half, an earlier one, and never the answer that is asked for.
        seen: set[str] = set()
        told = [base.tokenizer.decode(sample.prompt) for sample in samples]
        for place, (item, sample, plain) in enumerate(zip(half, samples, bare, strict=True)):
            assert sample.answer == plain.answer
            assert (len(sample.prompt) > len(plain.prompt)) == (item.task in seen)
            seen.add(item.task)
            earlier = [other.text[:8] for other in half[:place] if other.task == item.task]
            assert sum(text in told[place] for text in earlier) >= bool(earlier)
            assert samples_of(base, half[: place + 1], examples)[-1] == sample
            later = [replace(i, text="later", target="later") for i in half[place + 1 :]]
            assert samples_of(base, [*half[: place + 1], *later], examples)[place] == sample
