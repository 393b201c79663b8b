"""Requests that meet train in one batch, and each gets what it would have got alone."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from shared import dynamic_batching
from shared.base_model import BaseModel
from shared.cohort import Cohort, Member, train_cohort
from shared.compute import compute, wait_for
from shared.config import PrivateConfig
from shared.dynamic_batching import TrainingRequest, train
from shared.lora.slab import Slab
from shared.samples import encode
from shared.training import Trainee

CONFIG = PrivateConfig(rank=2, epochs=2, batch_size=2)


def request(base: BaseModel, user: int, rank: int = 2) -> TrainingRequest:
    samples = tuple(encode(base, f"text {user} of {i}", f"{user}{i}") for i in range(4))
    return TrainingRequest(base, Trainee(f"u{user}", samples, user), rank, 100 + user, CONFIG)


def alone(base: BaseModel, user: int, rank: int = 2) -> torch.Tensor:
    asked = request(base, user, rank)
    initial = Slab.initial(base.maps, rank, [asked.start_seed])
    with base.lock:
        return train_cohort(base, [asked.trainee], initial, CONFIG).slab.rows[0]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many users took each step together; filled as training goes on."""
    taken: list[int] = []
    step = Cohort._train

    def watched(self: Cohort, group: Sequence[Member]) -> None:
        taken.append(len(group))
        step(self, group)

    monkeypatch.setattr(Cohort, "_train", watched)
    return taken


@pytest.mark.parametrize("rank", [1, 2])  # of rank 1, matrices are vectors, with other kernels
def test_requests_that_wait_train_in_one_batch(
    base: BaseModel, sizes: list[int], rank: int
) -> None:
    # While the computing thread is held up, everybody has time to come.
    held = threading.Event()
    threading.Thread(target=lambda: compute(held.wait), daemon=True).start()
    futures = [train(request(base, user, rank)) for user in range(5)]
    assert not any(future.done() for future in futures)
    held.set()
    rows = [wait_for(future).row for future in futures]
    # Four steps each; before the first, one user is measured alone.
    assert sum(sizes) == 5 * 4
    assert max(sizes) >= 4
    for user, row in enumerate(rows):
        assert torch.equal(row, alone(base, user, rank))


def test_devices_may_call_from_many_threads_and_from_the_computing_one(base: BaseModel) -> None:
    came: dict[int, torch.Tensor] = {}

    def device(user: int) -> None:
        came[user] = wait_for(train(request(base, user))).row

    threads = [threading.Thread(target=device, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    came[4] = compute(lambda: wait_for(train(request(base, 4))).row)
    for thread in threads:
        thread.join()
    for user in range(5):
        assert torch.equal(came[user], alone(base, user))


def test_other_work_does_not_wait_for_the_end_of_training(base: BaseModel) -> None:
    future = train(request(base, 1))
    assert compute(lambda: future.done()) is False
    assert wait_for(future).done


def test_different_ranks_train_apart_and_alike(base: BaseModel, sizes: list[int]) -> None:
    futures = {rank: train(request(base, 1, rank)) for rank in (1, 2)}
    for rank, future in futures.items():
        assert torch.equal(wait_for(future).row, alone(base, 1, rank))
    assert set(sizes) == {1}


def test_little_memory_lets_users_in_one_after_another(base: BaseModel, sizes: list[int]) -> None:
    small = replace(base, memory=1)
    futures = [train(request(small, user)) for user in range(3)]
    for user, future in enumerate(futures):
        assert torch.equal(wait_for(future).row, alone(base, user))
    assert set(sizes) == {1}


def nothing_left() -> bool:
    state = (dynamic_batching._cohorts, dynamic_batching._training, dynamic_batching._waiting)
    return compute(lambda: not any(state))


def test_who_fails_is_told_and_nobody_else_is_touched(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Cohort._train

    def fails_for_two(self: Cohort, group: Sequence[Member]) -> None:
        if any(member.trainee.name == "u2" for member in group):
            raise ArithmeticError("no gradient")
        step(self, group)

    monkeypatch.setattr(Cohort, "_train", fails_for_two)
    others, failing = train(request(base, 1)), train(request(base, 2))
    with pytest.raises(ArithmeticError, match="no gradient"):
        wait_for(failing)
    assert torch.equal(wait_for(others).row, alone(base, 1))
    assert nothing_left()


def test_who_cannot_join_is_told_and_nobody_else_is_touched(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = Cohort.join

    def full(self: Cohort, trainee: Trainee, *args: object) -> Member:
        if trainee.name == "u2":
            raise torch.OutOfMemoryError("full")
        return join(self, trainee, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Cohort, "join", full)
    futures = [train(request(base, user)) for user in (1, 2, 3)]
    with pytest.raises(torch.OutOfMemoryError):
        wait_for(futures[1])
    for user, future in ((1, futures[0]), (3, futures[2])):
        assert torch.equal(wait_for(future).row, alone(base, user))
    assert nothing_left()


def test_a_defect_reaches_everyone_who_waits_and_later_training_works(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(dynamic_batching, "under_way", lambda _: 1 / 0)
        futures = [train(request(base, user)) for user in (1, 2)]
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                wait_for(future)
    assert nothing_left()
    assert torch.equal(wait_for(train(request(base, 1))).row, alone(base, 1))


def test_nobody_trains_on_nothing(base: BaseModel) -> None:
    asked = request(base, 1)
    with pytest.raises(ValueError, match="u1"):
        train(replace(asked, trainee=replace(asked.trainee, samples=())))
