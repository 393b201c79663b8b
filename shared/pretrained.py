"""Weights and tokenizer of a base model from a local folder or from the Hugging Face hub."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from shared.errors import MesofedError
from shared.suggestion import suggestion

BUILT_IN = ("tiny", "smollm2")
"""The base models that need neither a folder nor the hub."""
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def local_folder(name: str) -> Path:
    """Return the folder of a base model, downloading it if ``name`` is a Hugging Face id.

    Raises
    ------
    MesofedError
        If there is neither such a folder nor, as far as the hub can be reached, such an id.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MesofedError(
                f"Expected the base model in the folder {folder.resolve()}, but it has no "
                "config.json. Give a folder as save_pretrained writes it."
            )
        return folder
    meant = suggestion(name, BUILT_IN)
    advice = "Check base.name (tiny, smollm2, a local folder, or a Hugging Face id)"
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns=["*/*"]))
    except HFValidationError as error:
        raise MesofedError(
            f"There is no folder {folder.absolute()} for the base model, and {name!r}{meant} "
            f"cannot be a Hugging Face id. {advice}."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MesofedError(
            f"There is no folder {folder.absolute()} for the base model, and {name!r}{meant} could "
            f"not be had from the Hugging Face hub ({reason}). {advice}; a gated model needs "
            f"`hf auth login`, and a machine without network needs `hf download {name}` before."
        ) from error


def load_folder(
    folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder, quietly, without network.

    In the stored dtype the weights are mapped from the file and shared between processes.

    Raises
    ------
    MesofedError
        If the folder holds no complete, unquantised causal language model.
    """
    config = _read_config(folder)
    if "quantization_config" in config:
        raise MesofedError(
            f"Expected the base model in {folder} in full precision, but it is stored quantised. "
            "Give the original model, and let base.format=int8 or nf4 quantise it."
        )
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                os.fspath(folder),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(os.fspath(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MesofedError(
            f"Expected a causal language model with safetensors weights and a tokenizer in "
            f"{folder}; loading it failed: {reason} If the folder is damaged, delete it, so that "
            "it is made or downloaded again."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise MesofedError(
            f"Expected a causal language model in {folder}, but {len(missing)} of its weights "
            f"are not there ({', '.join(missing[:3])}, ...). Give a complete model with its head."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise MesofedError(
                f"Expected an end-of-text or a padding token in the tokenizer in {folder}; it has "
                "neither. Add one to its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _read_config(folder: Path) -> dict[str, object]:
    """Return the folder's config.json."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MesofedError(
            f"Expected the base model's config.json in {folder}; {error}."
        ) from error
    if not isinstance(config, dict):
        raise MesofedError(f"Expected a JSON object in {path}; got {type(config).__name__}.")
    return config


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' log and progress bars in a block, and restore them after it."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
