"""One small audit on the tiny model, made once."""

from pathlib import Path
from typing import Any

import pytest

from shared.config import RunConfig
from simulations.audit.federations import Ground, lay_ground

SETTINGS: dict[str, Any] = {
    "seed": 5,
    "threads": 1,
    "corpus": {"server_users": 10, "device_users": 6, "max_history": 10, "groups": 2},
    "base": {"name": "tiny", "format": "fp32", "top_layers": 2, "max_tokens": 64},
    "population": {"epochs": 1, "rank": 2},
    "experts": {"epochs": 1, "rank": 2, "count": 2},
    "bank": {"epochs": 2, "rank": 2, "anchors": 3, "min_history": 3},
    "private": {"epochs": 1, "rank": 2, "stack_rank": 1},
}


@pytest.fixture(scope="session")
def audit_config() -> RunConfig:
    return RunConfig.model_validate(SETTINGS)


@pytest.fixture(scope="session")
def ground(audit_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return lay_ground(audit_config, tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="session")
def people_run(ground: Ground) -> Path:
    from simulations.audit.federations import run_people

    return run_people(ground)
