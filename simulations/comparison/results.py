"""What the cells of a comparison say: one row per method, task, slice and setting.

A person who is asked under several seeds counts once, with the mean of their scores: people are
what is drawn from a population, seeds are not. Scores are computed from the answers alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shared.metrics import PRIMARY, score_pooled, score_user
from shared.tasks import TASKS
from simulations.comparison.cell import Cell, Person
from simulations.report.run import Answer
from simulations.report.statistics import (
    Estimate,
    Gain,
    best_of,
    bootstrap_mean,
    holm,
    paired_gain,
)

REFERENCE = "population"
NO_RIVALS = ("base", REFERENCE)
"""Methods that are the same for everyone."""
OURS = "meso"

Scores = dict[str, float]
"""A value per person."""


@dataclass(frozen=True)
class Cost:
    """What a method keeps and spends, as means over people and seeds."""

    private_bytes: float
    bytes_down: float
    bytes_up: float
    seconds: float
    tokens: float
    added_ms: float | None
    prompt_tokens: float


@dataclass(frozen=True)
class Block:
    """Rows that may be compared: one task, slice and setting."""

    task: str
    slice: str
    setting: str

    @property
    def primary(self) -> str:
        """The metric that ranks methods."""
        return PRIMARY[TASKS[self.task].kind][0]

    @property
    def higher_is_better(self) -> bool:
        """Whether it does so upwards."""
        return PRIMARY[TASKS[self.task].kind][1]


@dataclass(frozen=True)
class Row:
    """One method in one block.

    Attributes
    ----------
    scores, nlls : dict of str to float
        By person, over seeds: the primary metric, and the mean negative log-likelihood of the
        gold answer, in nats per token. ``nlls`` is empty where no model was asked.
    estimate, nll : Estimate
        Their means over people.
    pooled : dict of str to float
        Each metric over all queries at once, whoever asked them.
    gain, nll_gain : Gain or None
        Against ``population``.
    rival : str
        The best method of the block that is none of ours (for ours), or the best other one.
    against_rival : Gain or None
        Against it. Only rows of ours have it.
    """

    method: str
    block: Block
    seeds: tuple[int, ...]
    queries: int
    scores: Scores
    nlls: Scores
    estimate: Estimate
    nll: Estimate | None
    pooled: Mapping[str, float]
    cost: Cost
    gain: Gain | None = None
    nll_gain: Gain | None = None
    rival: str = ""
    against_rival: Gain | None = None

    @property
    def ours(self) -> bool:
        """Whether the method is one of ours."""
        return is_ours(self.method)


@dataclass(frozen=True)
class Results:
    """All rows, and the gap between the settings."""

    rows: tuple[Row, ...]
    gaps: Mapping[tuple[str, str, str], Gain]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in the order of the report: the whole population first."""
        return tuple(dict.fromkeys(row.block for row in self.rows))

    @property
    def comparisons(self) -> int:
        """How many tests each p-value of the primary metric is corrected for."""
        return sum((row.gain is not None) + (row.against_rival is not None) for row in self.rows)

    def of(self, block: Block) -> tuple[Row, ...]:
        """Return the rows of one block."""
        return tuple(row for row in self.rows if row.block == block)

    def row(self, method: str, block: Block) -> Row | None:
        """Return one method's row of a block, if it has one."""
        return next((row for row in self.of(block) if row.method == method), None)

    def best(self, block: Block) -> float | None:
        """Return the best primary mean of a block; None where all methods have the same."""
        return best_of([row.estimate.mean for row in self.of(block)], block.higher_is_better)


def is_ours(method: str) -> bool:
    """Return whether a method is one of ours: a form of meso."""
    return method == OURS or method.startswith(f"{OURS}-")


def results_of(cells: Sequence[Cell], methods: Sequence[str]) -> Results:
    """Compute the results of finished cells, methods in the order given."""
    grouped: defaultdict[tuple[str, Block], list[Cell]] = defaultdict(list)
    for cell in cells:
        for task in sorted({a.task for person in cell.people for a in person.answers}):
            grouped[cell.method, Block(task, cell.slice, cell.setting)].append(cell)
    order = {name: place for place, name in enumerate(methods)}
    blocks = sorted({block for _, block in grouped}, key=_in_report)
    rows = [
        _row(method, block, grouped[method, block])
        for block in blocks
        for method in sorted({m for m, b in grouped if b == block}, key=lambda m: order.get(m, 99))
    ]
    rows = _corrected([_compared(row, rows) for row in rows])
    return Results(tuple(rows), _gaps(rows))


def _in_report(block: Block) -> tuple[object, ...]:
    return block.slice != "all", block.slice, block.task, block.setting != "federated"


