"""Nothing that a server sends is ever unpickled or run."""

import ast
import hashlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.boundary import answer
from client.device import Device
from shared.errors import MesofedError
from shared.protocol import INSTALL_RELEASE, release_to_content

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "server", "shared", "simulations")
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


# By what runs

_found: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """A hook cannot be taken away again, so it looks whether it is wanted."""
    if _found is not None and event in ("pickle.find_class", "exec", "os.system"):
        if event == "exec" and "mesofed-canary" not in str(arguments[0].co_filename):
            return
        _found.append(f"{event} {arguments}")


sys.addaudithook(_hook)


@contextmanager
def listening() -> Iterator[list[str]]:
    global _found
    _found = found = []
    try:
        yield found
    finally:
        _found = None


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def pickled(trap: Trap) -> bytes:
    return pickle.dumps({"population": trap})


def torch_file(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"0/x.a": torch.ones(2), "trap": trap}, buffer)
    return buffer.getvalue()


def old_torch_file(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"trap": trap}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def numpy_file(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zip_file(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(trap))
        archive.writestr("population.npy", numpy_file(trap))
    return buffer.getvalue()


def safetensors_with_a_pickle(trap: Trap) -> bytes:
    data = pickled(trap)
    header = {
        "0/x.a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]},
        "__metadata__": {"pickle": data.hex()},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


HOSTILE = (pickled, torch_file, old_torch_file, numpy_file, zip_file, safetensors_with_a_pickle)


@pytest.mark.parametrize("kind", HOSTILE[:5])
def test_the_traps_do_spring_where_something_unpickles_them(kind: Any, tmp_path: Path) -> None:
    data = kind(Trap(tmp_path / "sprung"))
    with listening() as found:
        if kind is numpy_file:
            np.load(io.BytesIO(data), allow_pickle=True)
        elif kind is zip_file:
            pickle.loads(zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl"))
        elif kind is pickled:
            pickle.loads(data)
        else:
            torch.load(io.BytesIO(data), weights_only=False)
    assert any("pickle.find_class" in event for event in found)
    assert any("os.system" in event for event in found)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", ["population", "experts", "bank", "router"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_release_of_hostile_files_unpickles_nothing_though_it_is_signed(
    sealed_device: Device, federation: Any, tmp_path: Path, kind: Any, part: str
) -> None:
    """Signed by the server that the device trusts, with true hashes: only the content is wrong."""
    name, data = f"{part}.safetensors", kind(Trap(tmp_path / "sprung"))
    files = dict(federation.release_files(1))
    files[name] = data
    manifest = json.loads(files["manifest.json"])
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["files"][name] = entry
    files["manifest.json"] = json.dumps(manifest).encode()
    files = federation.signed_files(files)
    with listening() as found:
        with pytest.raises(MesofedError, match=name):
            answer(sealed_device, INSTALL_RELEASE, release_to_content(files, 1))
        # And once it lies in the vault, as if it had come there by another way.
        sealed_device.vault.install(1, files)
        with pytest.raises(MesofedError, match=name):
            sealed_device.statistics()
    assert found == []
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_neither_does_a_hostile_manifest_or_signature(
    sealed_device: Device, federation: Any, tmp_path: Path, kind: Any, name: str
) -> None:
    files = dict(federation.release_files(1))
    files[name] = kind(Trap(tmp_path / "sprung"))
    if name == "manifest.json":
        files = federation.signed_files(files)
    with listening() as found, pytest.raises(MesofedError):
        answer(sealed_device, INSTALL_RELEASE, release_to_content(files, 1))
    assert found == []
    assert not (tmp_path / "sprung").exists()
    assert sealed_device.vault.installed() is None


@pytest.mark.parametrize("kind", HOSTILE)
def test_neither_does_a_vault_of_hostile_files(
    sealed_device: Device, tmp_path: Path, kind: Any
) -> None:
    data, vault = kind(Trap(tmp_path / "sprung")), sealed_device.vault
    bare = replace(vault, folder=tmp_path / "bare", seal=type(vault.seal)())
    with listening() as found:
        for path in ("private/r1/oppu.safetensors", "private/r1/oppu.json", "statistics/r1.json"):
            for home in (vault, bare):
                home._write(path, data)
        for path in ("embedding/f.safetensors", "installed.json", "person.jsonl"):
            bare._write(path, data)
        assert bare.load_private(1, "oppu") is None
        assert vault.load_private(1, "oppu") is None
        assert bare.statistics(1) is None
        for ask in (bare.installed, bare.person):
            with pytest.raises(MesofedError):
                ask()
        bare.load_embedding("other")
    assert found == []
    assert not (tmp_path / "sprung").exists()


# By what is written


def faults(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        else:
            names = []
        found += [f"{node.lineno}: imports {name}" for name in names if name in UNSAFE]
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: word.value for word in node.keywords}
        call = ast.unparse(node.func)
        if call in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"):
            found.append(f"{node.lineno}: calls {call}")
        if call == "torch.load" and not _is(options.get("weights_only"), True):
            found.append(f"{node.lineno}: torch.load without weights_only")
        if "allow_pickle" in options and not _is(options["allow_pickle"], False):
            found.append(f"{node.lineno}: allows pickle")
        if call in ("torch.hub.load", "yaml.load", "yaml.unsafe_load", "os.system"):
            found.append(f"{node.lineno}: calls {call}")
        if "shell" in options or "trust_remote_code" in options:
            found.append(f"{node.lineno}: calls {call} with a shell or remote code")
    return found


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy, cloudpickle.x",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "exec(x)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert len(faults(source)) == 1
    assert faults("import torch\ntorch.load(f, weights_only=True)\nmodel.eval()\n") == []


def test_the_packages_unpickle_and_evaluate_nothing() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 80
    found = {str(path.relative_to(ROOT)): faults(path.read_text("utf-8")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}
