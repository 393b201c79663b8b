"""Work of many threads is done on one, and comes back to the thread that asked."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.compute import KERNELS_KEPT, compute


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


# A kernel of oneDNN's takes up to a MiB, where the processor has instructions for bf16.
SHAPES = f"""
import ctypes, gc, pathlib, re
from shared.compute import compute
import torch

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\\s+(\\d+)", status)[1]) / 1024

def multiply(rows):
    for n in rows:
        texts[:n] @ weight

texts, weight = (torch.ones(s, dtype=torch.bfloat16) for s in ((700, 256), (256, 512)))
compute(lambda: multiply(range(50, 51 + {KERNELS_KEPT})))
before = resident()
compute(lambda: multiply(range(51 + {KERNELS_KEPT}, 651)))
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_kernels_of_many_shapes_do_not_pile_up() -> None:
    environment = {k: v for k, v in os.environ.items() if "_CACHE_CAPACITY" not in k}
    done = subprocess.run(
        [sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) < 60