def _row(method: str, block: Block, cells: Sequence[Cell]) -> Row:
    task = TASKS[block.task]
    scores: defaultdict[str, list[float]] = defaultdict(list)
    nlls: defaultdict[str, list[float]] = defaultdict(list)
    everything: list[Answer] = []
    for cell in cells:
        for person in cell.people:
            own = [answer for answer in person.answers if answer.task == block.task]
            if not own:
                continue
            everything += own
            golds = [answer.gold for answer in own]
            found = score_user(task.kind, [answer.prediction for answer in own], golds)
            scores[person.user_id].append(found[block.primary])
            known = [answer.nll for answer in own if answer.nll is not None]
            if known:
                nlls[person.user_id].append(float(np.mean(known)))
    by_person, nll_by_person = _means(scores), _means(nlls)
    return Row(
        method=method,
        block=block,
        seeds=tuple(sorted({cell.seed for cell in cells})),
        queries=len(everything),
        scores=by_person,
        nlls=nll_by_person,
        estimate=bootstrap_mean(list(by_person.values())),
        nll=bootstrap_mean(list(nll_by_person.values())) if nll_by_person else None,
        pooled=score_pooled(
            task.kind, [a.prediction for a in everything], [a.gold for a in everything], task.labels
        ),
        cost=_cost(cells, block.task),
    )


def _means(values: Mapping[str, Sequence[float]]) -> Scores:
    return {name: float(np.mean(own)) for name, own in sorted(values.items())}


def _cost(cells: Sequence[Cell], task: str) -> Cost:
    people: list[Person] = [person for cell in cells for person in cell.people]
    timed = [cell.added_ms for cell in cells if cell.added_ms is not None]

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return Cost(
        private_bytes=mean(person.private_bytes for person in people),
        bytes_down=mean(cell.bytes_down for cell in cells),
        bytes_up=mean(cell.bytes_up for cell in cells),
        seconds=mean(person.seconds for person in people),
        tokens=mean(person.tokens for person in people),
        added_ms=float(np.median(timed)) if timed else None,
        prompt_tokens=mean(cell.prompt_tokens.get(task, 0.0) for cell in cells),
    )


def _compared(row: Row, rows: Sequence[Row]) -> Row:
    """Compare a row with ``population`` and, if it is ours, with the best of the others."""
    others = [other for other in rows if other.block == row.block and other.method != row.method]
    reference = next((other for other in others if other.method == REFERENCE), None)
    better = row.block.higher_is_better
    if reference is not None:
        row = replace(
            row,
            gain=paired_gain(row.scores, reference.scores, better),
            nll_gain=paired_gain(row.nlls, reference.nlls, False),
        )
    rivals = [other for other in others if not other.ours and other.method not in NO_RIVALS]
    if row.ours and rivals:
        best = (max if better else min)(rivals, key=lambda other: other.estimate.mean)
        gain = paired_gain(row.scores, best.scores, better)
        row = replace(row, rival=best.method, against_rival=gain)
    return row


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Correct the p-values of the primary metric for all of them, and so those of the NLL."""
    first = [row.gain for row in rows], [row.against_rival for row in rows]
    gains, rivals = _holm([*first[0], *first[1]], len(rows))
    (nlls,) = _holm([row.nll_gain for row in rows], len(rows))
    return [
        replace(row, gain=gain, against_rival=rival, nll_gain=nll)
        for row, gain, rival, nll in zip(rows, gains, rivals, nlls, strict=True)
    ]


def _holm(gains: Sequence[Gain | None], length: int) -> list[list[Gain | None]]:
    """Adjust the p-values of gains as one family; return them in pieces of a length."""
    adjusted = iter(holm([gain.p for gain in gains if gain is not None]))
    found = [
        replace(gain, adjusted_p=next(adjusted)) if gain is not None else None for gain in gains
    ]
    return [found[start : start + length] for start in range(0, len(found), length)]


def _gaps(rows: Sequence[Row]) -> dict[tuple[str, str, str], Gain]:
    """Return centralized against federated by method, task and slice; positive: it is better.

    Their p-values are corrected among themselves.
    """
    gaps = {}
    for row in rows:
        block = row.block
        other = replace(block, setting="federated")
        twin = next((r for r in rows if r.method == row.method and r.block == other), None)
        if block.setting == "centralized" and twin is not None:
            gain = paired_gain(row.scores, twin.scores, block.higher_is_better)
            if gain is not None:
                gaps[row.method, block.task, block.slice] = gain
    adjusted = holm([gain.p for gain in gaps.values()])
    return {
        key: replace(gain, adjusted_p=p)
        for (key, gain), p in zip(gaps.items(), adjusted, strict=True)
    }
