"""Who is the server's and who is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.base_model import BaseModel
from shared.corpus.user import User
from simulations.comparison.config import ComparisonConfig
from simulations.comparison.people import describe, divide, first_axis, held_by_server

CONFIG: dict[str, Any] = {
    "corpus": {"server_users": 8, "device_users": 4, "max_history": 6, "groups": 2, "task": ""},
    "base": {"name": "tiny"},
}


def config(**changes: Any) -> ComparisonConfig:
    return ComparisonConfig.model_validate({**CONFIG, **changes})


def ids(users: tuple[User, ...]) -> set[str]:
    return {user.user_id for user in users}


def test_a_sparse_slice_keeps_people_and_their_newest_items(base: BaseModel) -> None:
    whole, sparse = divide(config(), "all", 3, base), divide(config(), "sparse-2", 3, base)
    assert sparse.server == whole.server
    for full, cut in zip(whole.device, sparse.device, strict=True):
        assert cut.history == full.history[-2:]
        assert cut.queries == full.queries


def test_a_shifted_slice_divides_the_same_people_along_what_tells_them_apart(
    base: BaseModel,
) -> None:
    whole, shifted = divide(config(), "all", 3, base), divide(config(), "shifted", 3, base)
    assert ids((*shifted.server, *shifted.device)) == ids((*whole.server, *whole.device))
    assert len(shifted.device) == 4

    def distance(server: tuple[User, ...], device: tuple[User, ...]) -> float:
        mix = describe((*server, *device), base)
        return float((mix[: len(server)].mean(0) - mix[len(server) :].mean(0)).norm())

    assert distance(shifted.server, shifted.device) > distance(whole.server, whole.device)


def test_the_axis_is_that_of_greatest_spread_whatever_its_sign() -> None:
    line = torch.tensor([[0.0, 0.0], [1.0, 0.1], [9.0, -0.1], [2.0, 0.0]])
    assert torch.argsort(first_axis(line)).tolist() == [0, 1, 3, 2]
    assert torch.argsort(first_axis(-line)).tolist() == [0, 1, 3, 2]


def test_choosing_settings_touches_no_device_user(base: BaseModel) -> None:
    devices = ids(divide(config(), "all", 3, base).device)
    chosen = divide(config(people="validation"), "all", 3, base)
    assert not devices & ids((*chosen.server, *chosen.device))
    assert len(chosen.server) == 5
    assert len(chosen.device) == 3


def written(tmp_path: Path, people: int) -> ComparisonConfig:
    """Return a comparison over a file of so many people."""
    path = tmp_path / "people.jsonl"
    lines = [
        {
            "user_id": f"u{i}",
            "task": "LaMP_4",
            "profile": [{"id": "1", "text": f"text {i}", "title": f"title {i}"}],
            "query": [
                {
                    "id": "q",
                    "input": f"Generate a headline for the following article: {i}",
                    "gold": f"gold {i}",
                }
            ],
        }
        for i in range(people)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    corpus = {"source": "jsonl", "path": str(path), "server_users": 8, "device_users": 4}
    return config(corpus=corpus)


def test_server_users_are_the_same_under_every_seed_and_everybody_else_is_asked_in_turn(
    base: BaseModel, tmp_path: Path
) -> None:
    of_file = written(tmp_path, 20)
    turns = [divide(of_file, "all", seed, base) for seed in (7, 8, 9)]
    assert len({frozenset(ids(turn.server)) for turn in turns}) == 1
    asked = [ids(turn.device) for turn in turns]
    assert [len(group) for group in asked] == [4, 4, 4]
    assert set.union(*asked) == {f"u{i}" for i in range(20)} - ids(turns[0].server)


def test_whoever_helped_to_choose_settings_is_asked_under_no_seed(
    base: BaseModel, tmp_path: Path
) -> None:
    of_file = written(tmp_path, 14)  # fewer than all turns would take
    seeds = range(12)
    asked = set.union(*(ids(divide(of_file, "all", seed, base).device) for seed in seeds))
    validation = of_file.model_copy(update={"people": "validation"})
    chosen = [divide(validation, "all", seed, base) for seed in seeds]
    helped = set.union(*(ids((*split.server, *split.device)) for split in chosen))
    assert not asked & helped
    assert set.union(*(ids(split.device) for split in chosen)) == helped
    assert all(not ids(split.server) & ids(split.device) for split in chosen)


def test_the_server_holds_histories_of_device_users_only_if_centralized_never_queries(
    base: BaseModel,
) -> None:
    people = divide(config(), "all", 3, base)
    assert held_by_server(people, "federated") == people.server
    held = held_by_server(people, "centralized")
    added = held[len(people.server) :]
    assert [user.history for user in added] == [user.history for user in people.device]
    assert all(user.queries == () for user in added)


def test_every_seed_makes_synthetic_people_of_its_own(base: BaseModel) -> None:
    assert not ids(divide(config(), "all", 3, base).device) & ids(
        divide(config(), "all", 4, base).device
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("slices", ["sparse-0"]), ("slices", []), ("methods", ["mesa"]), ("seeds", [])],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        config(**{field: value})
