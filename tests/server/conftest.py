"""Flower's log as a ServerApp finds it, whatever a command has silenced in this process before."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _flower_speaks() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = True
    yield
    logger.setLevel(level)
    logger.propagate = propagates
