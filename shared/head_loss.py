"""The loss over the vocabulary, whose logits are never there all at once and never kept.

    hidden (n, width) -- head --> logits (n, vocabulary) -- softmax, target --> loss (n,)

The vocabulary is the widest thing in a small model: the logits of 1,000 tokens in fp32 take 200 MB,
their gradient as much again. The gradient of a token's loss by its own hidden state needs nothing
from above, so it is computed along with the loss, a chunk of tokens at a time, and only that,
(n, width), is kept (as in Cut Cross-Entropy, arXiv 2411.09009, section 4, without its kernels).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.rowwise_product import rowwise

if TYPE_CHECKING:
    from shared.base_model import BaseModel

# Enough rows to keep a core busy, few enough for their logits to stay in its cache.
CHUNK = 128
# With fewer rows a matrix goes to another kernel, which sums in another order: a user would get
# other bits alone than in company. Zeros fill them up.
LEAST_ROWS = 16
# In bf16 any number of rows may have an order of its own, so every chunk has this one. Chunks of
# 128 are a tenth faster, but a user with a dozen answer tokens would pay for all of it alone.
CHUNK_BF16 = 64


def target_losses(base: "BaseModel", hidden: Tensor, target: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, (n,), in nats, differentiable once.

    Parameters
    ----------
    hidden : Tensor, (n, width)
        Last hidden states at the positions that predict the targets.
    target : Tensor of int64, (n,)
    """
    losses: Tensor = _TargetLosses.apply(hidden, target, base)  # type: ignore[no-untyped-call]
    return losses


class _TargetLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, base: "BaseModel") -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        apart = rowwise(hidden.dtype, hidden.device)
        chunk, least = (CHUNK_BF16, CHUNK_BF16) if apart else (CHUNK, LEAST_ROWS)
        for start in range(0, len(hidden), chunk):
            wanted = target[start : start + chunk]
            end, index = start + len(wanted), torch.arange(len(wanted), device=target.device)
            missing = max(0, least - len(wanted))
            rows = torch.nn.functional.pad(hidden[start:end], (0, 0, 0, missing))
            logs = base.logits(rows).log_softmax(1)  # (rows, vocabulary)
            losses[start:end] = -logs[index, wanted]
            if gradient is not None:
                probabilities = logs.exp_()
                probabilities[index, wanted] -= 1
                by_hidden = probabilities.to(base.dtype) @ base.head  # (rows, width)
                gradient[start:end] = by_hidden[: len(wanted)]
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * by_loss[:, None]).to(gradient.dtype), None, None
