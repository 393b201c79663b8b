"""Masks: agreed by two, known to no third, exact modulo 2^64."""

from hashlib import sha256

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from shared.secure_aggregation import masks

A, B, CONTEXT = b"a" * 32, b"b" * 32, b"c" * 32
SMALL_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def test_two_devices_agree_and_a_third_does_not() -> None:
    mine = masks.agree(A, masks.public_key(B), CONTEXT, "mask", 1, 2)
    assert mine == masks.agree(B, masks.public_key(A), CONTEXT, "mask", 1, 2)
    shared = X25519PrivateKey.from_private_bytes(A).exchange(
        X25519PublicKey.from_public_bytes(masks.public_key(B))
    )
    wanted = HKDFExpand(SHA256(), 32, CONTEXT + b"mask|1|2").derive(sha256(shared).digest())
    assert mine == wanted
    others = [
        masks.agree(A, masks.public_key(b"d" * 32), CONTEXT, "mask", 1, 2),
        masks.agree(A, masks.public_key(B), b"x" * 32, "mask", 1, 2),
        masks.agree(A, masks.public_key(B), CONTEXT, "mask", 1, 3),
        masks.agree(A, masks.public_key(B), CONTEXT, "shares", 1, 2),
    ]
    assert mine not in others
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_a_key_of_small_order_is_no_key(public: bytes) -> None:
    assert masks.agree(A, public, CONTEXT, "mask") is None


def test_a_mask_is_chacha20_s_keystream() -> None:
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter all zero.
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert masks.to_bytes(masks.mask(bytes(32), 4)) == expected
    assert np.array_equal(masks.mask(A, 3), masks.mask(A, 9)[:3])
    assert not np.any(masks.mask(A, 9) == masks.mask(B, 9))


whole = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6)


@given(whole)
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    ring = masks.to_ring(numbers)
    assert masks.from_ring(ring) == numbers
    assert masks.from_ring(masks.from_bytes(masks.to_bytes(ring))) == numbers
    assert masks.from_ring(masks.to_ring(x + 2**64 for x in numbers)) == numbers


def test_the_sum_of_ten_thousand_extremes_is_exact() -> None:
    """Every device at its bound and its noise cut at 2^40: no overflow, on both sides."""
    devices, edge = 10_000, 10_000 + 2**40
    for value in (edge, -edge):
        total = masks.total([masks.to_ring([value, 1])] * devices, 2)
        assert masks.from_ring(total) == [devices * value, devices]
        assert abs(devices * value) < 2**63


def test_a_sealed_share_opens_for_its_key_and_context_alone() -> None:
    sealed = masks.seal_share(A, b"share", CONTEXT)
    assert masks.open_share(A, sealed, CONTEXT) == b"share"
    assert masks.open_share(B, sealed, CONTEXT) is None
    assert masks.open_share(A, sealed, b"other") is None
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        assert masks.open_share(A, changed, CONTEXT) is None
