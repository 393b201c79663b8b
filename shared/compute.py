"""The one thread on which a process computes.

Every thread that computes gets a team of helper threads and a heap of its own from the runtime
libraries. As soon as there are two such threads, all of them are half again as slow, and each
costs some 300 MB. So server and devices hand their work to one thread and wait.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

_waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
_starting = threading.Lock()
_thread: threading.Thread | None = None


def compute(work: Callable[[], Result]) -> Result:
    """Run ``work`` on the computing thread and return its result, or raise what it raises.

    Do not call it with ``BaseModel.lock`` held: the work may need the lock.
    """
    global _thread
    with _starting:
        # A forked process has the module but not the thread.
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_serve, name="compute", daemon=True)
            _thread.start()
    if threading.current_thread() is _thread:
        return work()
    future: Future[Result] = Future()
    _waiting.put((future, work))
    return future.result()


def use_threads(count: int) -> None:
    """Let computations use so many threads; 0 keeps one per core."""
    import torch

    if count:
        compute(lambda: torch.set_num_threads(count))


def _serve() -> None:
    while True:
        future, work = _waiting.get()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
