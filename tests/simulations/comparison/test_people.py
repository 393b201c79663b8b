"""Who is the server's and who is asked."""

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
