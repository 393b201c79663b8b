"""A release: what is packed comes back, and whatever else comes is refused."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from shared.base_model import BaseModel, load_base
from shared.config import MAX_ANCHORS, MAX_DIMENSIONS, MAX_EXPERTS, BaseConfig
from shared.embedding import EmbeddingSpace
from shared.errors import MesofedError
from shared.lora.lora import Factors, Lora
from shared.release import LARGEST, Release, pack_release, unpack_release
from shared.release_files import MANIFEST, read_release_files, verify_files
from shared.retrieval import Examples
from shared.routing import Router, retrieve

Files = dict[str, bytes]

FILES = (
    "bank.safetensors",
    "experts.safetensors",
    "population.safetensors",
    "router.safetensors",
)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(BaseConfig(name="tiny", format="fp32", top_layers=0), ("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def release(base: BaseModel) -> Release:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def lora(rank: int) -> Lora:
        return Lora(
            {
                m.name: Factors(normal(m.in_features, rank), normal(rank, m.out_features))
                for m in base.maps
            }
        )

    return Release(
        version=4,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        population=lora(3),
        experts=(lora(2), lora(2)),
        router=Router(normal(5, 2), normal(2)),
        bank=tuple(lora(1) for _ in range(11)),  # two digits: indices must not sort as text
        anchors=torch.nn.functional.normalize(normal(11, 5), dim=1),
        space=EmbeddingSpace(normal(base.width), torch.linalg.qr(normal(base.width, 5))[0]),
        top_k=2,
        temperature=0.25,
    )


@pytest.fixture(scope="module")
def packed(release: Release) -> Files:
    return pack_release(release)


@pytest.fixture
def files(packed: Files) -> Files:
    return dict(packed)


def tensors_of(release: Release) -> dict[str, Tensor]:
    named = {"population": (release.population,), "expert": release.experts, "bank": release.bank}
    return {
        f"{part} {index} {key}": tensor
        for part, loras in named.items()
        for index, lora in enumerate(loras)
        for key, tensor in lora.tensors().items()
    } | {
        "anchors": release.anchors,
        "weight": release.router.weight,
        "bias": release.router.bias,
        "mean": release.space.mean,
        "basis": release.space.basis,
    }


def resign(files: Files, /, **changes: Any) -> Files:
    """Write a manifest that fits the files, as a hostile server would."""
    manifest = json.loads(files[MANIFEST])
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
        if name != MANIFEST
    }
    return {**files, MANIFEST: json.dumps(manifest | changes).encode()}


def edited(files: Files, name: str, edit: Callable[[dict[str, Tensor]], object]) -> Files:
    """Change the tensors of one file and make the manifest fit."""
    tensors = load(files[name])
    edit(tensors)
    return resign({**files, name: save(tensors)})


# Round trip


def test_what_is_packed_comes_back(base: BaseModel, release: Release, files: Files) -> None:
    assert set(files) == {MANIFEST, *FILES}
    back = unpack_release(files, base)
    for name in ("version", "base_name", "base_fingerprint", "top_k", "temperature"):
        assert getattr(back, name) == getattr(release, name)
    assert len(back.bank) == 11
    expected, came = tensors_of(release), tensors_of(back)
    assert came.keys() == expected.keys()
    assert all(torch.equal(came[key], expected[key]) for key in expected)


def test_packing_is_the_same_bytes_again(base: BaseModel, release: Release, files: Files) -> None:
    assert pack_release(release) == files
    assert pack_release(unpack_release(files, base)) == files


def test_trained_tensors_and_views_are_packed_too(base: BaseModel, release: Release) -> None:
    router = Router(
        release.router.weight.clone().requires_grad_(), release.router.bias.clone().requires_grad_()
    )
    turned = EmbeddingSpace(release.space.mean, release.space.basis.T.contiguous().T)
    back = unpack_release(pack_release(replace(release, router=router, space=turned)), base)
    assert torch.equal(back.router.weight, release.router.weight)
    assert torch.equal(back.space.basis, release.space.basis)


def test_the_manifest_says_what_is_in_it_and_names_no_person(files: Files) -> None:
    manifest = json.loads(files[MANIFEST])
    assert set(manifest) == {
        "format", "release", "base", "ranks", "experts", "anchors", "dimensions", "top_k",
        "temperature", "examples", "files",
    }  # fmt: skip
    assert manifest["ranks"] == {"population": 3, "experts": 2, "bank": 1}
    assert (manifest["experts"], manifest["anchors"], manifest["dimensions"]) == (2, 11, 5)
    assert verify_files(files).release == 4


def test_files_on_disk_are_the_release_without_what_a_crash_left(
    tmp_path: Path, files: Files
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".bank.safetensors.12ab.tmp").write_bytes(b"half")
    assert read_release_files(tmp_path) == files


def test_a_repacked_release_is_accepted(base: BaseModel, files: Files) -> None:
    """Make sure that the refusals below are not refusals of the tests' own packing."""
    again = edited(files, "bank.safetensors", lambda tensors: None)
    assert unpack_release(again, base).version == 4


