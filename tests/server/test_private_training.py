"""DP-SGD on LoRAs against plain autograd: gradients by sample, clipping, noise, one whole step."""

import pytest
import torch
from torch import Tensor

from server.bank import train_bank
from server.private_training import (
    PrivatelyTrained,
    clip_each,
    noised_mean,
    per_sample_gradients,
    train_privately,
)
from server.training_budget import Budget
from shared import tiny
from shared.base_model import BaseModel
from shared.config import BankConfig
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.samples import Sample, encode
from shared.seeding import derive_seed
from shared.training import Trainee

CONFIG = BankConfig(rank=2, epochs=1, batch_size=4, clip_norm=0.05, dp_epsilon=8.0)


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


def start(base: BaseModel) -> Slab:
    """Return one LoRA with no zero factor, so that every gradient is there."""
    slab = Slab.initial(base.maps, 2, [3])
    slab.rows.add_(0.05 * torch.randn(slab.rows.shape, generator=torch.Generator().manual_seed(8)))
    return slab


def samples(base: BaseModel, count: int = 3) -> tuple[Sample, ...]:
    return tuple(
        encode(base, f"post: {'word ' * i}\ntag:", f"answer {'!' * i}") for i in range(count)
    )


def plain_gradient(base: BaseModel, slab: Slab, below: Lora, sample: Sample) -> Tensor:
    """Return the gradient of one sample by transformers' loss on dense weights."""
    model = tiny.build_model()
    row = slab.rows.clone().requires_grad_()
    view = slab.views(row)
    weights = {}
    for m in base.maps:
        weight = model.get_submodule(m.name).weight.detach() + below.factors[m.name].delta()
        weights[f"{m.name}.weight"] = weight + (view[m.name].a[0] @ view[m.name].b[0]).T
    ids = torch.tensor([sample.prompt + sample.answer])
    labels = ids.clone()
    labels[0, : len(sample.prompt)] = -100
    loss = torch.func.functional_call(
        model, weights, kwargs={"input_ids": ids, "labels": labels}
    ).loss
    (gradient,) = torch.autograd.grad(loss, row)
    return gradient[0]


def test_the_gradients_of_rows_are_those_of_single_samples(base: BaseModel) -> None:
    slab, below, own = start(base), population(base), samples(base)
    losses, gradients = per_sample_gradients(base, slab, slab.rows[0], below, own)
    assert gradients.shape == (3, slab.rows.shape[1])
    assert losses.shape == (3,)
    for sample, gradient in zip(own, gradients, strict=True):
        expected = plain_gradient(base, slab, below, sample)
        assert expected.norm() > 0.05
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        clipped = clip_each(gradient[None], 0.05)[0]
        assert clipped.norm().item() == pytest.approx(0.05, rel=1e-5)
        torch.testing.assert_close(clipped, expected * 0.05 / expected.norm(), rtol=1e-3, atol=1e-6)


def test_clipping_leaves_short_gradients_alone_and_broken_ones_out() -> None:
    rows = torch.tensor([[0.3, 0.4], [3.0, 4.0], [torch.nan, 1.0], [torch.inf, 0.0], [0.0, 0.0]])
    clipped = clip_each(rows, 1.0)
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(clipped, expected)


def test_noise_has_the_planned_size_and_the_divisor_is_the_expected_batch() -> None:
    budget = Budget(20, 0.25, 4, 1, noise_multiplier=3.0, epsilon=1.0, delta=1e-5)
    total = torch.full((40_000,), 10.0)
    mean = noised_mean(total, 0.5, budget, torch.Generator().manual_seed(1))
    assert mean.mean().item() == pytest.approx(10.0 / 5, abs=0.01)
    assert mean.std().item() == pytest.approx(3.0 * 0.5 / 5, rel=0.02)


def test_one_step_is_adamw_on_the_noised_mean(base: BaseModel) -> None:
    slab, below, own = start(base), population(base), samples(base)
    trained = train_privately(base, [Trainee("ann", own, 0)], slab, CONFIG, below, noise_seed=77)
    budget = trained.budgets["ann"]
    assert (budget.sampling_rate, budget.steps) == (1.0, 1)
    assert budget.epsilon <= 8.0

    clipped = []
    for sample in own:
        gradient = plain_gradient(base, slab, below, sample)
        clipped.append(gradient * min(1.0, 0.05 / gradient.norm().item()))
    generator = torch.Generator().manual_seed(derive_seed(77, "dp-sgd", "ann"))
    torch.rand(3, generator=generator)  # who takes part
    noise = torch.randn(slab.rows.shape[1], generator=generator)
    row = slab.rows[0].clone()
    row.grad = (torch.stack(clipped).sum(0) + budget.noise_multiplier * 0.05 * noise) / 3
    torch.optim.AdamW([row], lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay).step()
    assert (row - slab.rows[0]).norm() > 1e-3
    torch.testing.assert_close(trained.slab.rows[0], row, rtol=1e-4, atol=1e-6)


def test_a_bank_with_a_budget_is_private_and_the_seed_repeats_it(base: BaseModel) -> None:
    below = population(base)
    members = [("ann", samples(base, 5)), ("bo", samples(base, 3))]
    config = CONFIG.model_copy(update={"epochs": 2})
    one, again = (train_bank(base, below, members, config, seed=9) for _ in range(2))
    assert isinstance(one, PrivatelyTrained)
    assert torch.equal(one.slab.rows, again.slab.rows)
    assert set(one.budgets) == {"ann", "bo"}
    assert one.budgets["ann"].sampling_rate == 4 / 5
    alone = train_bank(base, below, members[1:], config, seed=9)
    assert torch.equal(alone.slab.rows[0], one.slab.rows[1])
    other = train_bank(base, below, members, config, seed=9, noise_seed=1)
    assert not torch.allclose(other.slab.rows, one.slab.rows, atol=1e-3)
    plain = train_bank(base, below, members, config.model_copy(update={"dp_epsilon": 0.0}), seed=9)
    assert not isinstance(plain, PrivatelyTrained)


def test_one_sample_moves_the_sum_by_no_more_than_the_bound(base: BaseModel) -> None:
    slab, below, own = start(base), population(base), samples(base, 4)

    def total(part: tuple[Sample, ...]) -> Tensor:
        _, gradients = per_sample_gradients(base, slab, slab.rows[0], below, part)
        return clip_each(gradients, CONFIG.clip_norm).sum(0)

    for left_out in range(4):
        without = total(own[:left_out] + own[left_out + 1 :])
        assert (total(own) - without).norm().item() <= CONFIG.clip_norm * (1 + 1e-3)
