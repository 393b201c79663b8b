"""A secure sum: exact for those who stay, nothing of anyone, one of two secrets opened."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import MesofedError
from shared.secure_aggregation import masks, shamir
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.graph import threshold_of
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    reply_content,
    request_content,
)
from shared.secure_aggregation.server_session import ServerSession


@pytest.mark.parametrize("devices", [3, 4, 9, 103])
def test_the_sum_is_exact(secure_round: Any, devices: int) -> None:
    a_round = secure_round(devices).until_masked()
    opened = a_round.server.open(a_round.reveal())
    assert opened.devices == tuple(range(100, 100 + devices))
    assert opened.total == a_round.truth(opened)
    assert opened.wrong == opened.lost == ()


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(8, 14))
def test_the_sum_of_those_who_stay_is_exact_whenever_the_others_go(
    secure_round: Any, data: st.DataObject, devices: int
) -> None:
    """Of n devices n - threshold - 1 may go, in any of three stages."""
    a_round = secure_round(devices, seed=data.draw(st.integers(0, 999)))
    a_round.advertise()
    spare = devices - 1 - threshold_of(devices)
    goners = sorted(a_round.some(spare))
    first, second = sorted(data.draw(st.integers(0, spare)) for _ in range(2))
    a_round.deal(gone=frozenset(goners[:first]))
    a_round.mask(gone=frozenset(goners[first:second]))
    opened = a_round.server.open(a_round.reveal(gone=frozenset(goners[second:])))
    assert set(opened.devices) == a_round.state.keys() - set(goners[:second])
    assert opened.total == a_round.truth(opened)


def test_extremes_are_summed_without_overflow(secure_round: Any) -> None:
    a_round = secure_round(5, length=3)
    edge = 2**63 // 10_000 - 1
    a_round.vectors = {node: [edge, -edge, 0] for node in a_round.state}
    a_round.until_masked()
    opened = a_round.server.open(a_round.reveal())
    assert opened.total == (5 * edge, -5 * edge, 0)


def test_when_too_many_go_the_sum_stays_closed_and_names_them(
    secure_round: Any,
) -> None:
    a_round = secure_round(9).until_masked()
    stay = frozenset(sorted(a_round.state)[: threshold_of(9)])
    revealed = a_round.reveal(gone=frozenset(a_round.state) - stay)
    opened = a_round.server.open(revealed)
    assert opened.total is None
    # Those who answered lack one opener, themselves; the others have just enough.
    assert opened.lost == tuple(sorted(stay))


def test_a_sum_of_fewer_than_needed_is_never_begun_or_opened(secure_round: Any) -> None:
    a_round = secure_round(6, needed=5)
    a_round.advertise()
    a_round.deal()
    with pytest.raises(MesofedError, match="at least 5 devices; got 4"):
        a_round.mask(gone=frozenset({100, 101}))
    assert not a_round.server.masked
    with pytest.raises(MesofedError, match="Expected 7 to 10000 devices in a secure sum; got 6"):
        secure_round(6, needed=7).advertise()


def test_a_masked_vector_looks_like_random_bytes(secure_round: Any) -> None:
    """All devices send zeros: what the server sees is spread over all bytes, and never repeats."""
    a_round = secure_round(12, length=80)
    a_round.vectors = dict.fromkeys(a_round.state, [0] * 80)
    a_round.until_masked()
    seen = np.frombuffer(b"".join(v.data for v in a_round.server.masked.values()), np.uint8)
    counts = np.bincount(seen, minlength=256)
    expected = len(seen) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
    numbers = np.frombuffer(seen.tobytes(), np.uint64)
    assert len(set(numbers.tolist())) == len(numbers)


def test_without_one_device_s_seed_nothing_of_its_numbers_can_be_told(secure_round: Any) -> None:
    """All other secrets in hand, a device's vector is still under its own mask."""
    a_round = secure_round(5).until_masked()
    victim = 100
    device = a_round.state[victim]
    data = a_round.server.masked[a_round.server.nodes.index(victim)].data
    assert device.roster is not None
    open_masks = []
    for place, keys in zip(device.roster.neighbours, device.roster.keys, strict=True):
        other = a_round.state[a_round.server.nodes[place]]
        secret = masks.derive(other.master, other.session.context, "mask key")
        assert masks.public_key(secret) == keys.mask
        key = masks.agree(
            secret,
            device.keys().mask,
            device.session.context,
            "mask",
            *sorted((place, device.roster.index)),
        )
        assert key is not None
        pair = masks.mask(key, 5)
        open_masks.append(-pair if device.roster.index < place else pair)
    rest = masks.total([masks.from_bytes(data), *open_masks], 5)
    own = masks.mask(masks.derive(device.master, device.session.context, "seed"), 5)
    assert masks.from_ring(rest - own) == a_round.vectors[victim]
    assert all(abs(x) > 10**9 for x in masks.from_ring(rest))