@pytest.mark.parametrize(
    ("examples", "wrong"),
    [
        ({"count": 9, "tokens": 64, "tasks": ["headline"]}, "examples.count"),
        ({"count": 1, "tokens": 64, "tasks": ["thoughts"]}, "examples.tasks"),
        ({"count": -1, "tokens": 64}, "examples.count"),
        ({"count": 1, "tokens": 10_000}, "examples.tokens"),
        ({"count": 1, "tokens": 1}, "examples.tokens"),
        ({"count": 1, "tokens": 64, "tasks": []}, "examples.tasks"),
        ({"count": 1, "tokens": 64, "tasks": ["headline"] * 99}, "examples.tasks"),
        ({"count": 1}, "examples.tokens"),
    ],
)
def test_a_release_may_not_fill_prompts_with_any_number_of_own_items(
    base: BaseModel, files: Files, examples: dict[str, int], wrong: str
) -> None:
    manifest = json.loads(files[MANIFEST]) | {"examples": examples}
    with pytest.raises(MesofedError, match=wrong):
        unpack_release({**files, MANIFEST: json.dumps(manifest).encode()}, base)


def test_examples_come_back(base: BaseModel, release: Release) -> None:
    asked = Examples(3, 48, ("headline",))
    files = pack_release(replace(release, examples=asked))
    assert unpack_release(files, base).examples == asked


# Files that are not what the manifest says


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 9, 0.5, -1])
def test_one_flipped_bit_is_refused(base: BaseModel, files: Files, name: str, place: float) -> None:
    data = bytearray(files[name])
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 1
    with pytest.raises(MesofedError, match=f"{name} of release 4 is not what its manifest names"):
        unpack_release({**files, name: bytes(data)}, base)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_or_exchanged_file_is_refused(
    base: BaseModel, files: Files, name: str
) -> None:
    for wrong in (
        {key: data for key, data in files.items() if key != name},
        resign({key: data for key, data in files.items() if key != name}),
        {**files, name: files[name][:-1]},
        {**files, name: b""},
        {**files, name: files[FILES[FILES.index(name) - 1]]},
        resign({**files, name: files[FILES[FILES.index(name) - 1]]}),
    ):
        with pytest.raises(MesofedError):
            unpack_release(wrong, base)


@pytest.mark.parametrize("name", ["more.safetensors", "../vault.json", "run.py"])
def test_a_file_too_many_is_refused_even_if_the_manifest_names_it(
    base: BaseModel, files: Files, name: str
) -> None:
    more = {**files, name: b"x"}
    for wrong in (more, resign(more)):
        with pytest.raises(MesofedError, match="lack or add"):
            unpack_release(wrong, base)


# Manifests


