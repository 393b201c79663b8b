"""Dynamic batching: training requests of many devices meet here and run as cohorts.

    device 1 --request-->  |
    device 2 --request-->  |  cohort (same shared parts, rank, rates)  -- a step whenever the
    device 3 --request-->  |                                              computing thread is free

Devices may come at any time: they join the cohort that is under way. On a real device it has one
member. Who trains with whom changes the time it takes, and no result (``shared.cohort``).
"""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from torch import Tensor

from shared.base_model import BaseModel
from shared.cohort import Cohort, Member
from shared.compute import compute_in_background
from shared.config import PrivateConfig
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.progress import under_way
from shared.training import Trainee


@dataclass(frozen=True, eq=False)
class TrainingRequest:
    """What one user wants trained.

    Attributes
    ----------
    base : BaseModel
        The resident base model.
    trainee : Trainee
        The user.
    rank : int
        Of the user's LoRA; 0 for none.
    start_seed : int
        Draws the LoRA from which training starts.
    config : PrivateConfig
        Epochs, batch size, rates.
    shared : tuple of Lora
        Frozen parts under the user's LoRA. Users with the very same ones train together.
    weights : Tensor (parts,) or None
        Their fusion weights.
    tuned : Tensor (parts,) of bool or None
        Which of the weights the user learns.
    share : float
        How much of its device's work this is, for the progress display.
    """

    base: BaseModel
    trainee: Trainee
    rank: int
    start_seed: int
    config: PrivateConfig
    shared: tuple[Lora, ...] = ()
    weights: Tensor | None = None
    tuned: Tensor | None = None
    share: float = 0.0
    trained: Future[Member] = field(default_factory=Future)

    @property
    def company(self) -> tuple[object, ...]:
        """What users must have in common to train in one cohort."""
        parts = tuple(map(id, self.shared))
        return id(self.base.model), self.base.maps, self.rank, self.config, parts


def train(request: TrainingRequest) -> Future[Member]:
    """Train a user, with whoever else is waiting; return at once.

    :func:`shared.compute.wait_for` waits for the result, and raises what went wrong.

    Raises
    ------
    ValueError
        If the user has no samples.
    """
    if not request.trainee.samples:
        raise ValueError(f"expected samples to train {request.trainee.name} on; got none")
    _arrived.put(request)
    compute_in_background(_step)
    return request.trained


# Requests on their way; the rest is touched by the computing thread alone.
_arrived: SimpleQueue[TrainingRequest] = SimpleQueue()
_waiting: deque[TrainingRequest] = deque()
_cohorts: dict[tuple[object, ...], Cohort] = {}
_training: dict[int, tuple[Member, TrainingRequest]] = {}


def _step() -> bool:
    """Let in whom the memory allows and train the largest cohort by one step, if there is any."""
    try:
        _admit()
        if _cohorts:
            _train_largest()
    except Exception as error:  # a defect: it must reach everyone who waits
        _fail_all(error)
    return bool(_cohorts or _waiting)


def _admit() -> None:
    while not _arrived.empty():
        _waiting.append(_arrived.get())
    while _waiting and _fits(_waiting[0]):
        request = _waiting.popleft()
        try:
            _join(request)
        except Exception as error:
            request.trained.set_exception(error)


def _fits(request: TrainingRequest) -> bool:
    """Return whether the states of all in training fit the memory; one always does."""
    state = sum(4 * member.row.nbytes for member, _ in _training.values())
    own = 4 * 4 * Slab.parameters(request.base.maps, request.rank)  # LoRA, gradient, two moments
    return not _training or state + own <= request.base.memory


def _join(request: TrainingRequest) -> None:
    base = request.base
    if request.company not in _cohorts:
        config = request.config
        _cohorts[request.company] = Cohort(
            base,
            request.rank,
            config,
            request.shared,
            config.weights_learning_rate,
            config.dropout,
        )
    cohort = _cohorts[request.company]
    try:
        start = Slab.initial(base.maps, request.rank, [request.start_seed])
        member = cohort.join(request.trainee, start.rows[0], request.weights, request.tuned)
        _training[id(member)] = member, request
    finally:
        if not cohort.members:
            del _cohorts[request.company]


def _train_largest() -> None:
    company = max(_cohorts, key=lambda company: len(_cohorts[company].members))
    cohort = _cohorts[company]
    before = {id(member): len(member.curve) for member in cohort.members}
    with cohort.base.lock:
        left = cohort.step()
    done = 0.0
    for key, steps in before.items():
        member, request = _training[key]
        done += request.share * (len(member.curve) - steps) / len(member.plan)
    under_way(done)
    if not cohort.members:
        del _cohorts[company]
    for member in left:
        _, request = _training.pop(id(member))
        if member.error is None:
            request.trained.set_result(member)
        else:
            request.trained.set_exception(member.error)


def _fail_all(error: Exception) -> None:
    failed = [request for _, request in _training.values()] + list(_waiting)
    for state in (_training, _waiting, _cohorts):
        state.clear()
    for request in failed:
        if not request.trained.done():
            request.trained.set_exception(error)
