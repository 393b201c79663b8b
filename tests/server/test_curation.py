"""The corpus is weighed like the live population, within bounds, and nobody falls out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.curation import BOUND, resample, user_weights
from shared.samples import Sample


def numbered(count: int, first: int = 0) -> tuple[Sample, ...]:
    return tuple(Sample((first + i,), (0,)) for i in range(count))


def test_three_users_worked_by_hand() -> None:
    # Mean gates: (2/3, 1/3). Wanted half and half: ratios 3/4 and 3/2.
    gates = torch.tensor([[1.0, 0.0], [0.8, 0.2], [0.2, 0.8]])
    weights = user_weights(gates, torch.tensor([0.5, 0.5]))
    # 0.75; 0.8 * 0.75 + 0.2 * 1.5 = 0.9; 0.2 * 0.75 + 0.8 * 1.5 = 1.35: their mean is 1.
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.9, 1.35]))


def test_a_corpus_that_is_like_the_live_population_stays_as_it_is() -> None:
    gates = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.4, 0.6]])
    torch.testing.assert_close(user_weights(gates, gates.mean(0)), torch.ones(3))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.0, 30.0), st.integers(0, 2**16))
def test_no_user_is_silenced_or_shouts(users: int, experts: int, sharp: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = torch.softmax(sharp * torch.randn(users, experts, generator=generator), dim=1)
    live = torch.softmax(sharp * torch.randn(experts, generator=generator), dim=0)
    weights = user_weights(gates, live)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-4)
    assert float(weights.max()) <= BOUND * 1.001
    assert float(weights.min()) >= 1 / BOUND / 1.001


def test_the_bound_holds_for_one_rare_group_that_everyone_wants() -> None:
    gates = torch.tensor([[1.0, 0.0]] * 19 + [[0.0, 1.0]])
    weights = user_weights(gates, torch.tensor([0.0, 1.0]))
    # The rare user counts 3, so the nineteen others share 17: 17 / 19 each.
    torch.testing.assert_close(weights, torch.tensor([17 / 19] * 19 + [3.0]), atol=1e-4, rtol=0)


def test_an_expert_that_nobody_uses_breaks_nothing() -> None:
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    weights = user_weights(gates, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(weights, torch.ones(2))


@pytest.mark.parametrize(
    ("own", "weight", "times"),
    [
        (4, 1.0, [1, 1, 1, 1]),
        (4, 1.5, [1, 1, 2, 2]),
        (4, 2.0, [2, 2, 2, 2]),
        (4, 0.5, [0, 0, 1, 1]),
        (4, 3.0, [3, 3, 3, 3]),
        (5, 0.01, [0, 0, 0, 0, 1]),
        (1, 0.34, [1]),
    ],
)
def test_samples_are_repeated_or_thinned(own: int, weight: float, times: list[int]) -> None:
    samples = numbered(own)
    (drawn,) = resample([samples], torch.tensor([weight]), seed=3)
    assert sorted(drawn.count(sample) for sample in samples) == times


def test_which_samples_are_drawn_depends_on_seed_and_user() -> None:
    samples = [numbered(20), numbered(20)]
    half = torch.tensor([0.5, 0.5])
    first, second = resample(samples, half, seed=1)
    assert first != second
    assert resample(samples, half, seed=1) == [first, second]
    assert resample(samples, half, seed=900)[0] != first
