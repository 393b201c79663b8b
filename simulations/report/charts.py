"""The report's charts, each small enough to be read at full size on a phone.

Shape, fill and words carry every distinction; colour only repeats them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from shared.byte_size import byte_size
from simulations.report.run import Traffic
from simulations.report.share_error import ShareErrors
from simulations.report.summary import SHARED_ONLY, Row
from simulations.report.svg import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    RULE,
    WARM,
    as_markup,
    drawing,
    level_lines,
)
from simulations.report.wording import (
    arrow,
    decimal,
    interval,
    metric_name,
    signed,
    task_name,
)

_WIDTH = 340


def _label_ink(axes: Axes, names: Sequence[str], featured: str | None) -> None:
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(INK)
        label.set_fontweight("bold" if name == featured else "normal")


def quality_chart(rows: Sequence[Row], featured: str | None, key: str) -> Markup:
    """Draw one task's primary metric per method with its interval.

    Personalised methods have filled dots, shared ones hollow dots; the dashed line is
    ``population``.
    """
    first = rows[0]
    metric = metric_name(first.primary)
    names = [row.method for row in rows]
    left = 16 + 7 * max(map(len, names))
    with drawing(_WIDTH, 52 + 27 * len(rows), left, right=44, bottom=22) as (figure, axes):
        axes.spines["left"].set_visible(False)
        for place, row in enumerate(rows):
            estimate = row.estimate
            colour = MUTED if row.method in SHARED_ONLY else ACCENT
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color=colour)
            axes.plot(
                estimate.mean,
                place,
                "o",
                markersize=8,
                color=colour,
                markerfacecolor=PAPER if row.method in SHARED_ONLY else colour,
                markeredgewidth=1.75,
            )
            axes.annotate(
                decimal(estimate.mean, 2),
                (1.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                annotation_clip=False,
                color=INK,
                fontweight="bold" if row.method == featured else "normal",
            )
            if row.method == "population":
                axes.axvline(estimate.mean, color=MUTED, linewidth=1, dashes=(3, 3), zorder=0)
        axes.set_yticks(range(len(rows)), names, fontsize=11)
        _label_ink(axes, names, featured)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        low, high = axes.get_xlim()
        if high - low < 0.01:  # all are the same but for rounding
            axes.set_xlim(low - 0.05, high + 0.05)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(f"{task_name(first.task)}: {metric} {arrow(first.higher_is_better)}")
        described = "; ".join(
            f"{r.method} {decimal(r.estimate.mean)} {interval(r.estimate, 3)}".strip() for r in rows
        )
        better = "higher" if first.higher_is_better else "lower"
        return as_markup(
            figure,
            key,
            f"{metric} per method on {task_name(first.task)}",
            f"Mean over users with 95 % interval, {better} is better. {described}.",
        )


def gain_chart(
    method: str,
    gains: Mapping[str, float],
    history: Mapping[str, int],
    limits: tuple[float, float],
    key: str,
) -> Markup:
    """Draw each user's gain over ``population`` against the length of the private history.

    Parameters
    ----------
    gains, history : dict of str to number
        Gain (positive is better) and number of history items by user.
    limits : (float, float)
        Of the gain axis, shared by the charts of one task.

    Filled dots gained, hollow dots lost, small bars are unchanged; users who share a place make a
    larger mark.
    """
    places = Counter((history[user], round(gain, 6)) for user, gain in gains.items())
    with drawing(236, 196, left=42, right=8) as (figure, axes):
        level_lines(axes)
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
        for (items, gain), users in sorted(places.items(), key=lambda place: -place[1]):
            size = 26 * users
            if gain > 0:
                axes.scatter(items, gain, s=size, color=ACCENT, alpha=0.8, linewidths=0, zorder=3)
            elif gain < 0:
                axes.scatter(
                    items, gain, s=size, facecolor=PAPER, edgecolor=WARM, linewidths=1.5, zorder=2
                )
            else:
                axes.scatter(
                    items, 0, s=3 * size, marker="_", color=MUTED, linewidths=2.5, zorder=2
                )
        axes.set_ylim(*limits)
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        digits = max(0, 1 - math.floor(math.log10(limits[1])))
        axes.yaxis.set_major_formatter(lambda value, _: _tick(value, digits))
        axes.set_xlabel("history items")
        axes.set_title(method)
        better = sum(gain > 0 for gain in gains.values())
        worse = sum(gain < 0 for gain in gains.values())
        return as_markup(
            figure,
            key,
            f"Gain of {method} over population, by history length",
            f"{better} of {len(gains)} users gained, {worse} lost, "
            f"{len(gains) - better - worse} stayed the same.",
        )


def gain_limits(gains: Sequence[float]) -> tuple[float, float]:
    """Return axis limits, symmetric around zero, that hold every gain."""
    reach = max((abs(gain) for gain in gains), default=0.0)
    return (-1.15 * reach, 1.15 * reach) if reach > 0 else (-1.0, 1.0)


def _tick(value: float, digits: int) -> str:
    """Return a signed tick without zeros that say nothing: ``+0.5``, not ``+0.50``."""
    text = signed(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def traffic_chart(traffic: Sequence[Traffic], key: str) -> Markup:
    """Draw bytes down and up of each device on one logarithmic axis."""
    with drawing(_WIDTH, 118, left=44, right=8, top=2, bottom=22) as (figure, axes):
        axes.spines["left"].set_visible(False)
        axes.set_xscale("log")
        described = []
        for place, (name, values) in enumerate(
            (
                ("down", [device.bytes_down for device in traffic]),
                ("up", [device.bytes_up for device in traffic]),
            )
        ):
            middle = float(np.median(values))
            shown = [max(value, 1) for value in values]
            axes.plot([1, max(middle, 1)], [place, place], color=RULE, linewidth=2, zorder=0)
            axes.plot(shown, [place] * len(shown), "o", color=ACCENT, markersize=7, alpha=0.6)
            axes.annotate(
                byte_size(middle),
                (max(middle, 1), place),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontweight="bold",
            )
            described.append(f"{name} {byte_size(middle)}")
        top = max(max(device.bytes_down, device.bytes_up) for device in traffic)
        axes.set_xlim(1, max(top, 10) * 12)
        axes.set_ylim(1.4, -0.8)
        axes.set_yticks([0, 1], ["down", "up"], fontsize=11)
        _label_ink(axes, ["down", "up"], None)
        axes.set_xticks(
            [10**power for power in range(0, 13, 3) if 10**power < max(top, 10) * 12],
            [
                ("1 byte", "1 kB", "1 MB", "1 GB", "1 TB")[power // 3]
                for power in range(0, 13, 3)
                if 10**power < max(top, 10) * 12
            ],
        )
        axes.minorticks_off()
        return as_markup(
            figure,
            key,
            "Bytes down and up per device, logarithmic",
            f"Median per device: {' and '.join(described)}.",
        )


def share_error_chart(found: ShareErrors, key: str) -> Markup:
    """Draw the error of a group share against epsilon, one line a mode; both axes logarithmic.

    ``local`` is a full line of filled dots, ``central`` a dashed one of hollow squares, and each is
    named at its end. A ring and an upright line mark the run's own budget.
    """
    looks: dict[str, dict[str, Any]] = {
        "local": {"color": ACCENT, "marker": "o"},
        "central": {"color": WARM, "marker": "s", "dashes": (4, 2), "markerfacecolor": PAPER},
    }
    with drawing(_WIDTH, 240, left=44, right=52) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        level_lines(axes)
        for mode, points in found.lines.items():
            epsilons, errors = zip(*points, strict=True)
            axes.plot(epsilons, errors, markersize=5, **looks[mode])
            axes.annotate(
                mode,
                (epsilons[-1], errors[-1]),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
                annotation_clip=False,
            )
        if found.own is not None:
            _, epsilon, error = found.own
            axes.axvline(epsilon, color=MUTED, linewidth=1, dashes=(3, 3), zorder=0)
            axes.plot(
                epsilon, error, "o", markersize=13, markerfacecolor="none", markeredgecolor=INK
            )
            axes.annotate(
                f"this run: {decimal(error)}",
                (epsilon, error),
                xytext=(9, 7),
                textcoords="offset points",
                fontweight="bold",
                annotation_clip=False,
            )
        ticks = [epsilon for points in found.lines.values() for epsilon, _ in points]
        axes.set_xticks(sorted(set(ticks)), [f"{tick:g}" for tick in sorted(set(ticks))])
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_xlabel("epsilon of all rounds together")
        axes.set_title("Error of a group share ↓")
        described = "; ".join(
            f"{mode}: " + ", ".join(f"{decimal(error)} at epsilon {e:g}" for e, error in points)
            for mode, points in found.lines.items()
        )
        own = "" if found.own is None else f" This run: {found.own[0]}, {decimal(found.own[2])}."
        return as_markup(
            figure,
            key,
            "Mean absolute error of a group share against epsilon, logarithmic",
            f"{described}.{own}",
        )
