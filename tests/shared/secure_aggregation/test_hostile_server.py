"""A hostile server's lists contradict each other or themselves: a device says nothing to them."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.errors import MesofedError
from shared.secure_aggregation.device_session import ContradictionError, DeviceSession
from shared.secure_aggregation.graph import threshold_of
from shared.secure_aggregation.messages import Delivery, DeviceKeys, Roster, Survivors

DEVICES = 9


def without(items: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return items[:place] + items[place + 1 :]


def put(items: tuple[Any, ...], place: int, item: Any) -> tuple[Any, ...]:
    return (*items[:place], item, *items[place + 1 :])


def hostile_roster(good: Roster, own: DeviceKeys, rng: random.Random) -> Roster:
    """Return a roster that no honest server makes: it is of another device, or of nobody."""
    at = rng.randrange(len(good.keys))
    key, other = good.keys[at], good.keys[at - 1]
    size = rng.choice([d for d in range(3, 60) if d != good.devices])
    return rng.choice(
        [
            replace(good, devices=size),
            replace(good, index=rng.choice([i for i in range(10_000) if i != good.index])),
            replace(good, needed=rng.choice([2, 1, 0, -1, good.devices + 1, 10**6])),
            replace(good, devices=10_001),
            replace(good, neighbours=without(good.neighbours, at), keys=without(good.keys, at)),
            replace(good, neighbours=put(good.neighbours, at, rng.randrange(9, 10_000))),
            replace(good, neighbours=put(good.neighbours, at, good.index)),
            replace(good, keys=put(good.keys, at, other)),
            replace(good, keys=put(good.keys, at, own)),
            replace(good, keys=put(good.keys, at, DeviceKeys(key.cipher, other.mask))),
            replace(good, keys=put(good.keys, at, DeviceKeys(key.mask, key.mask))),
            replace(good, keys=put(good.keys, at, DeviceKeys(bytes(32), key.mask))),
            replace(good, keys=put(good.keys, at, DeviceKeys(own.mask, key.mask))),
        ]
    )


def hostile_delivery(good: Delivery, index: int, rng: random.Random) -> Delivery:
    """Return a delivery from strangers, from the device itself, or from too few."""
    at = rng.randrange(len(good.senders))
    few = rng.randrange(threshold_of(DEVICES))
    chosen = sorted(rng.sample(range(len(good.senders)), few))
    stranger = rng.choice([index, *range(DEVICES, 10_000)])
    return rng.choice(
        [
            Delivery(put(good.senders, at, stranger), good.sealed),
            Delivery(tuple(good.senders[i] for i in chosen), tuple(good.sealed[i] for i in chosen)),
        ]
    )


def hostile_survivors(good: Survivors, index: int, rng: random.Random) -> Survivors:
    """Return lists that name too few, too many, strangers or the device itself."""
    everyone = (*good.survived, *good.dropped)
    at = rng.randrange(len(good.survived))
    few = rng.randrange(threshold_of(DEVICES))
    kept = tuple(sorted(rng.sample(everyone, few)))
    stranger = rng.choice([index, *range(DEVICES, 10_000)])
    return rng.choice(
        [
            replace(good, total=rng.choice([0, 1, 2, len(good.survived), DEVICES + 1, 10_000])),
            replace(good, survived=without(good.survived, at)),
            replace(good, survived=put(good.survived, at, stranger)),
            replace(good, dropped=(*good.dropped, stranger)),
            replace(good, survived=kept),
            replace(good, survived=kept, dropped=tuple(sorted(set(everyone) - set(kept)))),
            Survivors(good.total, (), everyone),
        ]
    )


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(ContradictionError):
        act()


def test_ten_thousand_contradictions_get_no_answer(secure_round: Any) -> None:
    a_round, rng = secure_round(DEVICES), random.Random(11)
    a_round.advertise()
    fresh = a_round.state[104]
    roster = a_round.server.roster(104)
    for _ in range(4_000):
        bad = hostile_roster(roster, fresh.keys(), rng)
        refused(lambda bad=bad: fresh.deal(bad, 3))  # type: ignore[misc]
    a_round.deal(gone=frozenset({101}))
    dealt, delivery = a_round.state[104], a_round.server.delivery(104)
    for _ in range(3_000):
        wrong = hostile_delivery(delivery, roster.index, rng)
        refused(lambda wrong=wrong: dealt.masked(wrong, [1] * 5))  # type: ignore[misc]
    a_round.mask(gone=frozenset({102}))
    masked, survivors = a_round.state[104], a_round.server.survivors(104)
    for _ in range(3_000):
        odd = hostile_survivors(survivors, roster.index, rng)
        refused(lambda odd=odd: masked.reveal(odd))  # type: ignore[misc]
    # None of it has done the honest sum any harm.
    opened = a_round.server.open(a_round.reveal())
    assert opened.total == a_round.truth(opened)


def test_stages_come_in_order(secure_round: Any) -> None:
    a_round = secure_round(5).until_masked()
    device: DeviceSession = a_round.state[100]
    assert device.delivery is not None
    fresh = DeviceSession(device.session, device.master)
    refused(lambda: fresh.masked(device.delivery, [1] * 5))  # type: ignore[arg-type]
    refused(lambda: fresh.reveal(a_round.server.survivors(100)))
    dealt = replace(fresh, roster=device.roster)
    refused(lambda: dealt.reveal(a_round.server.survivors(100)))


def test_no_stage_is_answered_a_second_time_with_something_else(secure_round: Any) -> None:
    a_round = secure_round(6).until_masked()
    a_round.reveal()
    device: DeviceSession = a_round.state[100]
    other = secure_round(6, seed=2).until_masked()
    refused(lambda: device.deal(other.server.roster(100), 3))
    refused(lambda: device.masked(other.server.delivery(100), a_round.vectors[100]))
    assert device.delivery is not None
    refused(lambda: device.masked(device.delivery, [0] * 5))  # type: ignore[arg-type]
    fewer = Delivery(device.delivery.senders[1:], device.delivery.sealed[1:])
    refused(lambda: device.masked(fewer, a_round.vectors[100]))


def test_where_all_have_met_the_total_is_that_of_the_survivors_named(secure_round: Any) -> None:
    a_round = secure_round(16).until_masked()
    device, good = a_round.state[100], a_round.server.survivors(100)
    assert good.total == len(good.survived) + 1 == 16
    # Ten neighbours and the device make a sum of eleven, whatever it is called.
    eleven = Survivors(16, good.survived[:10], tuple(sorted(good.survived[10:])))
    refused(lambda: device.reveal(eleven))
    assert device.reveal(good)


def test_another_round_s_shares_open_nothing(secure_round: Any) -> None:
    """The same devices and masters in two rounds: what was sealed in one is noise in the other."""
    one, two = secure_round(5), secure_round(5, release=2)
    for node in two.state:
        two.state[node] = replace(two.state[node], master=one.state[node].master)
    one.advertise()
    one.deal()
    two.advertise()
    two.deal()
    two.server = replace(two.server, dealt=dict(one.server.dealt))
    two.mask()
    assert two.server.open(two.reveal()).total is None


def test_a_small_sum_is_joined_only_if_the_device_s_own_settings_allow(secure_round: Any) -> None:
    a_round = secure_round(5, needed=4)
    a_round.advertise()
    roster = a_round.server.roster(100)
    with pytest.raises(MesofedError, match="at least 5 devices; got 4 of 5"):
        a_round.state[100].deal(roster, minimum=5)
    a_round.state[100].deal(roster, minimum=4)
