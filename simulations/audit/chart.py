"""The audit's chart: every attack's area under the ROC curve, with its interval."""

from collections.abc import Sequence

from markupsafe import Markup

from simulations.audit.attack import Attack
from simulations.audit.wording import auc
from simulations.report.svg import ACCENT, INK, MUTED, PAPER, RULE, as_markup, drawing

_WIDTH, _LINE = 640, 46


def attack_chart(attacks: Sequence[Attack], key: str) -> Markup:
    """Draw one line an attack from a coin to certainty.

    Hollow dots are contrasts: no device of Mesofed sends what they look at.
    """
    title = "How well the attacks work"
    with drawing(_WIDTH, 60 + _LINE * len(attacks), left=4, right=44, bottom=26) as (drawn, axes):
        axes.spines["left"].set_visible(False)
        axes.axvline(0.5, color=RULE, linewidth=1.5, zorder=0)
        for place, attack in enumerate(attacks):
            line = place + 0.14
            axes.text(
                0,
                place - 0.24,
                f"{attack.target}: {attack.question}",
                transform=axes.get_yaxis_transform(),
                color=INK,
            )
            colour = MUTED if attack.contrast else ACCENT
            axes.plot([attack.low, attack.high], [line, line], color=colour)
            axes.plot(
                attack.auc,
                line,
                "o",
                markersize=8,
                color=colour,
                markerfacecolor=PAPER if attack.contrast else colour,
                markeredgewidth=1.75,
            )
            axes.annotate(
                f"{attack.auc:.2f}",
                (1.02, line),
                xycoords=("axes fraction", "data"),
                va="center",
                annotation_clip=False,
                fontweight="bold",
            )
        axes.set_yticks([])
        axes.set_ylim(len(attacks) - 0.4, -0.7)
        axes.set_xlim(min(0.0, *(attack.low for attack in attacks)), 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "coin", "0.75", "certain"])
        axes.set_title(title)
        described = "; ".join(f"{a.target}, {a.question} {auc(a)}" for a in attacks)
        return as_markup(drawn, key, title, described)
