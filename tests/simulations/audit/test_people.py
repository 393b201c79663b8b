"""Halves are of one person, of one size, drawn by lot."""

import pytest

from shared.corpus.synthetic import synthetic_users
from shared.errors import MesofedError
from simulations.audit.people import LEAST_ITEMS, halve, halved

USERS = synthetic_users(40, groups=2, seed=3)


def test_the_two_halves_are_a_person_s_items_each_once() -> None:
    for user in USERS:
        person = halve(user, seed=1)
        given, kept = person.given.history, person.kept
        assert len(given) == len(kept) == len(user.history) // 2
        both = {item.item_id for item in (*given, *kept)}
        assert both == {item.item_id for item in user.history[len(user.history) % 2 :]}
        assert person.given.user_id == user.user_id
        assert person.given.queries == ()
        assert [item for item in user.history if item in given] == list(given), "oldest first"


def test_the_lot_is_fair_and_the_seed_s() -> None:
    long = [user for user in USERS if len(user.history) % 2 == 0]
    first_half = sum(
        user.history.index(item) < len(user.history) // 2
        for user in long
        for item in halve(user, seed=1).given.history
    )
    given = sum(len(user.history) // 2 for user in long)
    assert 0.4 < first_half / given < 0.6
    assert halve(USERS[0], 1) == halve(USERS[0], 1)
    assert any(halve(user, 1) != halve(user, 2) for user in USERS)


def test_short_histories_are_left_out_and_too_few_people_refused() -> None:
    people = halved(USERS, 1, 2, "server")
    enough = [user for user in USERS if len(user.history) >= LEAST_ITEMS]
    assert [person.given.user_id for person in people] == [user.user_id for user in enough]
    with pytest.raises(MesofedError, match="at least 100 people on the device's side"):
        halved(USERS, 1, 100, "device")
