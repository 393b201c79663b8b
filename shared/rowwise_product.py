"""Matrix products in which a row gets the same bits whatever other rows there are.

    x (n, in)  @  w (in, out)      n = 256: the kernel that everyone's bits come from
                                   other n: at once if that kernel sums alike, else 256 at a time

A bf16 kernel chooses its order of summation by the number of rows, so a user would get other bits
in company than alone, and training makes more of such roundings (docs/performance.md). Which
numbers of rows have the order of 256 is a matter of processor and library. It is tried out the
first time that a number is met: an order does not depend on the numbers that are summed.

It holds for linear maps that are modules. Decoders that keep many matrices in one parameter, as
mixtures of experts do, multiply by themselves, and keep depending on company in the last bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

# Most kernels sum alike from 192 to 384 rows, so that little is split and little filled up.
ROWS = 256
# Columns that differ in a matrix to try kernels with.
COLUMNS = 64

# By what a kernel is chosen by, whether it sums like the one of ROWS rows.
_alike: dict[tuple[object, ...], bool] = {}


def rowwise(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether plain products would let a row depend on how many others there are.

    In fp32 none was found that does, from sixteen rows on. On a GPU products are taken as they
    come, and company may change the last bits.
    """
    return dtype != torch.float32 and device.type == "cpu"


def multiply(x: Tensor, w: Tensor) -> Tensor:
    """Return x @ w, each row to the bit what it is among any others.

    Parameters
    ----------
    x : Tensor, (n, in)
    w : Tensor, (in, out)

    Returns
    -------
    Tensor, (n, out)
    """
    n = len(x)
    if n == ROWS or not rowwise(x.dtype, x.device) or _sums_alike(n, w):
        return torch.mm(x, w)
    y = x.new_empty(n, w.shape[1])
    whole = n - n % ROWS
    for start in range(0, whole, ROWS):
        torch.mm(x[start : start + ROWS], w, out=y[start : start + ROWS])
    if whole < n:
        y[whole:] = torch.mm(pad(x[whole:], (0, 0, 0, ROWS - n % ROWS)), w)[: n - whole]
    return y


def _sums_alike(n: int, w: Tensor) -> bool:
    """Return whether each of n rows gets the bits that it gets among ROWS."""
    key = n, w.shape, w.stride(), w.dtype, torch.get_num_threads()
    known = _alike.get(key)
    if known is None:
        x, tried = rounding_alone(w.shape[0], w.shape[1], w.dtype)
        if w.stride(0) < w.stride(1):
            tried = tried.t().contiguous().t()
        index = torch.arange(n) % ROWS
        expected = torch.mm(x, tried)[index]
        known = _alike[key] = torch.equal(torch.mm(x[index], tried), expected)
    return known


def rounding_alone(width: int, out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return matrices, (ROWS, width) and (width, out), whose product would be zero.

    Every term has its opposite somewhere else in the sum, so that all that comes out is how the
    sum was rounded on the way: on other matrices the last rounding, to ``dtype``, hides nearly
    all of that.
    """
    generator = torch.Generator().manual_seed(0)
    half, order = width // 2, torch.randperm(width, generator=generator)
    x, w = torch.zeros(ROWS, width, dtype=dtype), torch.zeros(width, out, dtype=dtype)
    left = torch.randn(ROWS, half, generator=generator).to(dtype)
    x[:, order[:half]], x[:, order[half : 2 * half]] = left, -left
    few = torch.randn(half, COLUMNS, generator=generator).to(dtype)  # all would take longer
    right = few.repeat(1, -(-out // COLUMNS))[:, :out]
    w[order[:half]], w[order[half : 2 * half]] = right, right
    return x, w


def multiply_frozen(x: Tensor, w: Tensor) -> Tensor:
    """Return :func:`multiply` of x and a frozen w; its gradient is taken in the same way."""
    y: Tensor = _FrozenProduct.apply(x, w)  # type: ignore[no-untyped-call]
    return y


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return multiply(x, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return multiply(by_y, w.t()), None
