"""A cell: one method in one scene, kept as a file of its own when it is done.

    cells/<slice>/<setting>/<seed>/<method>.json

A comparison that is killed goes on with the cells that have no file; what a cell holds does not
depend on when it was made, but for times.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.atomic_file import write_json
from simulations.comparison.contender import Answered, Contender
from simulations.comparison.scene import Scene
from simulations.report.run import Answer, Curve


@dataclass(frozen=True)
class Person:
    """One person's part of a cell; ``bytes`` and counts are whole numbers, ``seconds`` measured."""

    user_id: str
    group: int | None
    history: int
    private_bytes: int
    seconds: float
    tokens: int
    curve: Curve
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Cell:
    """One method in one scene.

    Attributes
    ----------
    bytes_down, bytes_up : float
        Per device; in the centralized setting the history goes up.
    added_ms : float or None
        Milliseconds more for a generated token.
    prompt_tokens : dict of float
        Tokens more in a prompt, by task; none where there are none.
    people : tuple of Person
    """

    method: str
    slice: str
    setting: str
    seed: int
    bytes_down: float
    bytes_up: float
    added_ms: float | None
    prompt_tokens: dict[str, float]
    people: tuple[Person, ...]


def cell_path(folder: Path, slice_name: str, setting: str, seed: int, method: str) -> Path:
    """Return where a cell lies in a comparison's folder."""
    return folder / "cells" / slice_name / setting / str(seed) / f"{method}.json"


def write_cell(path: Path, scene: Scene, contender: Contender, answered: Answered) -> None:
    """Keep what a method did in a scene."""
    traffic = contender.traffic(scene)
    down, up = traffic.down, traffic.up
    if scene.setting == "centralized":  # the server answers, and holds what it was told
        told = [len(f"{i.text}{i.target}".encode()) for u in scene.people for i in u.history]
        history = contender.leaves_centralized != "nothing"
        down, up = 0.0, sum(told) / len(scene.people) if history else 0.0
    write_json(
        path,
        {
            "method": contender.name,
            "slice": scene.slice,
            "setting": scene.setting,
            "seed": scene.seed,
            "bytes_down": down,
            "bytes_up": up,
            "added_ms": answered.added_ms,
            "prompt_tokens": answered.prompt_tokens,
            "people": [
                {
                    "user_id": user.user_id,
                    "group": user.group,
                    "history": len(user.history),
                    "private_bytes": outcome["private_bytes"],
                    "seconds": outcome["seconds"],
                    "tokens": outcome["tokens"],
                    "curve": outcome["curve"],
                    "answers": outcome["queries"],
                }
                for user, outcome in zip(scene.people, answered.outcomes, strict=True)
            ],
        },
    )


def read_cells(folder: Path) -> tuple[Cell, ...]:
    """Return the finished cells of a comparison."""
    return tuple(
        _cell(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / "cells").glob("*/*/*/*.json"))
    )


def _cell(data: Mapping[str, Any]) -> Cell:
    return Cell(
        **{name: data[name] for name in Cell.__dataclass_fields__ if name != "people"},
        people=tuple(
            Person(
                **{
                    name: person[name]
                    for name in Person.__dataclass_fields__
                    if name not in ("curve", "answers")
                },
                curve=tuple((int(step), float(loss)) for step, loss in person["curve"]),
                answers=tuple(Answer(**answer) for answer in person["answers"]),
            )
            for person in data["people"]
        ),
    )
