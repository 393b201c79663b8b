"""The algebra of LoRAs against dense sums of B A."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.errors import MesofedError
from shared.lora.algebra import base_weights, compress, concatenate, fuse, merged, scale, widened
from shared.lora.layer import AdapterStack
from shared.lora.lora import Factors, LinearMap, Lora

WIDTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)
RANKS = st.lists(st.integers(1, 5), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**31)
WEIGHTS = st.floats(-3, 3, allow_subnormal=False)


def random_loras(widths: Sequence[tuple[int, int]], ranks: Sequence[int], seed: int) -> list[Lora]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        Lora({f"map.{i}": Factors(normal(n, r), normal(r, m)) for i, (n, m) in enumerate(widths)})
        for r in ranks
    ]


def dense(lora: Lora) -> dict[str, Tensor]:
    """Return B A by map, as the papers write it: B (out, rank) times A (rank, in)."""
    return {name: f.b.T @ f.a.T for name, f in lora}


def assert_update(lora: Lora, expected: dict[str, Tensor]) -> None:
    assert set(lora.factors) == set(expected)
    for name, delta in dense(lora).items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(WIDTHS, RANKS, SEEDS)
def test_concatenation_is_the_sum(
    widths: list[tuple[int, int]], ranks: list[int], seed: int
) -> None:
    loras = random_loras(widths, ranks, seed)
    both = concatenate(loras)
    assert both.rank == sum(ranks)
    assert_update(both, {name: sum(dense(lora)[name] for lora in loras) for name in both.factors})


@settings(deadline=None)
@given(WIDTHS, RANKS, SEEDS, st.data())
def test_fusion_is_the_weighted_sum_of_products(
    widths: list[tuple[int, int]], ranks: list[int], seed: int, data: st.DataObject
) -> None:
    loras = random_loras(widths, ranks, seed)
    weights = data.draw(st.lists(WEIGHTS, min_size=len(loras), max_size=len(loras)))
    expected = {
        name: sum(w * dense(lora)[name] for w, lora in zip(weights, loras, strict=True))
        for name in loras[0].factors
    }
    assert_update(fuse(loras, weights), expected)
    assert_update(fuse(loras, torch.tensor(weights, dtype=torch.float64)), expected)


@settings(deadline=None)
@given(WIDTHS, st.integers(1, 5), SEEDS, WEIGHTS)
def test_scaling_is_linear_in_the_update(
    widths: list[tuple[int, int]], rank: int, seed: int, factor: float
) -> None:
    (lora,) = random_loras(widths, [rank], seed)
    assert_update(scale(lora, factor), {name: factor * d for name, d in dense(lora).items()})


@settings(deadline=None)
@given(WIDTHS, RANKS, SEEDS, st.integers(1, 12))
def test_compression_is_the_truncated_svd(
    widths: list[tuple[int, int]], ranks: list[int], seed: int, rank: int
) -> None:
    lora = concatenate(random_loras(widths, ranks, seed))
    small = compress(lora, rank)
    for name, delta in dense(lora).items():
        assert small.factors[name].rank <= rank
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        best = u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]
        error = torch.linalg.norm(delta - dense(small)[name])
        torch.testing.assert_close(error, torch.linalg.norm(s[rank:]), rtol=1e-6, atol=1e-9)
        # Where two singular values are equal the best approximation is not unique.
        gap = rank >= len(s) or s[rank - 1] - s[rank] > 1e-3 * s[0]
        if gap:
            torch.testing.assert_close(dense(small)[name], best, rtol=1e-6, atol=1e-8)


@settings(deadline=None)
@given(WIDTHS, RANKS, SEEDS)
def test_compression_to_the_true_rank_is_exact(
    widths: list[tuple[int, int]], ranks: list[int], seed: int
) -> None:
    (lora,) = random_loras(widths, ranks[:1], seed)
    copies = fuse([lora, lora, lora], [0.5, 2.0, -1.25])  # three times the rank, same span
    assert_update(compress(copies, lora.rank), {n: 1.25 * d for n, d in dense(lora).items()})


def test_compression_keeps_the_format_and_balances_the_factors() -> None:
    (lora,) = random_loras([(6, 8)], [4], 1)
    (small,) = compress(lora.to(torch.float32, torch.device("cpu")), 2).factors.values()
    assert (small.a.dtype, small.b.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(small.a.norm(dim=0), small.b.norm(dim=1))


def test_of_one_lora_nothing_is_changed() -> None:
    (lora,) = random_loras([(3, 4)], [2], 0)
    assert concatenate([lora]) is lora


def test_a_widened_lora_changes_nothing_where_it_was_not() -> None:
    wide, narrow = random_loras([(4, 3), (3, 5)], [2, 3], seed=6)
    first, second = wide.factors
    spread = widened(Lora({second: narrow.factors[second]}), wide)
    assert list(spread.factors) == [first, second]
    assert spread.rank == 3
    assert_update(
        spread, {first: torch.zeros(3, 4, dtype=torch.float64), second: dense(narrow)[second]}
    )
    assert_update(
        fuse([wide, spread], [1.0, 2.0]),
        {
            first: dense(wide)[first],
            second: dense(wide)[second] + 2 * dense(narrow)[second],
        },
    )


def test_what_does_not_fit_is_refused() -> None:
    one, two = random_loras([(3, 4)], [2, 2], 0)
    with pytest.raises(MesofedError, match="at least one LoRA"):
        concatenate([])
    with pytest.raises(MesofedError, match="Expected 2 fusion weights; got 1"):
        fuse([one, two], [1.0])
    with pytest.raises(MesofedError, match=r"differ in \['map\.1'\]"):
        concatenate([one, *random_loras([(3, 4), (2, 2)], [1], 0)])
    with pytest.raises(MesofedError, match="rank of at least 1; got 0"):
        compress(one, 0)


# Merging


def random_weights(widths: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        f"map.{i}": torch.randn(m, n, generator=generator) * 10 for i, (n, m) in enumerate(widths)
    }


@settings(max_examples=30, deadline=None)
@given(WIDTHS, st.integers(1, 4), SEEDS)
def test_merging_adds_the_update_and_takes_it_away_bit_by_bit(
    widths: list[tuple[int, int]], rank: int, seed: int
) -> None:
    (lora,) = random_loras(widths, [rank], seed)
    weights = random_weights(widths)
    before = {name: weight.clone() for name, weight in weights.items()}
    with merged(weights, lora):
        for name, delta in dense(lora).items():
            expected = (before[name].double() + delta).float()
            torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_merging_restores_the_weights_when_the_block_raises() -> None:
    (lora,) = random_loras([(3, 4)], [2], 0)
    weights = random_weights([(3, 4)])
    before = weights["map.0"].clone()

    def fail() -> None:
        with merged(weights, lora):
            assert not torch.equal(weights["map.0"], before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(weights["map.0"], before)


@pytest.mark.parametrize("found", [torch.bfloat16, torch.float16, None])
def test_merging_refuses_other_formats_and_changes_nothing(found: torch.dtype | None) -> None:
    (lora,) = random_loras([(3, 4), (3, 4)], [2], 0)
    weights = random_weights([(3, 4), (3, 4)])
    if found is None:
        del weights["map.1"]
    else:
        weights["map.1"] = weights["map.1"].to(found)
    before = {name: weight.clone() for name, weight in weights.items()}
    with pytest.raises(MesofedError, match=r"fp32 weight for map\.1"), merged(weights, lora):
        pytest.fail("the block must not run")
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_base_weights_are_those_under_the_adapter_layers() -> None:
    model = nn.ModuleDict({"q": nn.Linear(3, 4), "v": nn.Linear(3, 2)})
    weight = model["q"].weight
    AdapterStack.attach(model, [LinearMap("q", 3, 4)])
    assert base_weights(model, ["q"])["q"] is weight
