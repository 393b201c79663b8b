"""Which number format the base model computes in: bf16 only where it is the faster one.

On a processor without bf16 products (AVX-512 on x86, the BF16 extension on Arm) torch emulates
them, at a fifth of the speed of fp32 (docs/performance.md). Most laptops have none.
"""

import torch

from shared.config import Format


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has matrix products in bf16 of its own, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def weight_format(wanted: Format, device: torch.device) -> Format:
    """Return the format that the frozen weights are held in; never ``auto``."""
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16(device) else "fp32"


def computing_dtype(held: Format, device: torch.device) -> torch.dtype:
    """Return the format of activations, and of weights that are not quantised.

    Parameters
    ----------
    held : {"fp32", "bf16", "int8", "nf4"}
        Format of the frozen weights. Whoever asks for bf16 gets it, wherever it is slow, for it
        halves the memory; quantised weights are multiplied in whatever is fast.
    """
    if held == "bf16" or (held != "fp32" and multiplies_bf16(device)):
        return torch.bfloat16
    return torch.float32
