"""The fingerprint of a base model: which weights a LoRA was trained on, in whatever format."""

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # its import takes seconds
    from transformers import PreTrainedConfig

# What decides the function of the weights, by names that most architectures share.
_ARCHITECTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "hidden_act",
    "tie_word_embeddings",
)
_EMBEDDING_ROWS = 16
_ROWS = 2


def fingerprint(model: nn.Module, config: "PreTrainedConfig", embedding: Tensor) -> str:
    """Return a SHA-256 (hex) of the architecture and of a sample of every weight, in bf16.

    Take it before quantisation: then fp32, bf16, int8 and NF4 of one base model have the same
    fingerprint, and another base model, or the same one fine-tuned, has another.

    Parameters
    ----------
    model : nn.Module
        The model, not quantised.
    config : PreTrainedConfig
        Its configuration.
    embedding : Tensor, (vocabulary, width)
        Its input embedding, which tells models of one architecture apart best.
    """
    digest = hashlib.sha256()
    architecture = {name: getattr(config, name, None) for name in _ARCHITECTURE}
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    digest.update(_sampled_rows(embedding, _EMBEDDING_ROWS))
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(_sampled_rows(parameter, _ROWS))
    return digest.hexdigest()


def _sampled_rows(weight: Tensor, count: int) -> bytes:
    """Return ``count`` rows, evenly spaced, as little-endian bf16; a vector is one row."""
    rows = weight.detach().reshape(-1, weight.shape[-1])
    step = max(1, len(rows) // count)
    sample = rows[step // 2 :: step][:count].cpu().to(torch.bfloat16)
    return sample.view(torch.int16).numpy().astype("<i2").tobytes()  # numpy has no bf16
