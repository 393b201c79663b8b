"""One small federation on the tiny model, run once, and a way to call the command in-process."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from shared.base_model import BaseModel, load_base
from shared.config import RunConfig
from shared.corpus.load import load_corpus
from shared.corpus.split import Split, split_users
from shared.precision import computing_device
from shared.release import Release, pack_release, unpack_release
from shared.release_files import read_release_files
from shared.signature import sign_release

SETTINGS: dict[str, Any] = {
    "seed": 5,
    "threads": 1,
    "methods": ["population", "oppu", "meso-tuned"],
    "corpus": {
        "server_users": 10,
        "device_users": 3,
        "max_history": 6,
        "max_queries": 4,
        "groups": 2,
    },
    "base": {"name": "tiny", "format": "fp32", "top_layers": 2, "max_tokens": 64},
    "population": {"epochs": 1, "rank": 4},
    "experts": {"epochs": 1, "rank": 2, "count": 2},
    "bank": {"epochs": 1, "rank": 2, "anchors": 3, "min_history": 3},
    "private": {"epochs": 1, "rank": 2, "stack_rank": 1},
    "rounds": {"count": 2, "deadline_seconds": 300.0},
}
"""Everything is small, and there are two rounds, so that the loop closes once."""


@dataclass(frozen=True)
class Federation:
    """A federation that has run to its end; look at it, copy it, do not change it.

    Attributes
    ----------
    down, up : list of bytes
        Every message to a device and from one, metadata included, as it crossed the wire.
    """

    run_dir: Path
    config: RunConfig
    people: Split
    down: list[bytes]
    up: list[bytes]

    def release_files(self, version: int) -> dict[str, bytes]:
        return read_release_files(self.run_dir / "releases" / f"r{version}")

    def release(self, version: int, base: BaseModel) -> Release:
        return unpack_release(self.release_files(version), base)

    @property
    def server_key(self) -> str:
        """The public key of its server."""
        return (self.run_dir / "keys" / "release.pub").read_text(encoding="utf-8").strip()

    def signed(self, release: Release) -> dict[str, bytes]:
        """The files of another release, signed by its server."""
        return self.signed_files(pack_release(release))

    def signed_files(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """Whatever files these are, signed by its server."""
        from server.signing_keys import signer

        return sign_release(files, signer(self.run_dir / "keys"))

    def assignments(self) -> list[str]:
        """The same settings as arguments of the command."""
        arguments = []
        for key, value in SETTINGS.items():
            fields = value if isinstance(value, dict) else {"": value}
            for field, content in fields.items():
                name = f"{key}.{field}" if field else key
                arguments += ["--set", f"{name}={content!r}".replace("'", '"')]
        return arguments


def pytest_configure(config: pytest.Config) -> None:
    # Tests compare with sums of the processor; on a GPU only those run that are for it.
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif computing_device().type == "cpu":
        raise pytest.UsageError("Expected a GPU for the tests of one; torch finds none here.")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Sums in another order round differently, and the tiny model gains nothing from threads.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_config() -> RunConfig:
    return RunConfig.model_validate(SETTINGS)


@pytest.fixture(scope="session")
def base(small_config: RunConfig) -> BaseModel:
    return load_base(small_config.base, small_config.adapt)


@pytest.fixture(scope="session")
def federation(small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    from simulations.federated import simulate
    from simulations.local_grid import LocalGrid
    from simulations.prepare import prepare

    down: list[bytes] = []
    up: list[bytes] = []
    run_dir = tmp_path_factory.mktemp("federation") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalGrid, "_answer", recording(LocalGrid._answer, down, up))
        prepare(small_config, run_dir, ["pytest"])
        simulate(small_config, run_dir)
    people = split_users(
        load_corpus(small_config.corpus, small_config.seed), small_config.corpus, small_config.seed
    )
    return Federation(run_dir, small_config, people, down, up)


def recording(
    answer: Callable[..., Message], down: list[bytes], up: list[bytes]
) -> Callable[..., Message]:
    """Wrap the place where the local engine calls a device."""
    from flwr.common.serde import message_to_proto

    def recorded(grid: Any, request: Message, node: int) -> Message:
        down.append(message_to_proto(request).SerializeToString())
        reply = answer(grid, request, node)
        up.append(message_to_proto(reply).SerializeToString())
        return reply

    return recorded


@pytest.fixture(name="recording")
def _recording() -> Callable[..., Callable[..., Message]]:
    return recording


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that was said, with line breaks of the terminal taken out."""
        return " ".join((self.out + self.err).replace("\\\n", "").split())


@pytest.fixture
def mesofed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Call the command as the console script does, in this process."""
    from shared.cli import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mesofed", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def device_context() -> Callable[..., Context]:
    """Return the context of a Flower node."""
    from flwr.app import RecordDict

    def make(run_dir: Path, **node_config: Any) -> Context:
        return Context(
            run_id=1,
            node_id=1,
            node_config=node_config,
            state=RecordDict(),
            run_config={"run-dir": str(run_dir), "config": ""},
        )

    return make
