"""Ctrl-C or SIGTERM: a command says that it stopped and ends with 130, whatever it is at."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
SIGNALS = signal.SIGINT, signal.SIGTERM


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """End the process on either signal, with one line and without an exception.

    Libraries that are being imported swallow an exception or make another one of it. All files
    are written whole, so there is nothing to put in order.
    """
    with _on_interrupt(_stop):
        yield


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Raise KeyboardInterrupt on either signal, for work that has something to end or to say."""
    with _on_interrupt(signal.default_int_handler):
        yield


@contextmanager
def _on_interrupt(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


def _stop(number: int, frame: FrameType | None) -> None:
    # A progress display hides the cursor.
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{cursor}\nStopped.\n".encode())
    os._exit(INTERRUPTED)
