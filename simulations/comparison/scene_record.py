"""What the report shows of a scene beside its cells: people, places, routing, some questions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from shared.atomic_file import write_json
from shared.corpus.user import User
from simulations.comparison.scene import Scene

QUESTIONS = 3
"""People whose questions are kept, to show answers side by side."""


@dataclass(frozen=True)
class Placed:
    """One person in the embedding space.

    Attributes
    ----------
    side : str
        ``server`` or ``device``.
    group : int or None
        Latent group, if the corpus knows it.
    place : tuple of float
        Unit vector.
    experts : tuple of float
        Router weights.
    """

    user_id: str
    side: str
    group: int | None
    place: tuple[float, ...]
    experts: tuple[float, ...]


@dataclass(frozen=True)
class SceneRecord:
    """One scene: who is where, and the texts of some questions by query id."""

    slice: str
    setting: str
    seed: int
    people: tuple[Placed, ...]
    questions: dict[str, str]


def record_path(folder: Path, scene: Scene) -> Path:
    """Return where a scene's record lies in a comparison's folder."""
    return folder / "scenes" / f"{scene.slice}-{scene.setting}-{scene.seed}.json"


def write_record(folder: Path, scene: Scene, released: bool) -> None:
    """Keep what the report shows of a scene, if it is not kept yet.

    Parameters
    ----------
    released : bool
        Whether any method takes more of a release than the population LoRA; if none does, there is
        no embedding space and nobody is placed.
    """
    path = record_path(folder, scene)
    if path.exists():
        return
    questions = {
        f"{user.user_id}/{query.query_id}": query.text
        for user in scene.people[:QUESTIONS]
        for query in user.queries
    }
    write_json(
        path,
        {
            "slice": scene.slice,
            "setting": scene.setting,
            "seed": scene.seed,
            "people": _people(scene) if released else [],
            "questions": questions,
        },
    )


def _people(scene: Scene) -> list[dict[str, object]]:
    release = scene.release
    asked = {user.user_id for user in scene.people}
    server = [i for i, user in enumerate(scene.server) if user.user_id not in asked]
    places = release.space.place(scene.server_embeddings[server])
    own = release.space.place(scene.embeddings)
    return [
        *_placed("server", [scene.server[i] for i in server], places, release.router(places)),
        *_placed("device", scene.people, own, release.router(own)),
    ]


def _placed(
    side: str, users: Sequence[User], places: Tensor, gates: Tensor
) -> list[dict[str, object]]:
    return [
        {
            "user_id": user.user_id,
            "side": side,
            "group": user.group,
            "place": place,
            "experts": weights,
        }
        for user, place, weights in zip(users, places.tolist(), gates.tolist(), strict=True)
    ]


def read_records(folder: Path) -> tuple[SceneRecord, ...]:
    """Return the records of a comparison's scenes."""
    records = []
    for path in sorted((folder / "scenes").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        people = tuple(
            Placed(
                person["user_id"],
                person["side"],
                person["group"],
                tuple(person["place"]),
                tuple(person["experts"]),
            )
            for person in data["people"]
        )
        records.append(
            SceneRecord(data["slice"], data["setting"], data["seed"], people, data["questions"])
        )
    return tuple(records)
