"""The rows of the benchmark, by the names that ``--only`` takes. Importing this costs nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from shared.errors import MesofedError

if TYPE_CHECKING:
    from simulations.benchmarks.measurement import Finding, Settings

    Measure = Callable[[Settings, Callable[[], None]], Finding]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes
    ----------
    name : str
        As ``--only`` takes it.
    title : str
        What it measures.
    function : str
        Module and function, imported when the row is run.
    interleavings : int
        How often it goes through the rounds, for the progress display.
    computes : bool
        Whether it runs on the computing thread; otherwise it hands its work there itself.
    by_name_only : bool
        Whether it takes too long to be run unless it is asked for.
    """

    name: str
    title: str
    function: str
    interleavings: int = 1
    computes: bool = True
    by_name_only: bool = False

    def load(self) -> "Measure":
        """Import and return the function that measures the row."""
        module, _, function = self.function.partition(":")
        measure: Measure = getattr(import_module(f"simulations.benchmarks.{module}"), function)
        return measure


ROWS = (
    Row("train-all", "training, all linear maps", "training:train_all_linear"),
    Row("train-qv", "training, queries and values", "training:train_query_value"),
    Row("train-many", "training 32 users on a GPU", "training:train_many"),
    Row("memory", "peak memory of training", "memory:peak_memory"),
    Row("alone", "batched against alone", "alone:batched_against_alone"),
    Row("stack", "stacked inference", "stacked_inference:stacked_inference", interleavings=6),
    Row("mixture", "experts for many users", "mixture:mixture"),
    Row("next-user", "from user to user", "next_user:next_user"),
    Row("round", "a round of devices", "round_of_devices:round_of_devices", computes=False),
    Row("quantised", "base formats", "quantised:quantised_bases", interleavings=2),
    Row(
        "boundary",
        "the privacy boundary",
        "boundary:boundary",
        computes=False,
        by_name_only=True,
    ),
    Row("scale", "many devices", "scale:many_devices", computes=False, by_name_only=True),
)


def chosen(names: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the named rows in the order of the catalogue; for no name, all but the long ones.

    Raises
    ------
    MesofedError
        If a name is unknown.
    """
    known = {row.name for row in ROWS}
    if unknown := [name for name in names if name not in known]:
        raise MesofedError(
            f"Expected --only to name rows of the benchmark: {', '.join(r.name for r in ROWS)}; "
            f"got {', '.join(unknown)}."
        )
    return tuple(row for row in ROWS if row.name in names or not (names or row.by_name_only))
