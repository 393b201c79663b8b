"""A LoRA as a value: dense update, sizes, storage."""

import torch
from safetensors.torch import load, save

from shared.lora.lora import Factors, Lora


def random_lora(rank: int = 3) -> Lora:
    generator = torch.Generator().manual_seed(rank)
    return Lora(
        {
            name: Factors(
                torch.randn(width, rank, generator=generator),
                torch.randn(rank, out, generator=generator),
            )
            for name, width, out in (("first", 5, 4), ("second.q", 4, 6))
        }
    )


def test_delta_is_b_a_in_the_orientation_of_a_weight() -> None:
    factors = Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 5.0, 7.0]]))
    expected = torch.tensor([[3.0, 6.0], [5.0, 10.0], [7.0, 14.0]])  # (out, in)
    assert torch.equal(factors.delta(), expected)
    assert factors.rank == 1


def test_rank_and_number_of_parameters() -> None:
    assert random_lora(3).rank == 3
    assert random_lora(3).parameters == 3 * (5 + 4) + 3 * (4 + 6)
    assert (Lora({}).rank, Lora({}).parameters) == (0, 0)


def test_tensors_survive_storage_even_from_views_and_leaves() -> None:
    lora = random_lora()
    views = Lora({name: Factors(f.a.mT.contiguous().mT, f.b.requires_grad_()) for name, f in lora})
    back = Lora.from_tensors(load(save(views.tensors())))
    assert set(back.factors) == {"first", "second.q"}
    for name, factors in back:
        assert torch.equal(factors.a, lora.factors[name].a)
        assert torch.equal(factors.b, lora.factors[name].b)
        assert not factors.b.requires_grad


def test_to_changes_the_format_of_both_factors() -> None:
    half = random_lora().to(torch.bfloat16, torch.device("cpu"))
    assert {t.dtype for t in half.tensors().values()} == {torch.bfloat16}


def test_ranks_are_the_same_views_every_time_and_sum_to_the_whole() -> None:
    lora = random_lora(rank=3)
    pieces = lora.by_rank
    assert lora.by_rank is pieces
    assert [piece.rank for piece in pieces] == [1, 1, 1]
    for name, factors in lora:
        total = sum(piece.factors[name].delta() for piece in pieces)
        torch.testing.assert_close(total, factors.delta())
        assert pieces[2].factors[name].a.data_ptr() == factors.a[:, 2:].data_ptr()
