"""LoRAs at the border: read and write the adapter folder of Hugging Face's PEFT.

    adapter_config.json         r, lora_alpha, target_modules, ...
    adapter_model.safetensors   base_model.model.<map>.lora_A.weight (r, in), lora_B (out, r)

PEFT computes y = W x + s B A x with s = alpha / r, or alpha / sqrt(r) for a rank-stabilised LoRA.
Ours carry no alpha: on reading, s becomes part of ``b``; on writing, alpha = r makes it one.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shared.atomic_file import write_bytes, write_json
from shared.errors import MesofedError
from shared.lora.lora import Factors, LinearMap, Lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."


def _key(name: str, side: str) -> str:
    """Return PEFT's name of a factor, ``side`` A or B."""
    return f"{_PREFIX}{name}.lora_{side}.weight"


# Settings without a bearing on what the stored factors compute. The tensors' names say which
# modules are adapted, so the rules by which PEFT found them are not needed.
_WITHOUT_BEARING = frozenset(
    {
        "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
        "inference_mode", "target_modules", "exclude_modules", "layers_to_transform",
        "layers_pattern", "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config",
        "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    }
)  # fmt: skip

# The other ways to initialise change the base weights as well (PiSSA, OLoRA, CorDA, LoftQ, ...).
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class _AdapterConfig(BaseModel):
    """The settings of an adapter that decide what it computes."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: Literal["LORA"]
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    def rank_of(self, name: str) -> int:
        """Return the rank over one linear map."""
        return int(_by_pattern(self.rank_pattern or {}, name, self.r))

    def scaling_of(self, name: str) -> float:
        """Return the factor s over one linear map."""
        alpha = _by_pattern(self.alpha_pattern or {}, name, self.lora_alpha)
        rank = self.rank_of(name)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as in PEFT."""
    for pattern, value in patterns.items():
        if _compiled(pattern).match(name):
            return value
    return default


def save_peft(lora: Lora, folder: Path, base: str | None) -> None:
    """Write a LoRA as a PEFT adapter folder; ``PeftModel.from_pretrained(model, folder)`` loads it.

    Parameters
    ----------
    lora : Lora
        One part of a stack, or the whole stack folded.
    folder : Path
        Made if missing; its adapter, if it has one, is replaced.
    base : str or None
        Where PEFT finds the base model: a folder or a Hugging Face id; None for nowhere.

    Raises
    ------
    MesofedError
        If the LoRA is empty, or the folder cannot be written.
    """
    # PEFT takes seconds to import, and is needed nowhere else.
    from peft import LoraConfig

    if not lora.rank:
        raise MesofedError(
            "Expected a LoRA with at least one linear map and a rank of at least 1 to save; "
            "got an empty one. A method that trains nothing has nothing to export."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank,
        target_modules=list(lora.factors),  # whole names, so that no other module matches
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    settings: dict[str, Any] = config.to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])  # PEFT keeps a set
    tensors = {}
    for name, factors in lora:
        tensors[_key(name, "A")] = factors.a.detach().mT.contiguous()  # (r, in)
        tensors[_key(name, "B")] = factors.b.detach().mT.contiguous()  # (out, r)
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, settings)


def load_peft(folder: Path, maps: tuple[LinearMap, ...]) -> Lora:
    """Read a PEFT adapter folder as a LoRA over the given linear maps, in fp32.

    Maps that the adapter leaves alone get zero factors, and ranks below the largest are filled up
    with zeros: all LoRAs of a base model then have the same maps and one rank each.

    Parameters
    ----------
    folder : Path
        Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
    maps : tuple of LinearMap
        The linear maps of the base model that carry LoRAs.

    Raises
    ------
    MesofedError
        If a file is missing or broken, if the adapter is anything more than a LoRA (DoRA, trained
        biases or whole modules, a changed base), or if it adapts other modules than ``maps``.
    """
    config = _read_config(folder)
    tensors = _read_weights(folder)
    adapted = _adapted_names(tensors, folder)
    _check_maps(adapted, maps, folder)
    for linear in maps:
        if linear.name in adapted:
            own = config.rank_of(linear.name)
            shapes = {"A": (own, linear.in_features), "B": (linear.out_features, own)}
            for side, shape in shapes.items():
                key = _key(linear.name, side)
                _check_tensor(tensors[key], key, shape, folder)
    rank = max(config.rank_of(name) for name in adapted)
    factors = {}
    for linear in maps:
        a = torch.zeros(linear.in_features, rank)
        b = torch.zeros(rank, linear.out_features)
        if linear.name in adapted:
            own = config.rank_of(linear.name)
            a[:, :own] = tensors[_key(linear.name, "A")].mT
            b[:own] = tensors[_key(linear.name, "B")].mT * config.scaling_of(linear.name)
        factors[linear.name] = Factors(a, b)
    return Lora(factors)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MesofedError(
            f"Cannot read {path}: {error.strerror}. Expected a PEFT adapter folder with {CONFIG} "
            f"and {WEIGHTS}; save older .bin adapters again with safetensors."
        ) from error


