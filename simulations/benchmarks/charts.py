"""The benchmark's chart: every ratio with its spread, its bar and its physical limit."""

from collections.abc import Sequence

from markupsafe import Markup

from simulations.benchmarks.measurement import Figure
from simulations.benchmarks.wording import bar, limit, value, verdict
from simulations.report.svg import ACCENT, INK, MUTED, PAPER, RULE, WARM, as_markup, drawing

_WIDTH, _LINE = 560, 52


def ratio_chart(figures: Sequence[Figure], title: str, key: str) -> Markup:
    """Draw one line a figure on a logarithmic axis.

    The dot is the median, filled where the bar is met or there is none, hollow where it is
    missed; the line through it is the spread; the tall tick is the bar, the small triangle the
    physical limit.
    """
    numbers = [n for f in figures for n in (f.low, f.high, *_marks(f))]
    low, high = min(1.0, *numbers), max(1.0, *numbers)
    with drawing(_WIDTH, 60 + _LINE * len(figures), left=4, right=70, bottom=26) as (drawn, axes):
        axes.set_xscale("log")
        axes.spines["left"].set_visible(False)
        axes.axvline(1.0, color=RULE, linewidth=1, zorder=0)
        for place, found in enumerate(figures):
            missed = found.met is False
            colour = WARM if missed else ACCENT
            axes.text(0, place - 0.4, found.what, transform=axes.get_yaxis_transform(), color=INK)
            axes.text(
                0,
                place - 0.13,
                f"against {found.against}",
                transform=axes.get_yaxis_transform(),
                color=MUTED,
                fontsize=10,
            )
            line = place + 0.16
            axes.plot([found.low, found.high], [line, line], color=colour)
            axes.plot(
                found.median,
                line,
                "o",
                markersize=8,
                color=colour,
                markerfacecolor=PAPER if missed else colour,
                markeredgewidth=1.75,
            )
            if found.bar is not None:
                axes.plot(found.bar.value, line, "|", color=INK, markersize=16, markeredgewidth=1.5)
            if found.limit is not None:
                axes.plot(found.limit, line, "v", color=MUTED, markersize=5)
            axes.annotate(
                value(found.median),
                (1.02, line),
                xycoords=("axes fraction", "data"),
                va="center",
                annotation_clip=False,
                fontweight="bold",
            )
        axes.set_yticks([])
        axes.set_ylim(len(figures) - 0.5, -0.7)
        axes.set_xlim(low / 1.15, high * 1.15)
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= t <= high]
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(title)
        return as_markup(drawn, key, title, "; ".join(_described(f) for f in figures))


def _marks(figure: Figure) -> list[float]:
    marks = [figure.limit] if figure.limit is not None else []
    return [*marks, figure.bar.value] if figure.bar is not None else marks


def _described(figure: Figure) -> str:
    text = f"{figure.what} against {figure.against}: {value(figure.median)}"
    if figure.bar is not None:
        text += f", bar {bar(figure)}, {verdict(figure)}"
    return f"{text}, limit {limit(figure)}" if figure.limit is not None else text
