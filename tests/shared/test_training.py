"""What training one LoRA consists of, against worked cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.config import TrainingConfig
from shared.samples import Sample, collate
from shared.training import learning_rate, mean_per_user

CPU = torch.device("cpu")


# The schedule


def test_learning_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    config = TrainingConfig(learning_rate=2.0, warmup=0.25)
    rates = [learning_rate(config, step, 8) for step in range(8)]  # two steps of warm-up
    falling = [1 + math.cos(math.pi * done / 6) for done in range(6)]
    assert rates == pytest.approx([1.0, 2.0, *falling])
    assert rates[5] == pytest.approx(1.0)  # half of the fall, half of the rate


def test_learning_rate_of_very_short_training() -> None:
    assert learning_rate(TrainingConfig(learning_rate=3.0, warmup=0.1), 0, 1) == 3.0
    assert learning_rate(TrainingConfig(learning_rate=3.0, warmup=0.0), 0, 1) == 3.0
    rates = [learning_rate(TrainingConfig(learning_rate=3.0, warmup=0.0), s, 2) for s in (0, 1)]
    assert rates == pytest.approx([3.0, 1.5])


@given(st.integers(1, 40), st.floats(0, 0.9))
def test_learning_rate_is_always_positive_and_bounded(steps: int, warmup: float) -> None:
    config = TrainingConfig(learning_rate=1.0, warmup=warmup)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1


# The loss


def test_mean_per_user_weighs_samples_alike_and_then_users() -> None:
    long, short = Sample((1, 2), (3, 4, 5)), Sample((1,), (2,))
    batch = collate([[long, short], [short]], 0, CPU)  # answer tokens: 3, 1 | 1
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0, 10.0])
    assert mean_per_user(losses, batch).tolist() == [(2.0 + 6.0) / 2, 10.0]
