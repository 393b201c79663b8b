"""A release: everything the server has learned, packed into files and read from them again.

A release names no person: the bank holds the anchors' meta-LoRAs and places, not their ids.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shared.base_model import BaseModel
from shared.embedding import EmbeddingSpace
from shared.errors import MesofedError
from shared.lora.lora import LinearMap, Lora
from shared.release_files import (
    FORMAT,
    MANIFEST,
    BaseEntry,
    ExamplesEntry,
    FileEntry,
    Manifest,
    Ranks,
    verify_files,
)
from shared.retrieval import NO_EXAMPLES, Examples
from shared.routing import Router

# No number of a release is larger. Trained releases stay below 20, the mean embedding being the
# largest; at the bound, places, router weights, similarities and updates B A still have room in
# fp32 to be multiplied and squared.
LARGEST = 1e4


@dataclass(frozen=True)
class Release:
    """What devices install.

    Attributes
    ----------
    version : int
        Counts from 1.
    base_name, base_fingerprint : str
        The base model it is for.
    population : Lora
        On for everyone.
    experts : tuple of Lora
        Group experts, over the population LoRA.
    router : Router
        From a user's place to weights over the experts.
    bank : tuple of Lora
        Meta-LoRAs of the anchor users, over the population LoRA.
    anchors : Tensor, (anchors, k)
        The anchors' places, unit vectors.
    space : EmbeddingSpace
        Where users are compared.
    top_k : int
        How many anchors a device fuses.
    temperature : float
        Of the softmax over similarities.
    examples : Examples
        The own items that stand before every question, as in everything it was trained on.
    """

    version: int
    base_name: str
    base_fingerprint: str
    population: Lora
    experts: tuple[Lora, ...]
    router: Router
    bank: tuple[Lora, ...]
    anchors: Tensor
    space: EmbeddingSpace
    top_k: int
    temperature: float
    examples: Examples = NO_EXAMPLES


def _stacked(loras: Sequence[Lora]) -> dict[str, Tensor]:
    """Name the tensors of several LoRAs ``<index>/<map>.a`` and so on."""
    return {
        f"{index}/{key}": tensor
        for index, lora in enumerate(loras)
        for key, tensor in lora.tensors().items()
    }


def _unstacked(tensors: Mapping[str, Tensor], count: int) -> tuple[Lora, ...]:
    groups: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        groups[int(index)][name] = tensor
    return tuple(Lora.from_tensors(group) for group in groups)


def pack_release(release: Release) -> dict[str, bytes]:
    """Return the files of a release by name, the manifest among them."""
    tensors = {
        "population.safetensors": _stacked([release.population]),
        "experts.safetensors": _stacked(release.experts),
        "bank.safetensors": _stacked(release.bank),
        "router.safetensors": {
            "space.mean": release.space.mean.contiguous(),
            "space.basis": release.space.basis.contiguous(),
            "router.weight": release.router.weight.detach().contiguous(),
            "router.bias": release.router.bias.detach().contiguous(),
            "anchors": release.anchors.contiguous(),
        },
    }
    files = {name: save(content) for name, content in tensors.items()}
    manifest = Manifest(
        format=FORMAT,
        release=release.version,
        base=BaseEntry(name=release.base_name, fingerprint=release.base_fingerprint),
        ranks=Ranks(
            population=release.population.rank,
            experts=release.experts[0].rank,
            bank=release.bank[0].rank,
        ),
        experts=len(release.experts),
        anchors=len(release.bank),
        dimensions=release.space.basis.shape[1],
        top_k=release.top_k,
        temperature=release.temperature,
        examples=ExamplesEntry(**asdict(release.examples)),
        files={
            name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            for name, data in files.items()
        },
    )
    return {MANIFEST: manifest.model_dump_json(indent=1).encode(), **files}


def unpack_release(files: Mapping[str, bytes], base: BaseModel) -> Release:
    """Verify the files of a release and return it.

    Raises
    ------
    MesofedError
        If a file is missing, unknown or not what the manifest says; if a tensor is missing,
        unknown, of another shape than the base model and the manifest ask for, not fp32, not
        finite or beyond ``LARGEST``; or if the release is for another base model.
    """
    manifest = verify_files(files)
    expected = manifest.base.fingerprint
    if expected != base.fingerprint:
        raise MesofedError(
            f"Expected a release for this base model ({base.name}, {base.fingerprint[:12]}); "
            f"got one for {manifest.base.name} ({expected[:12]}). Load that base model."
        )
    experts, anchors = manifest.experts, manifest.anchors
    ranks, k = manifest.ranks, manifest.dimensions
    width = base.width
    population = _tensors(files, "population", _lora_shapes(base.maps, ranks.population, 1))
    router = _tensors(
        files,
        "router",
        {
            "space.mean": (width,),
            "space.basis": (width, k),
            "router.weight": (k, experts),
            "router.bias": (experts,),
            "anchors": (anchors, k),
        },
    )
    release = Release(
        version=manifest.release,
        base_name=manifest.base.name,
        base_fingerprint=expected,
        population=_unstacked(population, 1)[0],
        experts=_unstacked(
            _tensors(files, "experts", _lora_shapes(base.maps, ranks.experts, experts)), experts
        ),
        router=Router(router["router.weight"], router["router.bias"]),
        bank=_unstacked(
            _tensors(files, "bank", _lora_shapes(base.maps, ranks.bank, anchors)), anchors
        ),
        anchors=router["anchors"],
        space=EmbeddingSpace(router["space.mean"], router["space.basis"]),
        top_k=manifest.top_k,
        temperature=manifest.temperature,
        examples=Examples(**manifest.examples.model_dump()),
    )
    _check_space(release.space.basis, release.anchors)
    return release


def _check_space(basis: Tensor, anchors: Tensor) -> None:
    """Refuse a space that is none: axes and anchors have length 1, axes are orthogonal.

    So the statistics tell where a person stands among others, and not one axis under a lens.
    """
    gram = basis.mT @ basis  # (k, k)
    if not torch.allclose(gram, torch.eye(len(gram)), atol=1e-3):
        raise MesofedError("Expected orthonormal axes in space.basis of the release; they are not.")
    if not torch.allclose(anchors.norm(dim=1), torch.ones(len(anchors)), atol=1e-3):
        raise MesofedError("Expected the release's anchors to be unit vectors; they are not.")


def _lora_shapes(maps: Sequence[LinearMap], rank: int, count: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{index}/{linear.name}.{side}": shape
        for index in range(count)
        for linear in maps
        for side, shape in (
            ("a", (linear.in_features, rank)),
            ("b", (rank, linear.out_features)),
        )
    }


def _tensors(
    files: Mapping[str, bytes], part: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Read one safetensors file; refuse all but exactly the expected tensors."""
    name = f"{part}.safetensors"
    try:
        tensors = load(files[name])
    # The library lets errors about unknown formats and impossible shapes through as they come.
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise MesofedError(f"Expected {name} in safetensors format in the release.") from error
    if set(tensors) != set(shapes):
        differing = sorted(set(tensors) ^ set(shapes))
        raise MesofedError(f"{name} lacks or adds tensors, such as {differing[:3]}.")
    for key, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[key] or tensor.dtype != torch.float32:
            raise MesofedError(
                f"Expected {key} in {name} as fp32 of shape {shapes[key]}; "
                f"got {tensor.dtype} of {tuple(tensor.shape)}."
            )
        require_bounded(tensor, f"{key} in {name}")
    return tensors


def require_bounded(tensor: Tensor, called: str) -> None:
    """Refuse numbers to which no training comes.

    Raises
    ------
    MesofedError
        If any is not finite, or beyond ``LARGEST``.
    """
    # What is not a number is the least and the most of any that it is among.
    least, most = (float(value) for value in torch.aminmax(tensor))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise MesofedError(f"{called} holds values that are not finite.")
    if max(-least, most) > LARGEST:
        raise MesofedError(
            f"Expected the values of {called} to be at most {LARGEST:g}; got "
            f"{max(-least, most):.3g}. No training comes there: do not use this release."
        )
