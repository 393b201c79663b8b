"""Live progress of long work: stage, share done, tokens per second, time left.

Stages report here; where it is shown is decided once, by the command that runs.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Tokens per second, once there are any."""

    def render(self, task: Task) -> Text:
        tokens, elapsed = task.fields.get("tokens", 0), task.finished_time or task.elapsed
        return Text(f"{tokens / elapsed:6,.0f} tok/s" if tokens and elapsed else "", style="dim")


class _Done(ProgressColumn):
    """Done of total, in the stage's unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        return Text(f"{int(task.completed):,}/{int(task.total or 0):,} {unit}", justify="right")


SIGN_OF_LIFE = 60.0
"""Seconds after which a stage that is not shown live says how far it is."""


class Display:
    """Shows stages on a terminal; on anything else prints a line as each ends.

    Of a stage that moves on, it prints one meanwhile too, at most each minute.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._began: dict[TaskID, float] = {}
        self._said: dict[TaskID, float] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=20),
            _Done(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int, unit: str) -> TaskID:
        """Show a new stage and return its number."""
        task = self._progress.add_task(name, total=max(1, total), unit=unit, tokens=0)
        self._began[task] = self._said[task] = time.monotonic()
        return task

    def update(self, task: TaskID, completed: float, tokens: int) -> None:
        """Show how far a stage is."""
        self._progress.update(task, completed=completed, tokens=tokens)
        now = time.monotonic()
        if self.console.is_terminal or now - self._said[task] < SIGN_OF_LIFE:
            return
        self._said[task] = now
        known = self._progress.tasks[task]
        share = completed / (known.total or 1)
        self.console.print(
            f"  {known.description:<24} {now - self._began[task]:7.1f} s, {share:.0%} done",
            highlight=False,
            markup=False,
        )

    def end(self, task: TaskID, name: str) -> None:
        """Mark a stage as done."""
        total, seconds = self._progress.tasks[task].total, time.monotonic() - self._began[task]
        self._progress.update(task, completed=total)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if not self.console.is_terminal:
            line = f"✓ {name:<24} {seconds:7.1f} s"
            self.console.print(line, highlight=False, markup=False)


@dataclass
class Stage:
    """One stage under way."""

    name: str
    unit: str
    display: Display | None
    task: TaskID = field(default_factory=lambda: TaskID(0))
    done: float = 0.0
    under_way: float = 0.0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self, amount: float = 0.0, tokens: int = 0, under_way: float = 0.0) -> None:
        """Move on by an amount of the stage's unit, having processed so many tokens.

        Where many are at work at once, none may be done for long: ``under_way`` is the part of
        their work that has been done. The display shows the larger of the two.
        """
        with self._lock:
            self.done += amount
            self.under_way += under_way
            self.tokens += tokens
            if self.display is not None:
                self.display.update(self.task, max(self.done, self.under_way), self.tokens)


_shown: list[Display] = []
_running: list[Stage] = []


@contextmanager
def shown(console: Console | None = None) -> Iterator[Display]:
    """Show the stages of a block on a console (default: standard error)."""
    with Display(console or Console(stderr=True)) as display:
        _shown.append(display)
        try:
            yield display
        finally:
            _shown.pop()


def is_shown() -> bool:
    """Whether a command shows the stages."""
    return bool(_shown)


@contextmanager
def stage(name: str, total: int, unit: str) -> Iterator[Stage]:
    """Report a stage of work; silent unless a display is shown."""
    current = Stage(name, unit, _shown[-1] if _shown else None)
    if current.display is not None:
        current.task = current.display.begin(name, total, unit)
    _running.append(current)
    try:
        yield current
    finally:
        _running.remove(current)
    if current.display is not None:
        current.display.end(current.task, name)


def tokens_done(tokens: int) -> None:
    """Tell the running stage, if there is one, how many tokens have been processed."""
    for current in _running[-1:]:  # the last may end meanwhile, on another thread
        current.advance(tokens if current.unit == "tokens" else 0, tokens)


def under_way(amount: float) -> None:
    """Tell the running stage, if there is one, that so much of its unit's work has been done."""
    for current in _running[-1:]:
        current.advance(under_way=amount)
