"""What rounds have cost in privacy, in words: for the server's closing lines and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

_SUMS = {
    "lost": "; its secure sum was lost, so the next release is trained on the corpus as it is",
    "implausible": (
        "; its secure sum was implausible and thrown away, so the next release is trained on the "
        "corpus as it is"
    ),
}


def cost_sentences(records: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Return a sentence for each round that added noise, and one for all of them.

    Parameters
    ----------
    records : sequence of (int, mapping)
        Rounds and their records, ``statistics/r<k>.json``, in order; one without ``privacy`` had
        none.
    """
    lines = []
    last = None
    for release, record in records:
        last = record.get("privacy")
        if last is not None:
            lines.append(
                f"Privacy of round {release}, mode {last['mode']}: epsilon "
                f"{last['epsilon_of_round']:.3g} at delta {last['delta']:g}"
                f"{_SUMS.get(record.get('sum', ''), '')}."
            )
    if last is not None:
        lines.append(
            f"Privacy in total, one person over all rounds: epsilon {last['epsilon_in_total']:.3g} "
            f"of {last['epsilon_of_budget']:g} at delta {last['delta']:g}."
        )
    return lines or ["Privacy: no noise was added (mode off), so no epsilon holds."]
