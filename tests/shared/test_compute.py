"""Work of many threads is done on one, and comes back to the thread that asked."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.compute import compute


def test_all_work_is_done_on_one_thread_and_answers_go_to_their_askers() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda n: compute(lambda: (n * n, threading.current_thread().name)), range(40))
        )
    assert [square for square, _ in found] == [n * n for n in range(40)]
    assert {name for _, name in found} == {"compute"}


def test_work_may_ask_for_more_work() -> None:
    assert compute(lambda: compute(lambda: 7) + 1) == 8


def test_errors_are_raised_where_the_work_was_asked_for() -> None:
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        compute(fail)
    assert compute(lambda: 1) == 1


def test_a_forked_process_computes_too() -> None:
    compute(lambda: None)
    child = os.fork()
    if child == 0:
        os._exit(compute(lambda: 5))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
