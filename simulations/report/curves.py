"""Training curves: losses over steps, and the router's gates."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from simulations.report.run import Curve, RouterStep
from simulations.report.svg import ACCENT, SOFT, WARM, as_markup, drawing, level_lines
from simulations.report.wording import count_of, decimal

_WIDTH, _HEIGHT = 264, 190


def _smooth(losses: np.ndarray, window: int) -> np.ndarray:
    """Return the centred running mean, over fewer steps at the ends; NaNs are left out."""
    half = window // 2
    slices = (losses[max(0, i - half) : i + half + 1] for i in range(len(losses)))
    return np.array([np.nanmean(s) if np.isfinite(s).any() else np.nan for s in slices])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean loss at every step that at least half of the curves reach."""
    at: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            if math.isfinite(loss):
                at.setdefault(step, []).append(loss)
    return tuple(
        (step, sum(losses) / len(losses))
        for step, losses in sorted(at.items())
        if 2 * len(losses) >= len(curves)
    )


def curve_chart(curves: Mapping[str, Curve], title: str, noun: str, key: str) -> Markup:
    """Draw losses over steps: thin lines for each ``noun``, one bold line for their mean.

    A single curve is drawn thin as measured and bold as its running mean.
    """
    kept = {name: curve for name, curve in curves.items() if curve}
    with drawing(_WIDTH, _HEIGHT, left=34, right=42) as (figure, axes):
        level_lines(axes)
        for curve in kept.values():
            steps, losses = zip(*curve, strict=True)
            marker = "o" if len(curve) == 1 else ""
            axes.plot(steps, losses, marker=marker, color=SOFT, linewidth=1, markersize=4)
        if len(kept) == 1:
            (curve,) = kept.values()
            steps, losses = zip(*curve, strict=True)
            bold: Curve = tuple(
                zip(steps, _smooth(np.array(losses), max(3, len(losses) // 8)), strict=True)
            )
        else:
            bold = mean_curve(list(kept.values()))
        if bold:
            steps, losses = zip(*bold, strict=True)
            axes.plot(steps, losses, color=ACCENT, linewidth=2.25)
            axes.plot(steps[-1], losses[-1], "o", color=ACCENT, markersize=5)
            axes.annotate(
                decimal(losses[-1], 2),
                (steps[-1], losses[-1]),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
                annotation_clip=False,
            )
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("step")
        axes.set_title(title)
        count = count_of(len(kept), noun)
        said = (
            f"Mean loss goes from {decimal(bold[0][1], 2)} to {decimal(bold[-1][1], 2)} "
            f"in {bold[-1][0]} steps over {count}."
            if bold
            else "No finite losses."
        )
        return as_markup(figure, key, f"Training loss: {title}", said)


def gates_chart(router: Sequence[RouterStep], key: str) -> Markup:
    """Draw each expert's mean gate over the steps, with the gates' normalised entropy dashed."""
    experts = len(router[0].mean_gates)
    steps = [point.step for point in router]
    with drawing(_WIDTH, _HEIGHT, left=34, right=52) as (figure, axes):
        level_lines(axes)
        ends = []
        for expert in range(experts):
            gates = [point.mean_gates[expert] for point in router]
            axes.plot(steps, gates, color=ACCENT, linewidth=1.5)
            ends.append((gates[-1], f"E{expert + 1}", ACCENT))
        entropy = [point.gate_entropy for point in router]
        axes.plot(steps, entropy, color=WARM, linewidth=1.5, dashes=(4, 3))
        ends.append((entropy[-1], "entropy", WARM))
        axes.set_ylim(0, 1.03)
        _end_labels(axes, steps[-1], ends)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.set_xlabel("step")
        axes.set_title("router: mean gates")
        shares = ", ".join(
            f"E{e + 1} {decimal(router[-1].mean_gates[e], 2)}" for e in range(experts)
        )
        return as_markup(
            figure,
            key,
            "Mean gate of each expert and gate entropy over training",
            f"At the end: {shares}; normalised entropy {decimal(entropy[-1], 2)}.",
        )


def _end_labels(axes: Axes, step: int, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at their right end, moved apart so that no two names touch."""
    apart = 0.1
    places: list[float] = []
    for value, _, _ in sorted(ends):
        places.append(max(value, places[-1] + apart) if places else value)
    # Pushed up only, a crowd's names would stand above all of its lines.
    pushed = sum(place - value for place, (value, _, _) in zip(places, sorted(ends), strict=True))
    down = min(pushed / len(ends), places[0])
    for place, (_, name, colour) in zip(places, sorted(ends), strict=True):
        axes.annotate(
            name,
            (step, place - down),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
            annotation_clip=False,
        )
