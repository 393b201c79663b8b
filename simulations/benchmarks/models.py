"""The base model on both sides: ours as the product loads it, and as transformers has it."""

from pathlib import Path
from typing import Any

import torch

from shared import smollm2, tiny
from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig, Format
from shared.pretrained import load_folder, local_folder
from simulations.benchmarks.measurement import Settings

GPU_BATCH_MB = 16_384


def resident(
    settings: Settings, form: Format, adapt: tuple[str, ...], top_share: float = 1.0
) -> BaseModel:
    """Return our base model.

    Parameters
    ----------
    form : {"auto", "fp32", "bf16", "int8", "nf4"}
    adapt : tuple of str
        Kinds of linear maps that carry LoRAs.
    top_share : float
        Share of the layers, from the top, that carry LoRAs.
    """
    base = load_base(_config(settings, form, 0), adapt)
    layers = int(base.model.config.num_hidden_layers)
    if top_share < 1:
        base = load_base(_config(settings, form, top_layers(layers, top_share)), adapt)
    return base


def _config(settings: Settings, form: Format, top: int) -> BaseConfig:
    # On a GPU, as much as a batch can use; on a processor, what the product takes by itself.
    memory = {"batch_memory_mb": GPU_BATCH_MB} if torch.cuda.is_available() else {}
    return BaseConfig(name=settings.model, format=form, top_layers=top, max_tokens=512, **memory)


def top_layers(layers: int, share: float) -> int:
    """Return a share of the layers, at least one."""
    return max(1, round(layers * share))


def model_folder(name: str) -> Path:
    """Return the folder of a base model other than ``tiny``, which has none."""
    return smollm2.model_folder() if name == "smollm2" else local_folder(name)


def plain_model(
    name: str, dtype: torch.dtype, device: torch.device, attention: str | None = None
) -> Any:
    """Return a base model as transformers has it: the same weights, no adapter layers.

    Parameters
    ----------
    attention : str, optional
        Attention implementation; default: what transformers chooses.
    """
    if name == "tiny":
        model: Any = tiny.build_model(dtype)
    else:
        model = load_folder(model_folder(name), dtype)[0]
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.requires_grad_(False).eval().to(device)
