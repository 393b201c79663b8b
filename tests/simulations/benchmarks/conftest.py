"""Settings of a benchmark that takes no time."""

import pytest

from simulations.benchmarks.measurement import Settings


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(model="tiny", rounds=1, threads=1)
