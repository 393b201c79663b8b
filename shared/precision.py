"""Which number format the base model computes in: bf16 only where the device multiplies it.

Elsewhere torch emulates bf16 products: on a processor without AVX-512 a training step takes twenty
times as long as in fp32 (docs/performance.md). AVX-512 alone has none either: it takes AVX512-BF16,
AMX, or BF16 on Arm.
"""

import torch

from shared.config import Format

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of a processor, any of which multiplies bf16; the last one is Arm's."""


def computing_device() -> torch.device:
    """Return where the base model is: on the GPU, if torch finds one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has matrix products in bf16 of its own, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(able.get(name) for name in INSTRUCTIONS)


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
