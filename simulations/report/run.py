"""What the report knows about a run: frozen values, read from its directory by ``read.py``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.methods import METHODS
from shared.tasks import TASKS

Curve = tuple[tuple[int, float], ...]
"""Loss over steps: ``(step, loss)``, oldest first."""


@dataclass(frozen=True)
class RouterUse:
    """The router statistics that one device sent.

    Attributes
    ----------
    expert_weights, anchor_weights : tuple of float
        Non-negative, each sums to 1; empty when the release has no experts or no anchors.
    best_similarity : float
        Cosine similarity of the nearest anchor, in [-1, 1].
    entropy : float
        Entropy of the expert weights over ``log(experts)``, in [0, 1].
    """

    expert_weights: tuple[float, ...]
    anchor_weights: tuple[float, ...]
    best_similarity: float
    entropy: float


@dataclass(frozen=True)
class Answer:
    """What a method said to one query; ``nll`` is nats per gold token, None if not measured."""

    query_id: str
    task: str
    prediction: str
    gold: str
    nll: float | None


@dataclass(frozen=True)
class MethodResult:
    """One method on one device; ``seconds`` and ``tokens`` are those of its private training."""

    private_parameters: int
    private_bytes: int
    seconds: float
    tokens: int
    curve: Curve
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class DeviceResult:
    """One device user; ``history`` counts profile items, ``group`` is known for synthetic users."""

    user_id: str
    group: int | None
    history: int
    release: int
    router: RouterUse | None
    methods: Mapping[str, MethodResult]


@dataclass(frozen=True)
class RouterStep:
    """The experts' gates at one training step: mean per expert, and their normalised entropy."""

    step: int
    mean_gates: tuple[float, ...]
    gate_entropy: float


@dataclass(frozen=True)
class StageTraining:
    """One server stage of a release; ``router``, ``gates`` and ``groups`` are the experts' own."""

    stage: str
    release: int
    seconds: float
    tokens: int
    curves: Mapping[str, Curve]
    router: tuple[RouterStep, ...]
    gates: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, int]


@dataclass(frozen=True)
class Traffic:
    """Bytes to and from one device in one round."""

    node: str
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class RoundStatistics:
    """One round: who was asked, who answered, what it weighed, and what was sent, by node.

    ``joined`` counts the devices that joined the secure sum, in it at the end or not; None without
    a sum. ``mean_experts`` holds the mean expert weights, all that is known where devices were
    summed; empty if the round has none. ``cost`` has the record's ``privacy`` and ``sum``, where
    there are such.
    """

    release: int
    asked: int
    joined: int | None
    answered: int
    refused: tuple[tuple[str, str], ...]
    traffic: tuple[Traffic, ...]
    router: Mapping[str, RouterUse]
    mean_experts: tuple[float, ...]
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class Skip:
    """Something in the corpus that was left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class CorpusRecord:
    """Who took part: the corpus's origin, its people, both sides' users and what was skipped."""

    origin: str
    users: int
    server_users: tuple[str, ...]
    device_users: tuple[str, ...]
    skipped: tuple[Skip, ...]


@dataclass(frozen=True)
class Run:
    """Everything the report knows about a run."""

    folder: Path
    record: Mapping[str, Any]
    config_text: str
    corpus: CorpusRecord
    training: tuple[StageTraining, ...]
    rounds: tuple[RoundStatistics, ...]
    devices: tuple[DeviceResult, ...]

    @property
    def deployed(self) -> bool:
        """Whether Flower ran it on devices that nobody else may look into."""
        return self.record.get("kind") == "deployment"

    @property
    def answered(self) -> int:
        """How many devices answered in the last round."""
        return self.rounds[-1].answered if self.rounds else 0

    @property
    def finished(self) -> bool:
        """Whether all rounds are done and, in a simulation, all that answered are scored."""
        scored = self.deployed or len(self.devices) >= self.answered
        return len(self.rounds) >= self.record.get("rounds", 1) and scored

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods with results, in the order of ``shared.methods.METHODS``."""
        ran = dict.fromkeys(name for device in self.devices for name in device.methods)
        declared = [name for name in METHODS if name in ran]
        return tuple(dict.fromkeys([*declared, *ran]))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that were asked, in the order of ``shared.tasks.TASKS``."""
        asked = {a.task for d in self.devices for m in d.methods.values() for a in m.answers}
        return tuple(name for name in TASKS if name in asked) + tuple(sorted(asked - set(TASKS)))
