"""The one thread on which a process's devices compute.

Every thread that computes for the first time gets a team of helper threads and a heap of its own
from the runtime libraries; with a thread for each device of a simulation, training is half again
as slow and memory grows by some 300 MB a device. So devices hand their work to one thread and
wait.
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


def _serve() -> None:
    while True:
        future, work = _waiting.get()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
