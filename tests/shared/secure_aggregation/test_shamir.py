"""Shares open a secret, fewer do not, and wrong ones do not pass for right."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sympy import GF, Poly, Symbol, isprime

from shared.secure_aggregation.shamir import PRIME, SHARE_BYTES, combine, split

SEED = b"s" * 32


def test_the_field_is_a_field_that_holds_every_secret() -> None:
    assert isprime(PRIME)
    assert not any(isprime(2**256 + k) for k in range(1, 297))
    assert PRIME < 2 ** (8 * SHARE_BYTES)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 4), st.randoms())
def test_any_threshold_of_shares_opens_the_secret(
    secret: bytes, threshold: int, more: int, rng: object
) -> None:
    places = tuple(rng.sample(range(10_000), threshold + more))  # type: ignore[attr-defined]
    shares = split(secret, threshold, places, SEED)
    chosen = rng.sample(places, threshold)  # type: ignore[attr-defined]
    assert combine({place: shares[place] for place in chosen}, threshold) == secret
    assert combine(shares, threshold) == secret
    fewer = {place: shares[place] for place in chosen[1:]}
    assert combine(fewer, threshold) is None


def test_shares_lie_on_a_polynomial_of_the_threshold_s_degree() -> None:
    secret = bytes(range(32))
    shares = split(secret, 3, (0, 1, 4, 8), SEED)
    x = Symbol("x")
    points = [(place + 1, int.from_bytes(share, "big")) for place, share in shares.items()]
    for chosen in combinations(points, 3):
        poly = Poly(0, x, domain=GF(PRIME, symmetric=False))
        for a, value in chosen:
            term = Poly(value, x, domain=GF(PRIME, symmetric=False))
            for b, _ in chosen:
                if b != a:
                    term *= Poly((x - b) * pow(a - b, -1, PRIME), x, domain=GF(PRIME))
            poly += term
        assert poly.eval(0) % PRIME == int.from_bytes(secret, "big")


def test_one_share_less_fits_every_secret() -> None:
    """Two shares of three: for any secret there is a third share, so they tell nothing of it."""
    shares = split(b"\x07" * 32, 3, (0, 1, 2), SEED)
    two = {place: shares[place] for place in (0, 1)}
    found = {combine({**two, 2: bytes(32) + bytes([n])}, 3) for n in range(50)}
    assert len(found) == 50


def test_the_same_seed_deals_the_same_shares_and_another_does_not() -> None:
    assert split(b"x" * 32, 3, (1, 2, 3), SEED) == split(b"x" * 32, 3, (1, 2, 3), SEED)
    other = split(b"x" * 32, 3, (1, 2, 3), b"t" * 32)
    assert not set(other.values()) & set(split(b"x" * 32, 3, (1, 2, 3), SEED).values())


@pytest.mark.parametrize(
    ("secret", "threshold", "places"),
    [(b"short", 2, (1, 2)), (b"x" * 32, 3, (1, 2)), (b"x" * 32, 0, (1,)), (b"x" * 32, 2, (1, 1))],
)
def test_what_cannot_be_shared_is_refused(
    secret: bytes, threshold: int, places: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="a sharing needs"):
        split(secret, threshold, places, SEED)


def test_shares_that_open_no_secret_are_none() -> None:
    high = {0: (2**256 + 5).to_bytes(SHARE_BYTES, "big")}
    assert combine(high, 1) is None
