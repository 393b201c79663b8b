"""Updates laid over adapter layers by hooks."""

import pytest
import torch
from torch import Tensor

from shared.base_model import BaseModel
from simulations.baselines.gated_layer import adding


def hidden(base: BaseModel) -> Tensor:
    ids = torch.tensor([[72, 105, 33, 40, 99, 12]])
    with torch.no_grad():
        return base.hidden_states(ids, [6])


def test_an_update_equals_its_dense_matrix_in_the_weight(base: BaseModel) -> None:
    linear = base.maps[-1]
    dense = 0.1 * torch.randn(linear.out_features, linear.in_features)
    plain = hidden(base)
    with adding(base, {linear.name: lambda x: x @ dense.T}):
        hooked = hidden(base)
    weight = base.model.get_submodule(linear.name).base.weight
    weight.data += dense
    try:
        expected = hidden(base)
    finally:
        weight.data -= dense
    torch.testing.assert_close(hooked, expected, atol=1e-4, rtol=1e-4)
    assert float((hooked - plain).abs().max()) > 1e-3


def test_nothing_stays_behind_even_after_an_error(base: BaseModel) -> None:
    plain = hidden(base)

    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), adding(base, {base.maps[0].name: fail}):
        hidden(base)
    assert torch.equal(hidden(base), plain)


def test_an_update_of_none_only_looks(base: BaseModel) -> None:
    seen: list[tuple[int, ...]] = []
    plain = hidden(base)
    with adding(base, {base.maps[0].name: lambda x: seen.append(tuple(x.shape))}):
        assert torch.equal(hidden(base), plain)
    assert seen == [(1, 6, base.maps[0].in_features)]
