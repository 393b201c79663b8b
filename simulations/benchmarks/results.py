"""A benchmark's results as one JSON file, written anew after every row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared.atomic_file import write_json
from simulations.benchmarks.measurement import Figure, Finding, Settings

FILE = "benchmark.json"


@dataclass(frozen=True)
class Results:
    """What a benchmark has found so far.

    Attributes
    ----------
    settings : Settings
    machine : dict
    findings : dict of str to Finding
        By row, in the order in which they were measured.
    took : dict of str to float
        Seconds of each row.
    """

    settings: Settings
    machine: Mapping[str, Any]
    findings: dict[str, Finding] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, row by row."""
        return tuple(figure for finding in self.findings.values() for figure in finding.figures)

    def write(self, folder: Path) -> Path:
        """Write the results and return their file."""
        rows = {
            name: {
                "seconds_in_all": round(self.took.get(name, 0.0), 3),
                "skipped": finding.skipped,
                "figures": [describe(figure) for figure in finding.figures],
                "checked": [asdict(equality) for equality in finding.equalities],
                "seconds": {side: list(values) for side, values in finding.seconds.items()},
                "facts": dict(finding.facts),
            }
            for name, finding in self.findings.items()
        }
        path = folder / FILE
        write_json(
            path, {"settings": asdict(self.settings), "machine": dict(self.machine), "rows": rows}
        )
        return path


def describe(figure: Figure) -> dict[str, Any]:
    """Return a figure for the JSON, with what follows from its values."""
    return {
        "what": figure.what,
        "against": figure.against,
        "min": figure.low,
        "median": figure.median,
        "max": figure.high,
        "values": list(figure.values),
        "unit": figure.unit,
        "higher_is_better": figure.higher_is_better,
        "bar": asdict(figure.bar) if figure.bar is not None else None,
        "met": figure.met,
        "limit": figure.limit,
    }
