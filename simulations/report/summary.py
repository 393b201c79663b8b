"""The results table of a run: one row per method and task, computed from the answers alone.

Scores are recomputed from predictions and golds, so the table never depends on what a device
wrote down about itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.atomic_file import write_json
from shared.errors import MesofedError
from shared.methods import METHODS
from shared.metrics import PRIMARY, score_pooled, score_user
from shared.tasks import TASKS, Task
from simulations.report.read import read_run
from simulations.report.run import Answer, Run
from simulations.report.statistics import (
    Estimate,
    Gain,
    best_of,
    bootstrap_mean,
    holm,
    paired_gain,
)

REFERENCE = "population"
SHARED_ONLY = ("base", REFERENCE)
"""Methods that are the same for everyone."""


@dataclass(frozen=True)
class Row:
    """One method on one task.

    Attributes
    ----------
    primary : str
        Name of the metric that ranks methods on the task.
    metrics : dict of str to float
        Mean over users of each metric that one user can have.
    pooled : dict of str to float
        Each metric over all queries of all users at once; macro-F1 and RMSE are here alone.
    estimate : Estimate
        Of the primary metric, over users.
    nll : float or None
        Mean over users of the mean negative log-likelihood, in nats per gold token.
    gain : Gain or None
        Primary metric against ``population``, its p-value corrected over all rows of the run; None
        for ``population`` itself or without it.
    """

    method: str
    task: str
    users: int
    queries: int
    primary: str
    higher_is_better: bool
    metrics: Mapping[str, float]
    pooled: Mapping[str, float]
    estimate: Estimate
    nll: float | None
    gain: Gain | None


@dataclass(frozen=True)
class Cost:
    """What a method keeps and spends on a device, as means over users."""

    private_parameters: float
    private_bytes: float
    seconds: float
    tokens: float


@dataclass(frozen=True)
class Summary:
    """All rows of a run, ordered by task and then by method."""

    rows: tuple[Row, ...]
    costs: Mapping[str, Cost]
    by_user: Mapping[tuple[str, str], Mapping[str, float]]
    seconds: Mapping[str, float]
    traffic: Mapping[str, int]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in table order."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in table order."""
        return tuple(self.costs)

    @property
    def personalised(self) -> tuple[str, ...]:
        """Methods that differ from user to user."""
        return tuple(name for name in self.methods if name not in SHARED_ONLY)

    @property
    def featured(self) -> str | None:
        """The method that the headline speaks of: ``meso``, else the last personalised one.

        It is named before any score is seen, so the headline is not a pick of the luckiest.
        """
        if "meso" in self.personalised:
            return "meso"
        return self.personalised[-1] if self.personalised else None

    def row(self, method: str, task: str) -> Row | None:
        """Return one cell group of the table, None if the method has no answers on the task."""
        return next((r for r in self.rows if (r.method, r.task) == (method, task)), None)

    def best(self, task: str) -> float | None:
        """Return the best primary mean on a task; None where all methods have the same."""
        rows = [row for row in self.rows if row.task == task]
        return best_of([row.estimate.mean for row in rows], all(r.higher_is_better for r in rows))


def task_of(name: str) -> Task:
    """Look a task up by name."""
    if name not in TASKS:
        raise MesofedError(
            f"Expected one of the tasks {', '.join(TASKS)} in the run's results; got {name!r}. "
            "The run was written by another version of Mesofed: report it with that version."
        )
    return TASKS[name]


def _row(
    method: str, name: str, answers: Mapping[str, list[Answer]]
) -> tuple[Row, dict[str, float]]:
    """Score one method on one task; also return the primary metric of each user."""
    task = task_of(name)
    primary, higher_is_better = PRIMARY[task.kind]
    scores = {
        user: score_user(task.kind, [a.prediction for a in own], [a.gold for a in own])
        for user, own in answers.items()
    }
    everything = [answer for own in answers.values() for answer in own]
    predictions, golds = [a.prediction for a in everything], [a.gold for a in everything]
    by_user = {user: values[primary] for user, values in scores.items()}
    nlls = [
        float(np.mean([a.nll for a in own if a.nll is not None]))
        for own in answers.values()
        if any(a.nll is not None for a in own)
    ]
    row = Row(
        method=method,
        task=name,
        users=len(answers),
        queries=len(everything),
        primary=primary,
        higher_is_better=higher_is_better,
        metrics={
            metric: float(np.mean([own[metric] for own in scores.values()]))
            for metric in next(iter(scores.values()))
        },
        pooled=score_pooled(task.kind, predictions, golds, task.labels),
        estimate=bootstrap_mean(list(by_user.values())),
        nll=float(np.mean(nlls)) if nlls else None,
        gain=None,
    )
    return row, by_user


