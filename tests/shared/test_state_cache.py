"""Remembered states: in memory, in the file, or gone; never other than they were."""

import gc
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.state_cache import FILE_SHARE, StateCache

WIDTH = 1024


def states_of(number: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return states of a text of five tokens, with values that no rounding would leave alone."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(5, WIDTH, generator=generator).to(dtype)


def filled(texts: int, room: int, dtype: torch.dtype = torch.float32) -> StateCache:
    """Return a cache with memory for ``room`` texts that was given so many."""
    cache = StateCache(room * states_of(0, dtype).nbytes)
    for number in range(texts):
        cache.put((number,), states_of(number, dtype))
        cache.trim()
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_back_from_the_file_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    cache = filled(9, 2, dtype)
    assert len(cache._memory) == 2
    assert len(cache._places) == 7
    for number in (0, 3, 8, 6, 0):
        came = cache.get((number,))
        assert came.dtype == dtype
        assert torch.equal(came, states_of(number, dtype))


def test_the_memory_keeps_to_its_limit_and_the_longest_unused_leave_it() -> None:
    cache = filled(2, 2)
    cache.get((0,))
    cache.put((2,), states_of(2))
    cache.trim()
    assert list(cache._memory) == [(0,), (2,)]
    assert list(cache._places) == [(1,)]
    assert cache._bytes == sum(states.nbytes for states in cache._memory.values())


def test_when_the_file_is_full_states_are_forgotten() -> None:
    cache = filled(2 + 2 * FILE_SHARE + 3, 2)
    assert len(cache._places) == 2 * FILE_SHARE
    gone = 2 * FILE_SHARE
    assert (gone,) not in cache
    with pytest.raises(KeyError):
        cache.get((gone,))
    cache.put((gone,), states_of(gone))
    assert torch.equal(cache.get((gone,)), states_of(gone))


def test_without_room_on_the_disk_states_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    cache = filled(5, 2)
    assert [(number,) in cache for number in range(5)] == [False, False, False, True, True]
    assert torch.equal(cache.get((4,)), states_of(4))


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = filled(9, 2)
    assert cache._file is not None
    assert list(tmp_path.iterdir()) == []
    kept = cache.get((0,))
    del cache
    gc.collect()
    assert torch.equal(kept, states_of(0))  # a mapping outlives the cache


def test_changing_what_came_from_the_file_does_not_change_the_file() -> None:
    cache = filled(5, 2)
    cache.get((0,)).zero_()
    assert torch.equal(cache.get((0,)), states_of(0))
