"""One small audit on the tiny model, made once."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from shared.config import RunConfig
from simulations.audit.federations import Ground, PeopleRun, lay_ground, run_people

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
def grounds(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ground]:
    """The same ground in any privacy mode: releases know nothing of it. Each mode has a folder."""

    @cache
    def in_mode(mode: str) -> Ground:
        folder = tmp_path_factory.mktemp(mode)
        shutil.copytree(ground.server_run, folder / "server")
        privacy = ground.config.privacy.model_copy(update={"mode": mode})
        config = ground.config.model_copy(update={"privacy": privacy})
        return replace(ground, config=config, folder=folder)

    return in_mode


@pytest.fixture(scope="session")
def people_runs(grounds: Callable[[str], Ground]) -> Callable[[str], PeopleRun]:
    """The run of all people in any privacy mode."""
    return cache(lambda mode: run_people(grounds(mode)))


@pytest.fixture
def own_ground(grounds: Callable[[str], Ground], tmp_path: Path) -> Callable[[str], Ground]:
    """A ground whose federations lie in another folder than other tests'."""

    def make(mode: str) -> Ground:
        ground = grounds(mode)
        (tmp_path / "server").symlink_to(ground.server_run)
        return replace(ground, folder=tmp_path)

    return make
