"""Time several sides in turn, A B C A B C, so that a busy machine disturbs all of them alike.

With one thread on a processor, time is the processor time of this process: it is the time on the
wall of an idle machine, and others who want the processor too do not add to it. With several
threads, or a GPU, it is the time on the wall.
"""

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

Side = Callable[[], object]
Within = Mapping[str, Callable[[], AbstractContextManager[object]]]


def interleave(
    sides: Mapping[str, Side],
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
    *,
    repeat: int = 1,
    warm: int = 1,
    within: Within | None = None,
) -> dict[str, tuple[float, ...]]:
    """Time every side once a round, in turn.

    Parameters
    ----------
    sides : mapping of str to callable
        What is timed, in the order of a round.
    rounds : int
        How many times each is timed.
    on_round : callable, optional
        Called after each round.
    repeat : int
        Calls in one timing, for sides of a millisecond.
    warm : int
        Calls of each side before the first round, not timed.
    within : mapping of str to callable, optional
        Contexts in which sides run; entering and leaving them is not timed.

    Returns
    -------
    dict of str to tuple of float
        Seconds of one call, by side, one a round.
    """
    around = dict.fromkeys(sides, nullcontext) | dict(within or {})
    for name, side in sides.items():
        with around[name]():
            for _ in range(warm):
                side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.freeze()  # what is here stays: looking at it again before each timing takes long
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                gc.collect()
                with around[name]():
                    seconds[name].append(clock(side, repeat))
            on_round()
    finally:
        gc.unfreeze()
    return {name: tuple(values) for name, values in seconds.items()}


def clock(side: Side, repeat: int = 1) -> float:
    """Return the seconds of one call, garbage collection kept out, a GPU waited for."""
    now = time.process_time if counts_processor_time() else time.perf_counter
    gc.disable()
    try:
        _wait()
        started = now()
        for _ in range(repeat):
            side()
        _wait()
        return (now() - started) / repeat
    finally:
        gc.enable()


def counts_processor_time() -> bool:
    """Whether time is processor time; ask on the thread that computes."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
