"""The comparison's charts: quality, gap between the settings, private bytes.

Shape, fill and words carry every distinction; colour only repeats them.
"""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from shared.byte_size import byte_size
from simulations.comparison.results import OURS, Block, Results, Row
from simulations.comparison.tables import slice_name
from simulations.report.statistics import Gain
from simulations.report.svg import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
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

_WIDTH = 372


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=11)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(INK)
        label.set_fontweight("bold" if name == OURS else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


def quality_chart(results: Results, task: str, slice_: str, key: str) -> Markup:
    """Draw the primary metric of every method with its interval, federated over centralized."""
    blocks = [b for b in results.blocks if (b.task, b.slice) == (task, slice_)]
    methods = list(dict.fromkeys(row.method for block in blocks for row in results.of(block)))
    first = blocks[0]
    left = 16 + 7 * max(map(len, methods))
    said = []
    with drawing(_WIDTH, 58 + 25 * len(methods), left, right=14, bottom=24) as (figure, axes):
        for place, method in enumerate(methods):
            for block in blocks:
                row = results.row(method, block)
                if row is None:
                    continue
                central = block.setting == "centralized"
                apart = 0.17 if len(blocks) > 1 else 0.0
                height = place + (apart if central else -apart)
                colour = ACCENT if row.ours else MUTED
                if row.estimate.low is not None and row.estimate.high is not None:
                    axes.plot(
                        [row.estimate.low, row.estimate.high],
                        [height, height],
                        color=colour,
                        linewidth=1.25,
                    )
                axes.plot(
                    row.estimate.mean,
                    height,
                    "D" if central else "o",
                    markersize=5 if central else 6.5,
                    color=colour,
                    markerfacecolor=PAPER if central else colour,
                    markeredgewidth=1.5,
                )
                said.append(
                    f"{method} {block.setting} {decimal(row.estimate.mean)} "
                    f"{interval(row.estimate, 3)}".strip()
                )
        reference = results.row("population", first)
        if reference is not None:
            axes.axvline(reference.estimate.mean, color=MUTED, linewidth=1, dashes=(3, 3), zorder=0)
        _name_rows(axes, methods)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        metric = metric_name(first.primary)
        axes.set_title(
            f"{task_name(task)}, {slice_name(slice_)}: {metric} {arrow(first.higher_is_better)}",
            fontsize=11,
        )
        better = "higher" if first.higher_is_better else "lower"
        return as_markup(
            figure,
            key,
            f"{metric} per method on {task_name(task)}, {slice_name(slice_)}",
            f"Mean over users with 95 % interval, {better} is better. {'; '.join(said)}.",
        )


def gap_chart(gaps: Mapping[str, Gain], task: str, key: str) -> Markup:
    """Draw what each method gains from centralized training, with its interval."""
    methods = list(gaps)
    left = 16 + 7 * max(map(len, methods))
    with drawing(_WIDTH, 58 + 22 * len(methods), left, right=52, bottom=24) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1, zorder=0)
        for place, gain in enumerate(gaps.values()):
            estimate = gain.estimate
            colour = ACCENT if methods[place].startswith(OURS) else MUTED
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color=colour)
            axes.plot(estimate.mean, place, "o", markersize=6.5, color=colour)
            axes.annotate(
                signed(estimate.mean, 3),
                (1.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                annotation_clip=False,
                fontsize=10,
            )
        _name_rows(axes, methods)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(f"{task_name(task)}: centralized over federated", fontsize=11)
        said = "; ".join(f"{m} {signed(g.estimate.mean, 3)}" for m, g in gaps.items())
        return as_markup(
            figure,
            key,
            f"Gain of centralized over federated training on {task_name(task)}",
            f"Paired by user with 95 % interval; positive: centralized is better. {said}.",
        )


def bytes_chart(rows: Sequence[Row], block: Block, key: str) -> Markup:
    """Draw the primary metric against the private bytes of a user, on a logarithmic axis.

    Dots carry the methods' numbers in ``rows``, from 1; those in one place share a label.
    """
    largest = max([*(row.cost.private_bytes for row in rows), 10])
    top = math.ceil(math.log10(largest)) + 0.6
    with drawing(_WIDTH, 260, left=46, right=44, bottom=40) as (figure, axes):
        level_lines(axes)
        points = []
        for row in rows:
            # What keeps nothing stands at the left edge, at "none".
            x = math.log10(row.cost.private_bytes) if row.cost.private_bytes else 0.0
            points.append((x, row.estimate.mean))
            axes.plot(
                *points[-1],
                "o",
                markersize=8 if row.ours else 6,
                color=ACCENT if row.ours else MUTED,
                markerfacecolor=ACCENT if row.ours else PAPER,
                markeredgewidth=1.5,
            )
        values = [value for _, value in points]
        spread = max(values) - min(values) or 0.1
        axes.set_ylim(min(values) - 0.15 * spread, max(values) + 0.15 * spread)
        for (x, y), numbers in together(points, 1.2, 0.07 * spread):
            lines = [numbers[start : start + 4] for start in range(0, len(numbers), 4)]
            axes.annotate(
                "\n".join(" ".join(map(str, line)) for line in lines),
                (x, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                linespacing=1.1,
                annotation_clip=False,
            )
        names = {3: "1 kB", 6: "1 MB", 9: "1 GB"}
        ticks = [power for power in names if power < top]
        axes.set_xlim(-0.5, top)
        axes.set_xticks([0, *ticks], ["none", *(names[power] for power in ticks)])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("private bytes a user")
        metric = metric_name(block.primary)
        axes.set_title(
            f"{task_name(block.task)}: {metric} {arrow(block.higher_is_better)}", fontsize=11
        )
        said = "; ".join(
            f"{row.method} {byte_size(row.cost.private_bytes)} {decimal(row.estimate.mean)}"
            for row in rows
        )
        return as_markup(
            figure,
            key,
            f"{metric} against private bytes on {task_name(block.task)}",
            f"Filled: ours. {said}.",
        )


def together(
    points: Sequence[tuple[float, float]], width: float, height: float
) -> list[tuple[tuple[float, float], list[int]]]:
    """Return labels for points: where each stands, and the numbers, from 1, that it speaks for.

    Points are gone through from left to right; one joins the first label whose leftmost point is
    nearer than ``width`` and ``height``. A label stands in the middle of its points, at the top.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        x, y = points[index]
        for group in groups:
            first_x, first_y = points[group[0]]
            if abs(x - first_x) <= width and abs(y - first_y) <= height:
                group.append(index)
                break
        else:
            groups.append([index])
    return [
        (
            (
                sum(points[i][0] for i in group) / len(group),
                max(points[i][1] for i in group),
            ),
            sorted(i + 1 for i in group),
        )
        for group in groups
    ]
