"""What was wrong with a file, in words that let its owner mend it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.errors import MesofedError
from shared.program import command

SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """Bad input: where it is (``file:line`` and the field), what was expected and what came."""

    where: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}; got {self.got}"


@dataclass(frozen=True)
class Skip:
    """Something left out of a corpus, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """What a reader met on its way through a file; the two lists grow while it reads.

    Attributes
    ----------
    problems : list of Problem
        Bad input. The smallest unit around each (item, query or user) is not among the users.
    skipped : list of Skip
        Harmless gaps that are left out in any case.
    """

    problems: list[Problem] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    def problem(self, where: str, expected: str, got: str) -> None:
        """Note bad input."""
        self.problems.append(Problem(where, expected, got))

    def skip(self, where: str, reason: str) -> None:
        """Note a harmless gap."""
        self.skipped.append(Skip(where, reason))


def shown(value: object) -> str:
    """Return a short, one-line picture of a value for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = ascii(value)
    except ValueError:  # an integer beyond Python's limit of digits
        return "a number of too many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def advice(*, mendable: bool) -> str:
    """Say what to do about bad input; see :func:`refusal`."""
    if mendable:
        return (
            f"Mend the file, or have `{command('simulate')}` leave out what is bad: "
            "`--set corpus.bad_input=skip`."
        )
    return "No usable user is left: mend the file or choose another."


def refusal(origin: str, problems: Sequence[Problem], *, mendable: bool) -> MesofedError:
    """Return the error that lists the first problems, their number, and what to do.

    Parameters
    ----------
    origin : str
        The file.
    problems : sequence of Problem
        At least one.
    mendable : bool
        Whether something is left when the bad parts are left out.
    """
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = f", the first {SHOWN}" if len(problems) > SHOWN else ""
    return MesofedError(
        "\n".join(
            [
                f"The corpus {origin} has {count}{more}:",
                *(f"  {problem}" for problem in problems[:SHOWN]),
                advice(mendable=mendable),
            ]
        )
    )
