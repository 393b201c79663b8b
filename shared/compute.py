"""The one thread on which a process computes.

Every thread that computes gets a team of helper threads and a heap of its own from the runtime
libraries. As soon as there are two such threads, all of them are half again as slow, and each
costs some 300 MB. So server and devices hand their work to one thread and wait. Work that can be
done in small steps, in any order, goes to its background.

oneDNN makes a kernel for each shape of a matrix product and keeps 1,024 of them, torch as many
again: up to a MiB each, so that memory grows as texts of ever more lengths come by. The few that
are kept here serve the steps of several batches; one that went is made again in milliseconds.
Both libraries read their limits when they first compute, so import this module before.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

KERNELS_KEPT = "128"
for _limit in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_limit, KERNELS_KEPT)

_waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
_background: list[Callable[[], bool]] = []
_starting = threading.Lock()
_thread: threading.Thread | None = None


def compute(work: Callable[[], Result]) -> Result:
    """Run ``work`` on the computing thread and return its result, or raise what it raises.

    Do not call it with ``BaseModel.lock`` held: the work may need the lock.
    """
    if _here():
        return work()
    return _hand_over(work).result()


def compute_in_background(step: Callable[[], bool]) -> None:
    """Call ``step`` on the computing thread when nothing else waits, until it returns False.

    A step that is already being called goes on being called. It must not raise.
    """

    def begin() -> None:
        if step not in _background:
            _background.append(step)

    _hand_over(begin)


def wait_for(future: Future[Result]) -> Result:
    """Return what background work brings; the computing thread does not wait, it works."""
    while _here() and not future.done():
        _take_a_step()
    return future.result()


def use_threads(count: int) -> None:
    """Let computations use so many threads; 0 keeps one per core."""
    import torch

    if count:
        compute(lambda: torch.set_num_threads(count))


def _here() -> bool:
    return threading.current_thread() is _thread


def _hand_over(work: Callable[[], Result]) -> Future[Result]:
    global _thread
    with _starting:
        # A forked process has the module but not the thread.
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_serve, name="compute", daemon=True)
            _thread.start()
    future: Future[Result] = Future()
    if _here():
        future.set_result(work())
    else:
        _waiting.put((future, work))
    return future


def _serve() -> None:
    while True:
        try:
            future, work = _waiting.get(block=not _background)
        except Empty:
            _take_a_step()
            continue
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


def _take_a_step() -> None:
    """Call the background work that was called longest ago."""
    if not _background:
        raise RuntimeError("the computing thread waits for work that nobody does")
    step = _background.pop(0)
    if step():
        _background.append(step)
