"""Dropout before the private pair, against the formula with masks drawn once more."""

import pytest
import torch
from torch import nn

from shared.lora.dropout import Dropout
from shared.lora.layer import AdapterStack, Parts
from shared.lora.lora import Factors, LinearMap

WIDTH, OUT, RANK, USERS, ROWS, TOKENS = 6, 5, 3, 2, 2, 4


def test_the_private_pair_alone_sees_what_is_left() -> None:
    generator = torch.Generator().manual_seed(3)
    model = nn.Module()
    model.q = nn.Linear(WIDTH, OUT)
    weight, bias = model.q.weight.detach().clone(), model.q.bias.detach().clone()
    stack = AdapterStack.attach(model, [LinearMap("q", WIDTH, OUT)])
    private = Factors(
        torch.randn(USERS, WIDTH, RANK, generator=generator),
        torch.randn(USERS, RANK, OUT, generator=generator),
    )
    x = torch.randn(USERS * ROWS, TOKENS, WIDTH, generator=generator)
    parts = Parts(USERS, private={"q": private}, dropout=Dropout.seeded(0.25, (11, 12)))
    with torch.no_grad(), stack.using(parts):
        first, second = model.q(x), model.q(x)
    for user, seed in enumerate((11, 12)):
        own = torch.Generator().manual_seed(seed)
        rows = x[user * ROWS : (user + 1) * ROWS]
        for y in (first, second):  # every map, and every call, draws anew
            kept = torch.empty(ROWS * TOKENS, WIDTH).bernoulli_(0.75, generator=own)
            seen = rows * kept.view_as(rows) / 0.75
            expected = rows @ weight.T + bias + seen @ private.a[user] @ private.b[user]
            assert torch.allclose(y[user * ROWS : (user + 1) * ROWS], expected, atol=1e-5)


def test_what_is_left_is_scaled_so_that_the_mean_stays() -> None:
    x = torch.ones(1, 2000, 50)
    seen = Dropout.seeded(0.4, (5,)).of(x)
    assert seen.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    # 100,000 draws: the mean of what is kept has a standard deviation of 0.0026.
    assert float(seen.mean()) == pytest.approx(1.0, abs=0.013)


def test_a_user_draws_the_same_whoever_else_is_there() -> None:
    x = torch.ones(3, 4, WIDTH)
    three = Dropout.seeded(0.5, (1, 2, 3)).of(x)
    assert torch.equal(three[1], Dropout.seeded(0.5, (2,)).of(x[1:2])[0])
    assert not torch.equal(three[0], three[1])
