"""The slab: users as rows of one flat tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.lora.lora import Factors, LinearMap, Lora
from shared.lora.slab import Slab

MAPS = (LinearMap("layer.q", 5, 4), LinearMap("layer.v", 3, 6))


def random_loras(users: int, rank: int) -> list[Lora]:
    generator = torch.Generator().manual_seed(10 * users + rank)
    return [
        Lora(
            {
                m.name: Factors(
                    torch.randn(m.in_features, rank, generator=generator),
                    torch.randn(rank, m.out_features, generator=generator),
                )
                for m in MAPS
            }
        )
        for _ in range(users)
    ]


def assert_equal(one: Lora, other: Lora) -> None:
    assert one.factors.keys() == other.factors.keys()
    for name, factors in one:
        assert torch.equal(factors.a, other.factors[name].a)
        assert torch.equal(factors.b, other.factors[name].b)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4))
def test_loras_go_into_rows_and_come_back(users: int, rank: int) -> None:
    loras = random_loras(users, rank)
    slab = Slab.of(MAPS, loras)
    assert slab.rows.shape == (users, rank * (5 + 4 + 3 + 6))
    for user, lora in enumerate(loras):
        assert_equal(slab.lora(user), lora)
        assert_equal(slab.loras()[user], lora)
    stored = Slab.from_rows(MAPS, slab.rows.clone())
    assert stored.rank == rank
    assert_equal(stored.lora(users - 1), loras[-1])


def test_a_row_is_a_and_b_of_each_map_in_order() -> None:
    (lora,) = random_loras(1, 2)
    parts = [t.flatten() for m in MAPS for t in (lora.factors[m.name].a, lora.factors[m.name].b)]
    assert torch.equal(Slab.of(MAPS, [lora]).rows[0], torch.cat(parts))


def test_views_share_memory_with_the_rows() -> None:
    slab = Slab.zeros(MAPS, 2, 3)
    slab.views()["layer.v"].b[1].fill_(1.0)
    assert slab.rows[1].sum() == 2 * 6
    assert slab.rows[[0, 2]].abs().sum() == 0
    slab.lora(2).factors["layer.q"].a.fill_(1.0)
    assert slab.rows[2].sum() == 5 * 2


def test_a_slab_of_rank_zero_has_empty_rows() -> None:
    slab = Slab.initial(MAPS, 0, [1, 2])
    assert slab.rows.shape == (2, 0)
    assert slab.lora(0).rank == 0


def test_initial_rows_depend_on_their_own_seed_alone() -> None:
    together = Slab.initial(MAPS, 3, [11, 12, 13])
    assert torch.equal(together.rows[1], Slab.initial(MAPS, 3, [12]).rows[0])
    assert torch.equal(together.rows[2], Slab.initial(MAPS, 3, [13, 11]).rows[0])
    assert not torch.equal(together.rows[0], together.rows[1])
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    Slab.initial(MAPS, 3, [11])
    assert torch.equal(before, torch.random.get_rng_state())


def test_initial_loras_change_nothing_and_are_spread_as_kaiming_uniform() -> None:
    wide = (LinearMap("q", 400, 30),)
    factors = Slab.initial(wide, 8, [5]).lora(0).factors["q"]
    assert torch.equal(factors.b, torch.zeros(8, 30))
    bound = 400**-0.5
    assert factors.a.abs().max() <= bound
    # The deviation of a uniform distribution on (-c, c) is c / sqrt(3).
    assert factors.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    # PEFT: kaiming_uniform_(a=sqrt(5)) of A (rank, in).
    torch.manual_seed(5)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(8, 400), a=5**0.5)
    assert theirs.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_leaves_are_contiguous_copies_of_the_first_rows() -> None:
    slab = Slab.of(MAPS, random_loras(3, 2))
    leaves, views = slab.leaves(2), slab.views()
    assert list(leaves) == list(views)
    for name, leaf in leaves.items():
        for tensor, view in ((leaf.a, views[name].a), (leaf.b, views[name].b)):
            assert tensor.is_leaf
            assert tensor.requires_grad
            assert tensor.is_contiguous()
            assert torch.equal(tensor, view[:2])
    slab.rows.fill_(4.0)  # an optimiser's step leaves what a backward pass may still need
    assert not torch.equal(leaves["layer.v"].b, torch.full((2, 2, 6), 4.0))


def test_gradients_of_leaves_land_in_the_users_rows() -> None:
    slab = Slab.of(MAPS, random_loras(3, 2))
    leaves = slab.leaves(2)
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))

    def loss(views: dict[str, Factors], users: int) -> torch.Tensor:
        q, v = views["layer.q"], views["layer.v"]
        output = (x @ q.a[:users]) @ q.b[:users]
        return output.square().sum() + v.a[:users].sum() + v.b[:users].pow(3).sum()

    tensors = [t for f in leaves.values() for t in (f.a, f.b)]
    gradient = Slab.to_rows(torch.autograd.grad(loss(leaves, 2), tensors))

    rows = slab.rows.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(slab.views(rows), 2), rows)
    assert gradient.shape == (2, slab.rows.shape[1])
    torch.testing.assert_close(gradient, expected[:2])


def test_tensors_laid_in_rows_are_the_rows() -> None:
    slab = Slab.of(MAPS, random_loras(3, 2))
    assert torch.equal(
        Slab.to_rows(t for f in slab.views().values() for t in (f.a, f.b)), slab.rows
    )
