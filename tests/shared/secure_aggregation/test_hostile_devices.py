"""A hostile device costs a sum itself, as far as the server can see; what it cannot see is told."""

from dataclasses import replace
from typing import Any

import pytest

from shared.protocol import ReplyError
from shared.secure_aggregation import masks, shamir
from shared.secure_aggregation.messages import (
    NO_SHARE,
    SEALED_BYTES,
    Dealt,
    DeviceKeys,
    MaskedVector,
    Revealed,
)
from shared.secure_aggregation.server_session import NO_KEY


def changed(share: bytes) -> bytes:
    return share[:-1] + bytes([share[-1] ^ 1])


@pytest.mark.parametrize("bad", [bytes(32), bytes([1]) + bytes(31)])
def test_a_key_that_is_none_or_another_s_costs_the_one_that_sent_it(
    secure_round: Any, bad: bytes
) -> None:
    a_round = secure_round(6)
    keys = {node: device.keys() for node, device in a_round.state.items()}
    keys[102] = DeviceKeys(bad, keys[102].mask)
    keys[104] = DeviceKeys(keys[104].cipher, keys[100].mask)
    server, refused = a_round.server.advertise(keys)
    assert refused == {102: NO_KEY, 104: NO_KEY}
    assert set(server.nodes) == {100, 101, 103, 105}


def test_replies_of_another_length_are_refused(secure_round: Any) -> None:
    a_round = secure_round(6).until_masked()
    dealt = a_round.server.dealt[a_round.server.nodes.index(100)]
    for wrong in (
        Dealt(dealt.seed_commitment, dealt.sealed[1:], dealt.commitments[1:]),
        Dealt(dealt.seed_commitment, dealt.sealed * 2, dealt.commitments * 2),
    ):
        with pytest.raises(ReplyError):
            a_round.server.check_dealt(100, wrong)
    for data in (b"", bytes(32), bytes(48)):
        with pytest.raises(ReplyError):
            a_round.server.check_masked(MaskedVector(data))
    said = a_round.reveal()[100]
    for wrong_shares in (
        Revealed(said.seed_shares[1:], said.key_shares),
        Revealed(said.seed_shares, (NO_SHARE,)),
    ):
        with pytest.raises(ReplyError):
            a_round.server.check_revealed(100, wrong_shares)


def test_wrong_shares_are_caught_and_the_sum_is_exact_without_them(secure_round: Any) -> None:
    a_round = secure_round(12)
    a_round.advertise()
    a_round.deal()
    a_round.mask(gone=frozenset({111}))
    revealed = a_round.reveal()
    liars = (101, 103, 107)
    for node in liars:
        said = revealed[node]
        revealed[node] = Revealed(
            tuple(map(changed, said.seed_shares)), tuple(map(changed, said.key_shares))
        )
    opened = a_round.server.open(revealed)
    assert opened.wrong == liars
    assert opened.total == a_round.truth(opened)


def test_shares_that_do_not_open_are_not_held_against_those_who_got_them(
    secure_round: Any,
) -> None:
    """A device seals garbage to a third of its neighbours: the others open its secrets."""
    a_round = secure_round(12)
    a_round.advertise()
    a_round.deal()
    place = a_round.server.nodes.index(105)
    dealt = a_round.server.dealt[place]
    garbage = (bytes(SEALED_BYTES),) * 4 + dealt.sealed[4:]
    a_round.server.dealt[place] = replace(dealt, sealed=garbage)
    a_round.mask()
    opened = a_round.server.open(a_round.reveal())
    assert opened.wrong == ()
    assert opened.total == a_round.truth(opened)


def test_a_device_whose_shares_are_all_garbage_loses_the_sum_and_is_named(
    secure_round: Any,
) -> None:
    """The limit of the protocol: nobody sees it before the masks are to come off."""
    a_round = secure_round(8)
    a_round.advertise()
    a_round.deal()
    place = a_round.server.nodes.index(105)
    dealt = a_round.server.dealt[place]
    a_round.server.dealt[place] = replace(dealt, sealed=(bytes(SEALED_BYTES),) * 7)
    a_round.mask()
    opened = a_round.server.open(a_round.reveal())
    assert opened.total is None
    assert opened.lost == (105,)


def test_a_device_that_shares_another_secret_is_named(secure_round: Any) -> None:
    a_round = secure_round(6)
    a_round.advertise()
    a_round.deal()
    server = a_round.server
    place = server.nodes.index(103)
    false = replace(server.dealt[place], seed_commitment=b"f" * 32)
    server.dealt[place] = false
    a_round.mask()
    opened = a_round.server.open(a_round.reveal())
    assert (opened.total, opened.lost) == (None, (103,))


def test_what_a_hostile_device_may_add_is_bounded_by_nothing_but_the_modulus(
    secure_round: Any,
) -> None:
    """Told plainly: nobody sees its numbers, so the sum carries them; curation bounds their use."""
    a_round = secure_round(5)
    a_round.vectors[102] = [2**40] * a_round.length
    a_round.until_masked()
    opened = a_round.server.open(a_round.reveal())
    assert opened.total == a_round.truth(opened)
    assert opened.total is not None
    assert max(opened.total) > 2**39


def test_a_share_above_the_prime_says_that_there_is_none() -> None:
    assert int.from_bytes(NO_SHARE, "big") > shamir.PRIME
    assert len(NO_SHARE) == shamir.SHARE_BYTES
    assert masks.NUMBER_BYTES * 8 == 64
