"""The gate: which of a few stacks fits a person's own history best, before anything is trained.

The history is read a few samples a step in the background, as it is in training, so that a device
answers as soon as ever whoever asks it meanwhile (``client.agent``).
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from client.answers import gold_losses
from shared.base_model import BaseModel
from shared.compute import compute_in_background
from shared.lora.layer import Parts
from shared.samples import Sample


@dataclass(frozen=True)
class Choice:
    """Which stack it is, and what it took to find out.

    Attributes
    ----------
    index : int
        Of the stack; of several that fit as well, the first.
    tokens : int
        Tokens read.
    seconds : float
        Time spent on reading them.
    """

    index: int
    tokens: int
    seconds: float


def best_fitting(
    base: BaseModel, stacks: Sequence[Callable[[], Parts]], samples: Sequence[Sample], rows: int
) -> Future[Choice]:
    """Find the stack with the lowest mean loss an answer token, taken sample by sample.

    The person is read alone: who else is at work here decides nothing.

    Parameters
    ----------
    stacks : sequence of callable
        Each makes the parts of one stack when its turn comes.
    rows : int
        Samples a step.
    """
    found: Future[Choice] = Future()
    reading = _reading(base, stacks, samples, rows)

    def step() -> bool:
        try:
            next(reading)
        except StopIteration as end:
            found.set_result(end.value)
        except Exception as error:  # it must reach whoever waits
            found.set_exception(error)
        return not found.done()

    compute_in_background(step)
    return found


def _reading(
    base: BaseModel, stacks: Sequence[Callable[[], Parts]], samples: Sequence[Sample], rows: int
) -> Generator[None, None, Choice]:
    """Read a few samples at each call; return the choice in the end."""
    losses, seconds = [], 0.0
    for make in stacks:
        parts, total = make(), 0.0
        for start in range(0, len(samples), rows):
            with base.lock:
                began = time.monotonic()
                total += sum(gold_losses(base, parts, [samples[start : start + rows]])[0])
                seconds += time.monotonic() - began
            yield
        losses.append(total)
    tokens = len(stacks) * sum(len(sample) for sample in samples)
    return Choice(losses.index(min(losses)), tokens, seconds)
