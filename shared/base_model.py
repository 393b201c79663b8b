"""The frozen base model: loaded once a process, in one of four formats, carrying the adapter stack.

config.name    tiny -> made in code | smollm2 -> the wheel, converted once | folder or hub id
config.format  auto | fp32 | bf16 | int8 | nf4       (the fingerprint is the same in all of them)
"""

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shared import smollm2
from shared.config import BaseConfig, Format
from shared.errors import MesofedError
from shared.fingerprint import fingerprint
from shared.lora.layer import AdapterStack
from shared.lora.lora import LinearMap
from shared.precision import computing_device, computing_dtype, weight_format
from shared.prefix import FrozenPrefix, batch_shape
from shared.quantise import quantise
from shared.rowwise_product import rowwise
from shared.state_cache import StateCache

if TYPE_CHECKING:  # importing it takes longer than many commands, which load no model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen causal language model with empty adapter layers on its adapted linear maps.

    Attributes
    ----------
    model : PreTrainedModel
        In eval mode; no parameter requires a gradient.
    tokenizer : PreTrainedTokenizerBase
        Has a padding token.
    name : str
        As configured.
    format : {"fp32", "bf16", "int8", "nf4"}
        Of the weights: as configured, or what ``auto`` came to on this machine.
    fingerprint : str
        Identifies the weights, whatever the format; hexadecimal.
    maps : tuple of LinearMap
        The linear maps that carry LoRAs, in the order of the model.
    stack : AdapterStack
        What is on in the adapter layers; empty, the model is the plain base model.
    dtype : torch.dtype
        Of the activations.
    device : torch.device
        Where model and activations are.
    max_tokens : int
        Length to which a prompt and its answer are cut.
    memory : int
        Bytes that the activations of one training batch may take.
    prefix : FrozenPrefix or None
        The layers below the lowest LoRA, if there are any.
    lock : RLock
        Hold it while using model and stack: there is one of each in a process.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    format: Format
    fingerprint: str
    maps: tuple[LinearMap, ...]
    stack: AdapterStack
    dtype: torch.dtype
    device: torch.device
    max_tokens: int
    memory: int
    prefix: FrozenPrefix | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def pad_token(self) -> int:
        """Id of the padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return _embedding(self.model).shape[1]

    @property
    def head(self) -> Tensor:
        """Weight of the vocabulary head, (vocabulary, width)."""
        weight = self.model.get_output_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def hidden_states(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the last layer's normalised hidden states of token ids.

        Rows of unequal length are padded at the right; attention is causal, so that no token
        sees the padding, and no mask is needed. What the padding itself gives is undefined.

        Parameters
        ----------
        ids : Tensor of int64, (rows, tokens)
        lengths : sequence of int
            Tokens of each row without padding.

        Returns
        -------
        Tensor, (rows, tokens, width)
        """
        if self.prefix is not None:
            return self.prefix.finish(self.prefix.states(ids, lengths))
        output = self.model.get_decoder()(input_ids=ids, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits, (n, vocabulary), of hidden states, (n, width).

        The head is the largest matrix of a small model: give it the positions that matter only,
        gathered into one contiguous matrix.
        """
        head = self.model.get_output_embeddings()
        logits: Tensor = head(hidden.to(self.dtype)).float()
        return logits


# Settings with which transformers' models change their logits after the head.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale")

_Key = tuple[str, str, torch.dtype, int, frozenset[str]]
_loading = threading.Lock()
_resident: tuple[_Key, BaseModel] | None = None


def load_base(config: BaseConfig, adapt: tuple[str, ...]) -> BaseModel:
    """Return the configured base model, which stays resident until another one is asked for.

    Parameters
    ----------
    config : BaseConfig
        Name, format and token limit.
    adapt : tuple of str
        Last name components of the linear maps that carry LoRAs, such as ``q_proj``.

    Raises
    ------
    MesofedError
        If the model cannot be found or loaded, has no such linear maps, or computes its logits
        in a way that the trainer would miss.
    """
    global _resident
    device = computing_device()
    config = config.model_copy(update={"format": weight_format(config.format, device)})
    dtype = computing_dtype(config.format, device)
    key = (config.name, config.format, dtype, config.top_layers, frozenset(adapt))
    with _loading:
        if _resident is None or _resident[0] != key:
            if _resident is not None:
                _resident = None
                gc.collect()  # two models at once may not fit into the memory
            _resident = key, _load(config, adapt, device, dtype)
        base = _resident[1]
        if base.prefix is not None:
            base.prefix.cache.limit = config.cache_mb << 20
        memory = config.batch_memory_mb << 20
        return replace(base, max_tokens=config.max_tokens, memory=memory)


def _load(
    config: BaseConfig, adapt: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> BaseModel:
    from transformers import GenerationConfig

    quantised = config.format in ("int8", "nf4")
    # From bf16, so that quantised weights are the same wherever they are multiplied.
    model, tokenizer = _weights(config.name, torch.bfloat16 if quantised else dtype)
    nn.Module.to(model, dtype)
    cut = _cut(model, config.top_layers)
    maps = _adapted_maps(model, adapt, cut)
    # Where rounding depends on company, maps without LoRAs have to be taken apart as well.
    others = set(_linear_maps(model, cut)) if rowwise(dtype, device) else set()
    others -= {linear.name for linear in maps}
    identity = fingerprint(model, model.config, _embedding(model))
    if quantised:
        quantise(model, _linear_maps(model), config.format, device, dtype)
    nn.Module.to(model, device)
    if device.type == "cpu":
        # On short texts a training step is a quarter faster than with the fused CPU attention.
        model.set_attn_implementation("eager")
    stack = AdapterStack.attach(model, maps, sorted(others))
    model.requires_grad_(False).eval()
    # The head takes a slice of a batch for a batch of matrices, and copies itself for each row.
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    # Greedy means greedy: some models bring penalties that label choice and losses do not know.
    model.generation_config = GenerationConfig()
    base = BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=config.name,
        format=config.format,
        fingerprint=identity,
        maps=maps,
        stack=stack,
        dtype=dtype,
        device=device,
        max_tokens=config.max_tokens,
        memory=config.batch_memory_mb << 20,
        prefix=_prefix(model, cut, dtype, config.cache_mb) if cut else None,
    )
    _check_logits(base)
    return base


def _prefix(model: "PreTrainedModel", cut: int, dtype: torch.dtype, cache_mb: int) -> FrozenPrefix:
    """Return the layers below the cut."""
    cache = StateCache(cache_mb << 20)
    return FrozenPrefix(model.get_decoder(), cut, dtype, _embedding(model).shape[1], cache)


def _contiguous(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(argument.contiguous() for argument in arguments)


def _cut(model: "PreTrainedModel", top_layers: int) -> int:
    """Return how many layers stay below the LoRAs."""
    layers = getattr(model.get_decoder(), "layers", None)
    if top_layers and not isinstance(layers, nn.ModuleList):
        raise MesofedError(
            f"Expected {type(model).__name__} to keep its layers in a list, to put LoRAs on the "
            "top ones alone; it does not. Set base.top_layers=0."
        )
    return max(0, len(layers) - top_layers) if top_layers and layers is not None else 0


def _weights(name: str, dtype: torch.dtype) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Return model and tokenizer by name, on the CPU, in a dtype, before any quantisation."""
    if name == "tiny":
        from shared import tiny

        return tiny.build_model(dtype), tiny.build_tokenizer()
    from shared.pretrained import load_folder, local_folder

    folder = smollm2.model_folder() if name == "smollm2" else local_folder(name)
    return load_folder(folder, dtype)


def _embedding(model: "PreTrainedModel") -> Tensor:
    """Return the input embedding, (vocabulary, width)."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _linear_maps(model: "PreTrainedModel", cut: int = 0) -> dict[str, nn.Linear]:
    """Return the linear maps of the decoder above the cut by name, in the order of the model."""
    inside = set(model.get_decoder().modules())
    if cut:
        inside -= {m for layer in model.get_decoder().layers[:cut] for m in layer.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module in inside
    }


def _adapted_maps(
    model: "PreTrainedModel", adapt: tuple[str, ...], cut: int
) -> tuple[LinearMap, ...]:
    """Return the linear maps above the cut whose last name component is in ``adapt``."""
    kinds = {name.rpartition(".")[2] for name in _linear_maps(model)}
    if not adapt or (unknown := set(adapt) - kinds):
        raise MesofedError(
            f"Expected adapt to name linear maps of the base model; got "
            f"{', '.join(sorted(unknown)) if adapt else 'none'}. "
            f"It has: {', '.join(sorted(kinds)) or 'no linear map at all'}."
        )
    return tuple(
        LinearMap(name, linear.in_features, linear.out_features)
        for name, linear in _linear_maps(model, cut).items()
        if name.rpartition(".")[2] in adapt
    )


@torch.no_grad()
def _check_logits(base: BaseModel) -> None:
    """Refuse a model that computes more than decoder and head, such as capped or scaled logits.

    Known settings are looked up, since a cap does not show in small logits; others are tried. In
    bf16 on a batch as the prefix runs it: kernels choose their order of summation by shape, and
    there that alone moves logits by some per cent. In fp32 one text does, in a third of the time.
    """
    config = base.model.config
    known = {name: getattr(config, name, None) for name in _LOGIT_SETTINGS}
    changed = [f"{name}={value}" for name, value in known.items() if value not in (None, 1)]
    rows, columns = batch_shape(1)
    rows = rows if base.dtype == torch.bfloat16 else 1
    ids = torch.arange(1, 1 + columns, device=base.device).expand(rows, columns)
    expected = base.model(input_ids=ids, use_cache=False).logits.float()
    hidden = base.hidden_states(ids, [columns] * rows)
    came = base.logits(hidden.flatten(0, 1)).view_as(expected)
    if changed or not torch.allclose(came, expected, rtol=1e-2, atol=1e-2):
        raise MesofedError(
            f"Expected the base model {base.name} to compute its logits as the product of its "
            f"head and the decoder's hidden states, but {type(base.model).__name__} caps or "
            f"scales them{' (' + ', '.join(changed) + ')' if changed else ''}. "
            "Choose another base model."
        )
