"""Every setting of a comparison: methods x settings x slices x seeds over one corpus."""

import re
from typing import Literal

from pydantic import Field, field_validator

from shared.config import (
    ExamplesConfig,
    ExperimentConfig,
    RetrievalConfig,
    RunConfig,
    TrainingConfig,
)
from shared.errors import MesofedError
from shared.retrieval import Examples
from shared.suggestion import check_choices

Setting = Literal["centralized", "federated"]

SLICE = re.compile(r"all|shifted|sparse-([1-9]\d*)")


class ProperConfig(TrainingConfig):
    """PROPER as published; ranks and epochs are the released ones."""

    rank: int = Field(4, ge=1, description="of each expert and each user LoRA")
    count: int = Field(5, ge=2, description="experts")
    epochs: int = Field(2, ge=1, description="of stage 2")
    learning_rate: float = Field(4e-3, gt=0, description="of stage 2")
    router_learning_rate: float = Field(1e-2, gt=0, description="of routers and embeddings")
    constraint: float = Field(1.0, ge=0, description="weight of the constraint loss in stage 2")
    user_epochs: int = Field(3, ge=1, description="of stage 3.1")
    user_learning_rate: float = Field(2e-3, gt=0, description="of stage 3.1")
    lora_router_epochs: int = Field(1, ge=1, description="of stage 3.2")


class PiecesConfig(TrainingConfig):
    """Per-Pcs: the gates of the sharers' pieces, and their assembly."""

    learning_rate: float = Field(1e-2, gt=0, description="of the gates")
    epochs: int = Field(1, ge=1)
    top_k: int = Field(3, ge=1, description="pieces kept a module")
    temperature: float = Field(1.0, gt=0)


class AveragingConfig(TrainingConfig):
    """Federated training in which updates leave the devices."""

    rounds: int = Field(3, ge=1)
    epochs: int = Field(1, ge=1, description="local epochs a round")
    learning_rate: float = Field(3e-3, gt=0)


class ComparisonConfig(ExperimentConfig):
    """One comparison: everything that decides its result."""

    methods: tuple[str, ...] = (
        "base",
        "population",
        "population-prior",
        "user-majority",
        "user-mean",
        "user-median",
        "rag-1",
        "rag-4",
        "rag-1-tuned",
        "rag-4-tuned",
        "oppu",
        "oppu-qv",
        "oppu-rag-1",
        "proper",
        "proper-ids",
        "proper-folded",
        "per-pcs",
        "mta",
        "mta-exact",
        "fedavg-lora",
        "flora",
        "fedavg-local",
        "meso-code",
        "meso-no-prior",
        "meso-gated",
        "meso-no-release",
        "meso-r1",
        "meso",
        "meso-rag-1",
        "meso-r4",
    )
    settings: tuple[Setting, ...] = ("federated", "centralized")
    slices: tuple[str, ...] = Field(
        ("all",), description="all, shifted, sparse-N: N history items a device user"
    )
    seeds: tuple[int, ...] = (7, 8, 9)
    people: Literal["device", "validation"] = Field(
        "device",
        description="who is asked; validation: server users alone, some of whom stand for "
        "devices, to choose settings by",
    )
    proper: ProperConfig = ProperConfig()
    pieces: PiecesConfig = PiecesConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    averaging: AveragingConfig = AveragingConfig()

    @field_validator("methods")
    @classmethod
    def _methods_are_declared(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from simulations.comparison.catalogue import CONTENDERS

        check_choices(names, CONTENDERS)
        return tuple(dict.fromkeys(names))

    @field_validator("slices")
    @classmethod
    def _slices_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if not SLICE.fullmatch(name)]
        if unknown or not names:
            raise ValueError(f"expected all, shifted or sparse-N; got {unknown or 'none'}")
        return tuple(dict.fromkeys(names))

    @field_validator("settings", "seeds")
    @classmethod
    def _some_and_each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if not values:
            raise ValueError("expected at least one; got none")
        return tuple(dict.fromkeys(values))

    def run_config(self, seed: int, examples: Examples) -> RunConfig:
        """Return the configuration by which a release of this comparison is trained.

        Raises
        ------
        MesofedError
            If its bank is to be private and its samples hold own items of others.
        """
        if self.bank.dp_epsilon and examples.count:
            raise MesofedError(
                "Expected methods without own items in the training of a private bank; with them "
                "an item stands in several samples. Set bank.dp_epsilon=0, or leave out "
                "rag-k-tuned, oppu-rag-1 and meso-rag-1."
            )
        shared = {name: getattr(self, name) for name in ExperimentConfig.model_fields}
        retrieval = ExamplesConfig(
            items=examples.count, item_tokens=examples.tokens, tasks=examples.tasks
        )
        return RunConfig(seed=seed, retrieval=retrieval, **shared)


def history_items(slice_name: str) -> int | None:
    """Return how many history items a slice leaves to a device user; None for all."""
    found = SLICE.fullmatch(slice_name)
    return int(found[1]) if found and found[1] else None
