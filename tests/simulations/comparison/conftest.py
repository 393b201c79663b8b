"""A whole comparison on the tiny model, made once through the command."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.config import read_settings
from simulations.comparison.compare import conclude, prepare, run
from simulations.comparison.config import ComparisonConfig
from simulations.comparison.results import Results

SETTINGS = """
seeds = [5]
threads = 1
slices = ["all", "sparse-2"]
methods = ["base", "population", "user-majority", "rag-1", "oppu", "per-pcs", "mta-exact",
           "fedavg-lora", "meso-code", "meso"]
[corpus]
server_users = 6
device_users = 3
max_history = 4
max_queries = 3
groups = 2
[base]
name = "tiny"
format = "fp32"
top_layers = 2
max_tokens = 64
[population]
epochs = 1
rank = 4
[experts]
epochs = 1
rank = 2
count = 2
[bank]
epochs = 1
rank = 2
anchors = 3
min_history = 3
[private]
epochs = 1
rank = 2
stack_rank = 1
[averaging]
rounds = 1
"""


@dataclass(frozen=True)
class Comparison:
    """A comparison that has been made; look at it, copy it, do not change it."""

    folder: Path
    settings: Path
    config: ComparisonConfig
    results: Results


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    place = tmp_path_factory.mktemp("comparison")
    settings = place / "settings.toml"
    settings.write_text(SETTINGS, encoding="utf-8")
    config = read_settings(ComparisonConfig, settings)
    folder = place / "made"
    prepare(config, folder, ["pytest"])
    run(config, folder)
    return Comparison(folder, settings, config, conclude(config, folder))