def _with_gain(row: Row, by_user: Mapping[tuple[str, str], Mapping[str, float]]) -> Row:
    """Compare a row with ``population`` on the same task, user by user."""
    reference = by_user.get((REFERENCE, row.task))
    if row.method == REFERENCE or reference is None:
        return row
    own = by_user[row.method, row.task]
    return replace(row, gain=paired_gain(own, reference, row.higher_is_better))


def _corrected(rows: list[Row]) -> list[Row]:
    """Correct the p-values of all gains for their number."""
    compared = [(place, row.gain) for place, row in enumerate(rows) if row.gain is not None]
    corrected = list(rows)
    adjusted = holm([gain.p for _, gain in compared])
    for (place, gain), value in zip(compared, adjusted, strict=True):
        corrected[place] = replace(rows[place], gain=replace(gain, adjusted_p=value))
    return corrected


def _answers(run: Run, method: str, task: str) -> dict[str, list[Answer]]:
    """Return each user's answers by one method to one task; users without any are left out."""
    found = {
        device.user_id: [a for a in device.methods[method].answers if a.task == task]
        for device in run.devices
        if method in device.methods
    }
    return {user: answers for user, answers in found.items() if answers}


def _cost(run: Run, method: str) -> Cost:
    results = [device.methods[method] for device in run.devices if method in device.methods]
    return Cost(
        private_parameters=float(np.mean([r.private_parameters for r in results])),
        private_bytes=float(np.mean([r.private_bytes for r in results])),
        seconds=float(np.mean([r.seconds for r in results])),
        tokens=float(np.mean([r.tokens for r in results])),
    )


def _seconds(run: Run) -> dict[str, float]:
    """Add up training time by stage, over releases and devices."""
    seconds: dict[str, float] = {}
    for stage in run.training:
        seconds[stage.stage] = seconds.get(stage.stage, 0.0) + stage.seconds
    private = sum(result.seconds for device in run.devices for result in device.methods.values())
    return seconds | ({"private": private} if run.devices else {})


def summarise_run(run: Run) -> Summary:
    """Compute the results table of a run that has been read."""
    rows: list[Row] = []
    by_user: dict[tuple[str, str], Mapping[str, float]] = {}
    for task in run.tasks:
        for method in run.methods:
            if answers := _answers(run, method, task):
                row, by_user[method, task] = _row(method, task, answers)
                rows.append(row)
    rows = _corrected([_with_gain(row, by_user) for row in rows])
    traffic = [device for round_ in run.rounds for device in round_.traffic]
    return Summary(
        rows=tuple(rows),
        costs={method: _cost(run, method) for method in run.methods},
        by_user=by_user,
        seconds=_seconds(run),
        traffic={
            "devices": len({device.node for device in traffic}),
            "down": sum(device.bytes_down for device in traffic),
            "up": sum(device.bytes_up for device in traffic),
        },
    )


def summarise(run_dir: Path) -> Summary:
    """Compute the results table of a run directory.

    Raises
    ------
    MesofedError
        If the directory is not that of a run, or a file in it is broken.
    """
    return summarise_run(read_run(run_dir))


def _number(value: float | None) -> float | None:
    """JSON has no NaN: write it as null."""
    return value if value is not None and math.isfinite(value) else None


def _gain_as_data(gain: Gain | None) -> dict[str, Any] | None:
    if gain is None:
        return None
    estimate = gain.estimate
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "users": estimate.users,
        "p": gain.p,
        "p_holm": gain.adjusted_p,
        "clear": gain.clear,
    }


def summary_as_data(summary: Summary) -> dict[str, Any]:
    """Return the summary as plain JSON data, the content of ``summary.json``."""
    table = [
        {
            "method": row.method,
            "task": row.task,
            "users": row.users,
            "queries": row.queries,
            "primary": row.primary,
            "higher_is_better": row.higher_is_better,
            "metrics": dict(row.metrics),
            "pooled": dict(row.pooled),
            "nll": _number(row.nll),
            "low": row.estimate.low,
            "high": row.estimate.high,
            "gain": _gain_as_data(row.gain),
            "private_parameters": summary.costs[row.method].private_parameters,
            "private_bytes": summary.costs[row.method].private_bytes,
            "seconds": summary.costs[row.method].seconds,
            "tokens": summary.costs[row.method].tokens,
        }
        for row in summary.rows
    ]
    return {"table": table, "seconds": dict(summary.seconds), "bytes": dict(summary.traffic)}


def write_summary(run_dir: Path) -> Path:
    """Write ``summary.json`` into a run directory and return its path."""
    path = run_dir / "summary.json"
    write_json(path, summary_as_data(summarise(run_dir)))
    return path


def about(method: str) -> str:
    """Return one line on a method, empty for one that is not declared here."""
    return METHODS[method].summary if method in METHODS else ""