def test_of_each_neighbour_one_secret_is_opened_and_never_both(secure_round: Any) -> None:
    a_round = secure_round(9)
    a_round.advertise()
    a_round.deal()
    a_round.mask(gone=frozenset({100, 101}))
    revealed = a_round.reveal()
    opened_seeds: dict[int, set[int]] = {}
    opened_keys: dict[int, set[int]] = {}
    for node, said in revealed.items():
        asked = a_round.server.survivors(node)
        assert not set(asked.survived) & set(asked.dropped)
        for place in asked.survived:
            opened_seeds.setdefault(a_round.server.nodes[place], set()).add(node)
        for place in asked.dropped:
            opened_keys.setdefault(a_round.server.nodes[place], set()).add(node)
        assert len(said.seed_shares) == len(asked.survived)
        assert len(said.key_shares) == len(asked.dropped)
    assert opened_keys.keys() == {100, 101}
    assert opened_seeds.keys() == a_round.state.keys() - {100, 101}
    # No later question makes a device open the other one.
    for node, device in a_round.state.items():
        if device.survivors is not None:
            swapped = replace(
                device.survivors,
                survived=device.survivors.dropped + device.survivors.survived[1:],
                dropped=device.survivors.survived[:1],
            )
            swapped = replace(swapped, survived=tuple(sorted(swapped.survived)))
            with pytest.raises(MesofedError, match="same survivors as before"):
                device.reveal(swapped)
            assert node in revealed


def test_what_is_opened_of_a_dropped_device_is_its_mask_key_alone(
    secure_round: Any,
) -> None:
    a_round = secure_round(7)
    a_round.advertise()
    a_round.deal()
    a_round.mask(gone=frozenset({100}))
    place = a_round.server.nodes.index(100)
    seeds, keys, _ = a_round.server._shares(a_round.reveal())
    assert place not in seeds
    secret = shamir.combine(keys[place], threshold_of(7))
    device = a_round.state[100]
    assert secret == masks.derive(device.master, device.session.context, "mask key")
    assert keys.keys() == {place}


def test_a_device_says_the_same_after_its_process_has_ended(secure_round: Any) -> None:
    a_round = secure_round(5)
    a_round.advertise()

    def again(device: DeviceSession) -> DeviceSession:
        return DeviceSession.from_bytes(device.to_bytes())

    for node, device in a_round.state.items():
        assert again(device) == device
        assert again(device).keys() == device.keys()
        roster = a_round.server.roster(node)
        after, dealt = device.deal(roster, 3)
        assert again(device).deal(roster, 3) == (after, dealt) == again(after).deal(roster, 3)
    a_round.deal()
    for node, device in a_round.state.items():
        delivery = a_round.server.delivery(node)
        after, masked = device.masked(delivery, a_round.vectors[node])
        assert again(after) == after
        assert again(after).masked(delivery, a_round.vectors[node])[1] == masked
    a_round.mask()
    for node, device in a_round.state.items():
        survivors = a_round.server.survivors(node)
        after, revealed = device.reveal(survivors)
        assert again(after) == after
        assert again(after).reveal(survivors)[1] == revealed


def test_a_server_goes_on_after_its_process_has_ended(secure_round: Any) -> None:
    a_round = secure_round(6)
    for step in (a_round.advertise, a_round.deal, a_round.mask):
        step()
        kept = ServerSession.from_bytes(a_round.server.to_bytes())
        assert kept == a_round.server
        a_round.server = kept
    opened = a_round.server.open(a_round.reveal())
    assert opened.total == a_round.truth(opened)


@pytest.mark.parametrize("kind", [DeviceSession, ServerSession])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"null", b'{"session": {}}', b"\xff"])
def test_a_damaged_session_is_told_so(kind: type, data: bytes) -> None:
    with pytest.raises(MesofedError, match="damaged"):
        kind.from_bytes(data)


def test_two_sessions_have_nothing_in_common(secure_round: Any) -> None:
    """The same master in another session makes other keys, shares and masks."""
    device = secure_round(4).state[100]
    for change in ({"run": 2}, {"release": 2}, {"nonce": b"n" * 32}, {"noise_multiplier": 2.0}):
        other = replace(device, session=replace(device.session, **change))
        assert other.session.context != device.session.context
        mine, theirs = device.keys(), other.keys()
        assert {mine.cipher, mine.mask}.isdisjoint({theirs.cipher, theirs.mask})


@pytest.mark.slow
def test_a_thousand_devices_of_which_a_tenth_drop_out(
    secure_round: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from shared.flower_internals import content_to_bytes

    started = time.process_time()
    a_round = secure_round(1_000, length=82, needed=500)
    a_round.advertise()
    a_round.deal()
    gone = a_round.some(100)
    a_round.mask(gone=gone)
    revealed = a_round.reveal()
    opening = time.process_time()
    opened = a_round.server.open(revealed)
    ended = time.process_time()
    assert set(opened.devices) == a_round.state.keys() - gone
    assert opened.total == a_round.truth(opened)
    node = opened.devices[0]
    place = a_round.server.nodes.index(node)
    sizes = {
        KEYS: a_round.state[node].keys(),
        SHARES: a_round.server.dealt[place],
        MASKED: a_round.server.masked[place],
        UNMASK: revealed[node],
    }
    up = {name: len(content_to_bytes(reply_content(said))) for name, said in sizes.items()}
    asked = {
        KEYS: None,
        SHARES: a_round.server.roster(node),
        MASKED: a_round.server.delivery(node),
        UNMASK: a_round.server.survivors(node),
    }
    session = a_round.server.session
    down = {name: len(content_to_bytes(request_content(session, b))) for name, b in asked.items()}
    with capsys.disabled():
        print(
            f"\n1,000 devices, 100 gone: {ended - started:.1f} s of one core, of it the server's "
            f"opening {ended - opening:.1f} s; {sum(up.values()):,} bytes up a device: {up}; "
            f"{sum(down.values()):,} down: {down}"
        )
    assert sum(up.values()) < 20_000
    assert sum(down.values()) < 20_000
