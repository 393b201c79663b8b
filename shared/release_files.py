"""The files of a release, and the manifest that names their hashes; read without any tensor.

The same bytes are what lies on disk and what crosses the wire.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from shared.atomic_file import write_bytes
from shared.config import (
    MAX_ANCHORS,
    MAX_DIMENSIONS,
    MAX_EXAMPLE_TOKENS,
    MAX_EXAMPLES,
    MAX_EXPERTS,
    MIN_EXAMPLE_TOKENS,
)
from shared.errors import MesofedError
from shared.tasks import TASKS

FORMAT: Literal[2] = 2
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
PARTS = ("population", "experts", "bank", "router")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Section):
    """What the manifest says of one file."""

    sha256: str
    bytes: NonNegativeInt


class BaseEntry(_Section):
    """What the manifest says of the base model."""

    name: str
    fingerprint: str


class Ranks(_Section):
    """Ranks of the LoRAs in a release."""

    population: PositiveInt
    experts: PositiveInt
    bank: PositiveInt


def _task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"expected one of {', '.join(TASKS)}")
    return name


TaskName = Annotated[str, AfterValidator(_task)]


class ExamplesEntry(_Section):
    """How many of a person's own items stand before which questions, and to what they are cut."""

    count: Annotated[int, Field(ge=0, le=MAX_EXAMPLES)]
    tokens: Annotated[int, Field(ge=MIN_EXAMPLE_TOKENS, le=MAX_EXAMPLE_TOKENS)]
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1, max_length=len(TASKS))]


class Manifest(_Section):
    """The contents of a release, and the hash of each file."""

    format: Literal[2]
    release: PositiveInt
    base: BaseEntry
    ranks: Ranks
    experts: Annotated[int, Field(ge=1, le=MAX_EXPERTS)]
    anchors: Annotated[int, Field(ge=1, le=MAX_ANCHORS)]
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]
    top_k: PositiveInt
    examples: ExamplesEntry
    temperature: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]
    files: dict[str, FileEntry]


def read_release_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a release by name; a hidden file is a write that a crash cut short."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


def write_release_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a release, the manifest last: without it a release is not there yet."""
    for name in sorted(files, key=lambda name: name == MANIFEST):
        write_bytes(folder / name, files[name])


def verify_files(files: Mapping[str, bytes]) -> Manifest:
    """Return the manifest of a release whose files are what it names.

    Raises
    ------
    MesofedError
        If the manifest is not complete, or a file is missing, unknown or changed.
    """
    manifest = _read_manifest(files)
    for name, entry in manifest.files.items():
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise MesofedError(
                f"{name} of release {manifest.release} is not what its manifest names: the hash "
                "differs. Fetch the release again; do not use this one."
            )
    return manifest


def _read_manifest(files: Mapping[str, bytes]) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(files.get(MANIFEST, b""))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or MANIFEST
        raise MesofedError(
            f"Expected a release of format {FORMAT} with a complete {MANIFEST}; "
            f"{where}: {first['msg']}. Fetch the release again, or update mesofed."
        ) from error
    expected = {f"{part}.safetensors" for part in PARTS}
    for found in (set(manifest.files), set(files) - {MANIFEST, SIGNATURE}):
        if found != expected:
            raise MesofedError(
                f"Expected {', '.join(sorted(expected))} in the release and its manifest; "
                f"they lack or add {sorted(found ^ expected)[:4]}. Fetch the release again."
            )
    return manifest