@pytest.mark.parametrize(
    "data",
    [
        None, b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'"manifest"', b"[" * 100_000,
        b'{"format": 2, "format": 1}', b"NaN",
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(
    base: BaseModel, files: Files, data: bytes | None
) -> None:
    wrong = {name: content for name, content in files.items() if name != MANIFEST}
    if data is not None:
        wrong[MANIFEST] = data
    with pytest.raises(MesofedError, match=MANIFEST):
        unpack_release(wrong, base)


@pytest.mark.parametrize("key", ["format", "release", "base", "ranks", "temperature", "files"])
def test_an_incomplete_manifest_is_refused(base: BaseModel, files: Files, key: str) -> None:
    manifest = json.loads(files[MANIFEST])
    del manifest[key]
    with pytest.raises(MesofedError, match=f"{key}: Field required"):
        unpack_release({**files, MANIFEST: json.dumps(manifest).encode()}, base)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1},
        {"format": 3},
        {"format": "1"},
        {"extra": 1},
        {"release": 0},
        {"release": "4"},
        {"release": 4.5},
        {"experts": 3},
        {"experts": 1},
        {"experts": True},
        {"experts": 10**12},
        {"anchors": 10},
        {"anchors": 0},
        {"dimensions": 4},
        {"dimensions": MAX_DIMENSIONS + 1},
        {"experts": MAX_EXPERTS + 1},
        {"anchors": MAX_ANCHORS + 1},
        {"dimensions": -5},
        {"top_k": 0},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": 1e-300},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"ranks": {"population": 3, "experts": 2}},
        {"ranks": {"population": 3, "experts": 2, "bank": 2}},
        {"ranks": {"population": 10**15, "experts": 2, "bank": 1}},
        {"ranks": {"population": 3, "experts": 2, "bank": 1, "more": 1}},
        {"base": {"name": "tiny", "fingerprint": "0" * 64}},
        {"base": {"name": "tiny"}},
        {"files": {}},
        {"files": []},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(
    base: BaseModel, files: Files, changes: dict[str, Any]
) -> None:
    with pytest.raises(MesofedError):
        unpack_release(resign(files, **changes), base)


def test_a_release_for_another_base_model_is_refused_by_name(base: BaseModel, files: Files) -> None:
    other = resign(files, base={"name": "smollm2", "fingerprint": "abc" * 8})
    with pytest.raises(MesofedError, match=r"this base model \(tiny, .*one for smollm2 \(abcabc"):
        unpack_release(other, base)


# Tensors, in files whose manifest fits

MAP = "model.layers.0.self_attn.q_proj"


def put(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({key: change(tensors[key])})


def test_a_server_cannot_put_a_person_under_a_lens(base: BaseModel, release: Release) -> None:
    space, anchors = release.space, release.anchors
    one_axis = torch.zeros_like(space.basis)
    one_axis[0] = 1.0
    for changed in (
        replace(release, space=EmbeddingSpace(space.mean, 100 * space.basis)),
        replace(release, space=EmbeddingSpace(space.mean, one_axis)),
    ):
        with pytest.raises(MesofedError, match="orthonormal axes"):
            unpack_release(pack_release(changed), base)
    with pytest.raises(MesofedError, match="unit vectors"):
        unpack_release(pack_release(replace(release, anchors=3 * anchors)), base)
    # As many experts and axes as numbers in a hidden state would give all of it away.
    width = base.width
    with pytest.raises(ValidationError, match="dimensions"):
        pack_release(replace(release, space=EmbeddingSpace(torch.zeros(width), torch.eye(width))))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("population.safetensors", f"0/{MAP}.a"),
        ("experts.safetensors", f"1/{MAP}.b"),
        ("bank.safetensors", f"10/{MAP}.a"),
        ("router.safetensors", "space.mean"),
        ("router.safetensors", "space.basis"),
        ("router.safetensors", "router.weight"),
        ("router.safetensors", "router.bias"),
        ("router.safetensors", "anchors"),
    ],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1].contiguous(), "of shape"),
        (lambda t: t[None].contiguous(), "of shape"),
        (lambda t: t.flatten()[:0], "of shape"),
        (lambda t: t.half(), "torch.float16"),
        (lambda t: t.double(), "torch.float64"),
        (lambda t: t.int(), "torch.int32"),
        (lambda t: t.masked_fill(torch.arange(t.numel()).view_as(t) == 1, torch.nan), "not finite"),
        (
            lambda t: t.masked_fill(torch.arange(t.numel()).view_as(t) == 0, -torch.inf),
            "not finite",
        ),
    ],
)
def test_tensors_of_another_kind_are_refused(
    base: BaseModel,
    files: Files,
    name: str,
    key: str,
    change: Callable[[Tensor], Tensor],
    message: str,
) -> None:
    with pytest.raises(MesofedError, match=message) as error:
        unpack_release(edited(files, name, put(key, change)), base)
    assert key in str(error.value)


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    """Put a value in the place of the last one."""
    return lambda t: t.masked_fill(torch.arange(t.numel()).view_as(t) == t.numel() - 1, value)


@pytest.mark.parametrize("value", [1.001e4, -1.001e4, 3e38, -3e38])
def test_huge_values_are_refused_in_every_tensor(
    base: BaseModel, files: Files, value: float
) -> None:
    for name in FILES:
        for key in load(files[name]):
            with pytest.raises(MesofedError, match="to be at most 10000") as error:
                unpack_release(edited(files, name, put(key, with_one(value))), base)
            assert f"{key} in {name}" in str(error.value)
            assert f"got {abs(value):.3g}." in str(error.value)