def _read_config(folder: Path) -> _AdapterConfig:
    path = folder / CONFIG
    try:
        config = _AdapterConfig.model_validate_json(_read(path))
        for pattern in (*(config.rank_pattern or ()), *(config.alpha_pattern or ())):
            _compiled(pattern)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise MesofedError(
            f"Expected the configuration of a PEFT LoRA in {path}; {where}: {first['msg']}."
        ) from error
    except re.error as error:
        raise MesofedError(
            f"Expected regular expressions as patterns in {path}; {error}."
        ) from error
    more = {
        name: value
        for name, value in (config.model_extra or {}).items()
        if value and name not in _WITHOUT_BEARING
    }
    if config.bias != "none":
        more["bias"] = config.bias
    if config.init_lora_weights not in _PLAIN_STARTS:
        more["init_lora_weights"] = config.init_lora_weights
    if more:
        raise MesofedError(
            f"Expected a plain LoRA in {folder}: low-rank factors and nothing else; its {CONFIG} "
            f"has {', '.join(f'{k}={v!r}' for k, v in sorted(more.items()))}. Merge it into its "
            "base model and use that as base.name, or train the adapter again without."
        )
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    data = _read(folder / WEIGHTS)
    try:
        return load(data)
    # The library lets errors about unknown formats and impossible shapes through as they come.
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise MesofedError(f"Expected {folder / WEIGHTS} in safetensors format.") from error


def _adapted_names(tensors: Iterable[str], folder: Path) -> set[str]:
    """Return the names of the adapted modules; refuse tensors that are no factors of a LoRA."""
    sides: dict[str, set[str]] = {"A": set(), "B": set()}
    for key in tensors:
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if not match:
            raise MesofedError(
                f"Expected the factors of a LoRA alone in {folder / WEIGHTS}; got {key}. Train the "
                "adapter again without saved modules, embeddings or biases."
            )
        sides[match[2]].add(match[1])
    if sides["A"] != sides["B"] or not sides["A"]:
        lone = sorted(sides["A"] ^ sides["B"])[:3] or "no factors at all"
        raise MesofedError(
            f"Expected pairs of lora_A and lora_B in {folder / WEIGHTS}; got {lone}."
        )
    return sides["A"]


def _check_maps(adapted: set[str], maps: tuple[LinearMap, ...], folder: Path) -> None:
    unknown = sorted(adapted - {linear.name for linear in maps})
    if not unknown:
        return
    carried = {linear.name.rpartition(".")[2] for linear in maps}
    kinds = sorted(carried | {name.rpartition(".")[2] for name in adapted})
    advice = (
        "It was made for another base model."
        if set(kinds) == carried
        else f"Load the base model with adapt={json.dumps(kinds)}, if that is the adapter's."
    )
    raise MesofedError(
        f"Expected an adapter over {', '.join(sorted(carried))} of this base model; {folder} also "
        f"adapts {', '.join(unknown[:3])}{' and more' if unknown[3:] else ''}. {advice}"
    )


def _check_tensor(tensor: Tensor, key: str, shape: tuple[int, int], folder: Path) -> None:
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise MesofedError(
            f"Expected {key} in {folder / WEIGHTS} as floats of shape {shape}; got {tensor.dtype} "
            f"of {tuple(tensor.shape)}. The adapter is for another base model, or damaged."
        )
    if not torch.isfinite(tensor.float()).all():
        raise MesofedError(f"{key} in {folder / WEIGHTS} holds values that are not finite.")
