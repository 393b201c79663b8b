"""The loss over the vocabulary against PyTorch's own, in any chunks and any company."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from shared import head_loss
from shared.base_model import BaseModel
from shared.head_loss import CHUNK, target_losses


def task(base: BaseModel, count: int) -> tuple[Tensor, Tensor]:
    """Return hidden states and targets."""
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, base.width, generator=generator)
    return hidden, torch.randint(len(base.head), (count,), generator=generator)


@pytest.mark.parametrize("count", [1, 3, 7, CHUNK, CHUNK + 1])
def test_losses_and_gradient_are_those_of_pytorch(base: BaseModel, count: int) -> None:
    hidden, target = task(base, count)
    scale = torch.linspace(-1, 2, count)  # each token's loss may count differently
    own = hidden.clone().requires_grad_()
    losses = target_losses(base, own, target)
    (gradient,) = torch.autograd.grad((losses * scale).sum(), own)

    exact = hidden.double().requires_grad_()
    expected = cross_entropy(linear(exact, base.head.double()), target, reduction="none")
    (wanted,) = torch.autograd.grad((expected * scale).sum(), exact)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)
    assert wanted.abs().max() > 1e-3


@dataclass(frozen=True)
class Head:
    """As much of a base model as the loss needs, as wide as a real one's."""

    head: Tensor
    dtype: torch.dtype = torch.float32

    def logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.head)


@pytest.mark.parametrize("wide", [False, True])
def test_a_token_has_the_same_bits_alone_and_in_company(base: BaseModel, wide: bool) -> None:
    # On some processors matrices of fewer than 16 rows have a kernel of their own, if wide enough.
    head: Any = Head(torch.randn(2048, 576)) if wide else base
    hidden, target = torch.randn(64, head.head.shape[1]), torch.randint(len(head.head), (64,))

    def both(rows: slice) -> tuple[Tensor, Tensor]:
        own = hidden[rows].clone().requires_grad_()
        losses = target_losses(head, own, target[rows])
        return losses.detach(), torch.autograd.grad(losses.sum(), own)[0]

    losses, gradient = both(slice(0, 64))
    for start, end in ((0, 1), (3, 5), (5, 13), (4, 20), (24, 64)):
        own, by_hidden = both(slice(start, end))
        assert torch.equal(own, losses[start:end])
        assert torch.equal(by_hidden, gradient[start:end])


def test_chunks_change_nothing(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, target = task(base, 20)
    whole = target_losses(base, hidden, target)
    monkeypatch.setattr(head_loss, "CHUNK", 6)
    assert torch.equal(target_losses(base, hidden, target), whole)


def test_nothing_is_kept_where_no_gradient_is_wanted(base: BaseModel) -> None:
    hidden, target = task(base, 5)
    assert not target_losses(base, hidden, target).requires_grad
    with torch.no_grad():
        assert not target_losses(base, hidden.requires_grad_(), target).requires_grad


def test_only_a_gradient_of_the_size_of_the_states_is_kept(base: BaseModel) -> None:
    hidden, target = task(base, 40)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        target_losses(base, hidden.requires_grad_(), target)
    assert kept == [hidden.numel()]
