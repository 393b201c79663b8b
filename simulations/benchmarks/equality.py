"""Differences between what two sides compute."""

import torch
from torch import Tensor

from simulations.benchmarks.cohort import Gradients
from simulations.benchmarks.measurement import Equality, checked

# Two orders of summation in fp32, through thirty layers and back.
FP32_GRADIENTS, FP32_OUTPUTS = 1e-4, 1e-4
# bf16 keeps 8 bits; a gradient that were wrong would not even point the same way.
BF16_COSINE = 0.98


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest norm of a row's difference over the norm of the row, in fp64.

    Parameters
    ----------
    ours, theirs : Tensor, (users, n)
    """
    a, b = ours.double().flatten(1).cpu(), theirs.double().flatten(1).cpu()
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


def smallest_cosine(ours: Tensor, theirs: Tensor) -> float:
    """Return the smallest cosine between rows, (users, n) both."""
    a, b = ours.double().cpu(), theirs.double().cpu()
    return float(torch.cosine_similarity(a, b, dim=1).min())


def check_gradients(ours: Gradients, timed: Gradients, theirs: Gradients) -> tuple[Equality, ...]:
    """Check that a cohort and the peer compute the same losses and gradients.

    Parameters
    ----------
    ours : Gradients
        Over an fp32 base, as the peer's.
    timed : Gradients
        Over the base that is timed: in bf16, where the machine multiplies that fast.

    Raises
    ------
    MesofedError
        If they do not.
    """
    return (
        checked(
            "losses of each user (fp32)",
            relative_difference(ours.losses[:, None], theirs.losses[:, None]),
            FP32_OUTPUTS,
        ),
        checked(
            "gradients of each user (fp32)",
            relative_difference(ours.rows, theirs.rows),
            FP32_GRADIENTS,
        ),
        checked(
            "directions of each user's gradient (as timed; 1 - cosine)",
            1 - smallest_cosine(timed.rows, theirs.rows),
            1 - BF16_COSINE,
        ),
    )
