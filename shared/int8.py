"""Linear maps with int8 weights: half the memory of bf16.

    W ~ s q        q int8 in -127 .. 127, s one scale an output        y = s (q x)

In training only weights are rounded, and where fp32 is computed in, the few rows of a generated
token to bf16. LLM.int8() (arXiv 2208.07339) rounds activations too, and keeps apart
the columns that are large for anybody in the batch: with it a user's result would depend on who
else is there, and small models, whose outliers are large, lose ten times as much.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# So many rows at most go through the kernel that reads int8 as it is; for more of them it is
# faster to make floats of the weights first, which loses nothing, as bf16 holds every int8.
FEW_ROWS = 8


class Int8Linear(nn.Module):
    """A frozen linear map with int8 weights.

    Attributes
    ----------
    weight : Tensor of int8, (out, in)
    scale : Tensor of bf16, (out,)
        What the weights of an output are multiplied with.
    bias : Tensor (out,) or None
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        weight, scale = rounded(dense.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = dense.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        if not torch.is_grad_enabled() and _is_small(x):
            y = _few_rows(x, self.weight, self.scale)
        else:
            y = _Int8Product.apply(x, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 weights, (out, in), and the bf16 scales of their rows, (out,)."""
    largest = weight.float().abs().amax(1).clamp(min=1e-30)
    # The weights are divided by the rounded scale, so its rounding is no error; it is 1/512 at
    # most, which leaves the largest weight below 127.5.
    scale = (largest / 127).to(torch.bfloat16)
    return (weight.float() / scale.float()[:, None]).round().to(torch.int8), scale


def _is_small(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() <= FEW_ROWS * x.shape[-1]


def _few_rows(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    # The kernel for fp32 rows is five times slower than the one for bf16, and slower than none.
    rows = x.reshape(-1, x.shape[-1]).to(scale.dtype)
    y = torch._weight_int8pack_mm(rows, weight, scale).to(x.dtype)
    return y.view(*x.shape[:-1], len(weight))


class _Int8Product(torch.autograd.Function):
    """s (q x), which keeps no float copy of the weights for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return linear(x, weight.to(x.dtype)) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (by_y * scale) @ weight.to(by_y.dtype), None, None