def test_the_largest_values_are_taken_and_overflow_nothing(base: BaseModel, files: Files) -> None:
    """All numbers at the bound, with the signs under which sums grow most."""
    for name in FILES:
        # The basis and the anchors keep their length, by which they are checked.
        largest = {
            key: torch.full_like(tensor, 1e4)
            for key, tensor in load(files[name]).items()
            if key not in ("space.basis", "anchors")
        }
        files = edited(files, name, lambda tensors, largest=largest: tensors.update(largest))
    release = unpack_release(files, base)
    for embedding in (torch.full((base.width,), -1e4), torch.zeros(base.width)):
        place = release.space.place(embedding)
        assert place.norm().item() == pytest.approx(1, abs=1e-5)
        assert release.router(place).sum().item() == pytest.approx(1, abs=1e-5)
        found = retrieve(place, release.anchors, release.top_k, release.temperature)
        assert sum(found.weights) == pytest.approx(1, abs=1e-5)
    for lora in (release.population, *release.experts, *release.bank):
        assert all(factors.delta().isfinite().all() for _, factors in lora)


def test_without_the_bound_a_place_would_overflow(release: Release) -> None:
    basis = release.space.basis.masked_fill(torch.ones_like(release.space.basis).bool(), 3e38)
    place = EmbeddingSpace(release.space.mean, basis).place(torch.ones(len(basis)))
    assert not place.isfinite().all() or place.norm() == 0


def test_a_release_of_a_run_is_far_from_the_bound(federation: Any) -> None:
    files = federation.release_files(2)
    assert unpack_release(files, load_base(federation.config.base, federation.config.adapt))
    tensors = [tensor for name in FILES for tensor in load(files[name]).values()]
    assert 0 < max(float(tensor.abs().max()) for tensor in tensors) < LARGEST / 100


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_additional_tensor_is_refused(
    base: BaseModel, files: Files, name: str
) -> None:
    first = sorted(load(files[name]))[0]
    for edit in (
        lambda tensors: tensors.pop(first),
        lambda tensors: tensors.update({"more": torch.ones(2)}),
        lambda tensors: tensors.update({f"0/{MAP}/x.a": torch.ones(2)}),
        lambda tensors: tensors.update({first + "x": tensors.pop(first)}),
        lambda tensors: tensors.clear(),
    ):
        with pytest.raises(MesofedError, match=f"{name} lacks or adds tensors"):
            unpack_release(edited(files, name, edit), base)


def header(entry: dict[str, Any], data: bytes = b"") -> bytes:
    """Return a safetensors file by hand."""
    text = json.dumps({"space.mean": entry}).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"left over",
        header({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}),
        header({"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}),
        header({"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}, b"ab"),
        header({"dtype": "F32", "shape": [64], "data_offsets": [0, 9]}, b"x" * 9),
        header({"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}),
    ],
    ids=lambda data: repr(data[8:60]),
)
def test_bytes_that_are_no_safetensors_are_refused(
    base: BaseModel, files: Files, data: bytes
) -> None:
    with pytest.raises(MesofedError, match=r"router\.safetensors"):
        unpack_release(resign({**files, "router.safetensors": data}), base)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([MANIFEST, *FILES]),
    data=st.binary(max_size=200),
    keep=st.integers(0, 300),
)
def test_arbitrary_bytes_are_refused(
    base: BaseModel, packed: Files, name: str, data: bytes, keep: int
) -> None:
    """Replace a file, or its end, by anything; where it is not the manifest, make that fit."""
    wrong = {**packed, name: packed[name][:keep] + data}
    if name != MANIFEST:
        wrong = resign(wrong)
    with pytest.raises(MesofedError):
        unpack_release(wrong, base)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.sampled_from(["format", "release", "base", "ranks", "experts", "files"]), value=JSON)
def test_arbitrary_json_in_the_manifest_is_refused_or_harmless(
    base: BaseModel, packed: Files, key: str, value: Any
) -> None:
    manifest = json.loads(packed[MANIFEST])
    manifest[key] = value
    wrong = {**packed, MANIFEST: json.dumps(manifest).encode()}
    try:
        unpack_release(wrong, base)
    except MesofedError:
        return
    # The release's number is the one value that may be another.
    assert key == "release" or value == json.loads(packed[MANIFEST])[key]
