"""One small scene in each setting, whose release is trained once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.base_model import BaseModel
from simulations.comparison.config import ComparisonConfig
from simulations.comparison.scene import Scene, open_scene


@pytest.fixture(scope="session")
def small_comparison(small_config: Any) -> ComparisonConfig:
    shared = ("threads", "base", "population", "experts", "bank", "private")
    return ComparisonConfig.model_validate(
        {
            **{name: getattr(small_config, name).model_dump() for name in shared[1:]},
            "threads": 1,
            "corpus": {
                "server_users": 6,
                "device_users": 3,
                "max_history": 4,
                "max_queries": 3,
                "groups": 2,
            },
            "seeds": [5],
            "proper": {"rank": 2, "count": 3, "epochs": 1, "user_epochs": 1},
        }
    )


@pytest.fixture(scope="session")
def scene_of(
    small_comparison: ComparisonConfig, base: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Scene]:
    folder: Path = tmp_path_factory.mktemp("comparison")
    kept: dict[str, Scene] = {}

    def scene(setting: str) -> Scene:
        if setting not in kept:
            kept[setting] = open_scene(small_comparison, folder, base, "all", setting, 5)  # type: ignore[arg-type]
        return kept[setting]

    return scene


@pytest.fixture(scope="session")
def scene(scene_of: Callable[[str], Scene]) -> Scene:
    return scene_of("federated")
