"""What a benchmark finds: ratios with their spread, bars they have to reach, checked equalities."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shared.errors import MesofedError

# "x": a ratio of times or sizes. "difference": a relative difference, of which 0 is bit-equal.
# "nats": a difference of losses.
Unit = Literal["x", "difference", "nats"]

# Ratios of other models say as much, but no bar is set for them.
MODEL_OF_BARS = "smollm2"


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes
    ----------
    model : str
        Name of the base model: ``smollm2``, ``tiny``, a folder or a hub id.
    rounds : int
        How often each side is timed.
    threads : int
        Threads of each computation; 0 for one per core.
    """

    model: str = "smollm2"
    rounds: int = 5
    threads: int = 1


@dataclass(frozen=True)
class Bar:
    """What a median has to reach: at least, or at most, so much."""

    value: float
    at_least: bool


@dataclass(frozen=True)
class Figure:
    """One ratio: ours against a peer.

    Attributes
    ----------
    what, against : str
        What was measured, and the peer.
    values : tuple of float
        One a round.
    bar : Bar or None
        None where the figure is only reported.
    limit : float or None
        The same ratio if nothing but the unavoidable were left, such as the base model's matrix
        products alone.
    unit : {"x", "difference", "nats"}
    higher_is_better : bool
    note : str
        What the reader must know besides.
    """

    what: str
    against: str
    values: tuple[float, ...]
    bar: Bar | None = None
    limit: float | None = None
    unit: Unit = "x"
    higher_is_better: bool = True
    note: str = ""

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The middle value, which the bar is held against."""
        return statistics.median(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        if self.bar.at_least:
            return self.median >= self.bar.value
        return self.median <= self.bar.value


@dataclass(frozen=True)
class Equality:
    """Something that both sides must agree on before their times may be compared.

    Attributes
    ----------
    what : str
    value, bound : float
        The difference found, and the largest allowed.
    """

    what: str
    value: float
    bound: float


@dataclass(frozen=True)
class Finding:
    """Everything that one row of the benchmark has found.

    Attributes
    ----------
    figures : tuple of Figure
    equalities : tuple of Equality
        Checked before anything was timed.
    seconds : dict of str to tuple of float
        Times by side, one a round.
    facts : dict
        Other numbers, for the JSON.
    skipped : str
        Why the row was not run; empty if it was.
    """

    figures: tuple[Figure, ...] = ()
    equalities: tuple[Equality, ...] = ()
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: str = ""


def without_bars(finding: Finding) -> Finding:
    """Return what another model than that of the bars has found: only exactness is demanded."""
    figures = tuple(
        figure if figure.unit == "difference" else replace(figure, bar=None)
        for figure in finding.figures
    )
    return replace(finding, figures=figures)


def checked(what: str, value: float, bound: float) -> Equality:
    """Return the equality if the difference is within the bound.

    Raises
    ------
    MesofedError
        If it is not: then the two sides do different work and no ratio means anything.
    """
    if math.isnan(value) or value > bound:
        raise MesofedError(
            f"Expected {what} to agree within {bound:.0e} before timing; they differ by "
            f"{value:.1e}. The two sides do different work, so nothing was timed. Please report "
            "it with the versions of torch, transformers and peft."
        )
    return Equality(what, value, bound)


def ratios(numerator: tuple[float, ...], denominator: tuple[float, ...]) -> tuple[float, ...]:
    """Return one ratio a round, of two sides that were timed in turn."""
    return tuple(a / b for a, b in zip(numerator, denominator, strict=True))
