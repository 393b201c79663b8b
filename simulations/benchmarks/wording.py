"""How figures are written: ratios, spreads, bars and limits, for the terminal and for the page."""

from collections.abc import Sequence

from shared.program import command
from simulations.benchmarks.measurement import MODEL_OF_BARS, Bar, Figure, Unit
from simulations.report.wording import count_of


def value(number: float, unit: Unit = "x") -> str:
    """Return a number: ``0.98x``, ``14.3x``, ``210x``; a difference as ``2e-06``; nats plainly."""
    if unit == "difference":
        return f"{number:.0e}" if number else "0"
    if unit == "nats":
        return f"{number:.3f}"
    if number >= 100:
        return f"{number:.0f}x"
    return f"{number:.1f}x" if number >= 10 else f"{number:.2f}x"


def spread(figure: Figure) -> str:
    """Return the smallest and the largest value."""
    if figure.low == figure.high:
        return ""
    low, high = (value(number, figure.unit) for number in (figure.low, figure.high))
    return f"{low.removesuffix('x')}–{high}"


def bar(figure: Figure) -> str:
    """Return what the median has to reach, or nothing."""
    return "" if figure.bar is None else bar_of(figure.bar, figure.unit)


def bar_of(bar: Bar, unit: Unit) -> str:
    """Return a bar as ``≥4x``."""
    if not bar.value:
        return "bit-equal"
    number = f"{bar.value:.0e}" if unit == "difference" else f"{bar.value:g}"
    return f"{'≥' if bar.at_least else '≤'}{number}{'x' if unit == 'x' else ''}"


def limit(figure: Figure) -> str:
    """Return the physical limit, or nothing."""
    return "" if figure.limit is None else value(figure.limit, figure.unit)


def verdict(figure: Figure) -> str:
    """Return whether the bar is met, in a word."""
    return {True: "met", False: "missed", None: ""}[figure.met]


def headline(figures: Sequence[Figure], device: str) -> str:
    """Say how many bars are met."""
    met = [figure.met for figure in figures if figure.met is not None]
    if not met:
        return f"Measured on {device}; bars are set for {MODEL_OF_BARS}."
    return f"{sum(met)} of {count_of(len(met), 'bar')} met on {device}."


def next_step(figures: Sequence[Figure], folder: str) -> str:
    """Return the one thing to do now."""
    if any(figure.met is False for figure in figures):
        return (
            "see in docs/performance.md what limits the figures marked ✗; on a busy machine, "
            "measure them again with --only ROW --rounds 9"
        )
    if all(figure.met is None for figure in figures):
        return f"run `{command('bench')}` on smollm2, for which the bars are set"
    return f"keep {folder}/benchmark.json beside the commit, to compare later ones with it"
