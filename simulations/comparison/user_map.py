"""The map of users: where people stand in the embedding space, each group in a shape of its own.

Shape, fill and words carry every distinction; colour only repeats them.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from simulations.comparison.scene_record import Placed
from simulations.report.svg import ACCENT, INK, MUTED, PAPER, WARM, as_markup, drawing

_WIDTH = 372
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
_SHAPE_NAMES = ("circles", "squares", "triangles", "diamonds", "wedges", "crosses", "x", "stars")


def two_axes(places: np.ndarray) -> np.ndarray:
    """Return points (n, k) on their two leading principal axes, (n, 2)."""
    centred = places - places.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    flat: np.ndarray = centred @ axes[:2].T
    if flat.shape[1] < 2:
        flat = np.hstack([flat, np.zeros((len(flat), 1))])
    return flat


def map_chart(people: Sequence[Placed], groups: Sequence[int], title: str, key: str) -> Markup:
    """Draw where users are, each group in a shape of its own; device users are filled."""
    flat = two_axes(np.array([person.place for person in people]))
    with drawing(_WIDTH, 300, left=16, right=16, bottom=20) as (figure, axes):
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        colours = (ACCENT, WARM, MUTED, INK)
        for (x, y), person, group in zip(flat, people, groups, strict=True):
            colour = colours[group % len(colours)]
            axes.plot(
                x,
                y,
                _SHAPES[group % len(_SHAPES)],
                color=colour,
                markersize=7.5,
                markerfacecolor=colour if person.side == "device" else PAPER,
                markeredgewidth=1.5,
            )
        for group in sorted(set(groups)):
            own = flat[np.array(groups) == group]
            axes.annotate(
                str(group),
                own.mean(axis=0),
                ha="center",
                va="center",
                fontsize=13,
                fontweight="bold",
                bbox={"boxstyle": "round,pad=0.2", "facecolor": PAPER, "edgecolor": MUTED},
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.08)
        axes.set_title(title, fontsize=11)
        shapes = ", ".join(
            f"{group}: {_SHAPE_NAMES[group % len(_SHAPE_NAMES)]}" for group in sorted(set(groups))
        )
        return as_markup(
            figure,
            key,
            "Users on the two leading axes of the embedding space",
            f"Filled: device users; hollow: server users. Groups: {shapes}.",
        )
