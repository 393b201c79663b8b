"""Signatures: true by another implementation, and no change to a signed release is taken."""

import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import MesofedError
from shared.signature import (
    MANIFEST,
    MAX_ROTATIONS,
    SIGNATURE,
    Signer,
    key_text,
    read_key_text,
    rotation,
    sign_release,
    verify_signature,
)

FILES = {MANIFEST: b'{"format": 1, "release": 7}', "population.safetensors": b"\x01\x02"}


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(bytes([number])).digest())


def public(number: int) -> str:
    return key_text(key(number).public_key())


def chain(*numbers: int) -> Signer:
    """A signer whose keys followed one another."""
    links = tuple(
        rotation(key(old), key(new).public_key()) for old, new in itertools.pairwise(numbers)
    )
    return Signer(key(numbers[-1]), links)


def changed(files: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    content = json.loads(files[SIGNATURE])
    change(content)
    return {**files, SIGNATURE: json.dumps(content).encode()}


def refused(files: dict[str, bytes], pinned: str) -> str:
    with pytest.raises(MesofedError) as caught:
        verify_signature(files, pinned)
    return str(caught.value)


# Ed25519 by the letter of RFC 8032, section 5.1, in plain integers.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
Point = tuple[int, int, int, int]


def add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(scalar: int, p: Point) -> Point:
    total: Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = add(total, p)
        p, scalar = add(p, p), scalar >> 1
    return total


def point(data: bytes) -> Point:
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0, "no point of the curve"
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def holds(public_key: bytes, message: bytes, signature: bytes) -> bool:
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(r + public_key + message).digest(), "little") % ORDER
    left, right = times(s, BASE), add(point(r), times(h, point(public_key)))
    equal = (left[0] * right[2] - right[0] * left[2]) % P == 0
    return s < ORDER and equal and (left[1] * right[2] - right[1] * left[2]) % P == 0


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


# RFC 8032, section 7.1, tests 1 to 3: secret key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_the_peer_and_the_library_agree_with_the_vectors_of_the_rfc(
    vector: tuple[str, str, str, str],
) -> None:
    secret, expected, message, signature = map(bytes.fromhex, vector)
    mine = Ed25519PrivateKey.from_private_bytes(secret)
    assert raw(key_text(mine.public_key())) == expected
    assert mine.sign(message) == signature
    assert holds(expected, message, signature)
    assert not holds(expected, message + b"!", signature)


def test_a_signed_release_and_its_rotations_hold_by_another_implementation() -> None:
    files = sign_release(FILES, chain(1, 2, 3))
    content = json.loads(files[SIGNATURE])
    assert set(content) == {"format", "key", "signature", "rotations"}
    signed = b"mesofed release v1\n" + FILES[MANIFEST]
    assert holds(raw(content["key"]), signed, raw(content["signature"]))
    assert [step["old"] for step in content["rotations"]] == [public(1), public(2)]
    for step in content["rotations"]:
        old, new = raw(step["old"]), raw(step["new"])
        said = b"mesofed key rotation v1\n" + old + new
        assert holds(old, said, raw(step["signature"]))
    assert {name: files[name] for name in FILES} == FILES


# What is not taken


@pytest.mark.parametrize("where", range(len(FILES[MANIFEST])))
def test_a_changed_byte_of_the_manifest_is_refused(where: int) -> None:
    files = sign_release(FILES, chain(1))
    manifest = bytearray(files[MANIFEST])
    manifest[where] ^= 1
    assert "not that of the key" in refused({**files, MANIFEST: bytes(manifest)}, public(1))


def test_a_flipped_bit_anywhere_in_the_signature_file_is_refused() -> None:
    files = sign_release(FILES, chain(1, 2, 3))
    assert verify_signature(files, public(1)) == public(3)
    for where in range(len(files[SIGNATURE])):
        for bit in range(8):
            data = bytearray(files[SIGNATURE])
            data[where] ^= 1 << bit
            # A space between fields may become another kind of space, and that is all.
            if json_or_none(bytes(data)) != json.loads(files[SIGNATURE]):
                refused({**files, SIGNATURE: bytes(data)}, public(1))


def json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize("field", ["format", "key", "signature", "rotations"])
def test_every_field_is_needed_and_no_other_is_taken(field: str) -> None:
    files = sign_release(FILES, chain(1, 2))
    refused(changed(files, lambda content: content.pop(field)), public(1))
    refused(changed(files, lambda content: content.update({field + "s": 1})), public(1))
    refused(changed(files, lambda content: content.update({field: None})), public(1))


@pytest.mark.parametrize("field", ["old", "new", "signature"])
def test_every_field_of_a_rotation_counts(field: str) -> None:
    files, other = sign_release(FILES, chain(1, 2)), sign_release(FILES, chain(3, 4))
    theirs = json.loads(other[SIGNATURE])["rotations"][0][field]
    refused(changed(files, lambda content: content["rotations"][0].pop(field)), public(1))
    refused(
        changed(files, lambda content: content["rotations"][0].update({field: theirs})), public(1)
    )


def test_a_release_without_signature_or_manifest_is_refused() -> None:
    files = sign_release(FILES, chain(1))
    assert "got none" in refused(FILES, public(1))
    assert "not that of the key" in refused(
        {name: data for name, data in files.items() if name != MANIFEST}, public(1)
    )


def test_another_spelling_of_the_same_key_is_refused() -> None:
    """Base64 has spare bits: by them a stranger could make a device pin another text."""

    def respelled(text: str) -> str:
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        place = text.rindex("=") - 1 if text.count("=") == 1 else text.index("=") - 1
        other = text[:place] + letters[letters.index(text[place]) ^ 1] + text[place + 1 :]
        assert other != text
        assert base64.b64decode(other) == base64.b64decode(text)
        return other

    files = sign_release(FILES, chain(1, 2))

    def respell(content: dict[str, Any]) -> None:
        content["key"] = content["rotations"][0]["new"] = respelled(content["key"])

    refused(changed(files, respell), public(1))
    refused(
        changed(files, lambda content: content.update(signature=respelled(content["signature"]))),
        public(1),
    )
    with pytest.raises(MesofedError, match="public key"):
        read_key_text(respelled(public(1)))


def test_a_signature_for_one_purpose_serves_no_other() -> None:
    old, new = key(1), key(2)
    both = raw(public(1)) + raw(public(2))
    # A server that signs a manifest which is a rotation by its bytes, and the reverse.
    as_manifest = sign_release({MANIFEST: both}, Signer(old))
    stolen = json.loads(as_manifest[SIGNATURE])["signature"]
    step = rotation(old, new.public_key())
    files = sign_release(FILES, replace(chain(2), rotations=(step,)))
    assert verify_signature(files, public(1)) == public(2)
    forged = changed(files, lambda content: content["rotations"][0].update(signature=stolen))
    refused(forged, public(1))
    refused(changed(as_manifest, lambda c: c.update(signature=step.signature)), public(1))
    plain = base64.b64encode(old.sign(FILES[MANIFEST])).decode()
    refused(changed(sign_release(FILES, chain(1)), lambda c: c.update(signature=plain)), public(1))


# Rotations


def test_a_device_follows_a_chain_from_any_of_its_keys() -> None:
    files = sign_release(FILES, chain(1, 2, 3, 4))
    for pinned in (1, 2, 3, 4):
        assert verify_signature(files, public(pinned)) == public(4)


def test_an_old_key_is_refused_once_the_new_one_is_pinned() -> None:
    for signer in (chain(1), Signer(key(1), chain(1, 2).rotations), chain(3, 1)):
        assert public(2) in refused(sign_release(FILES, signer), public(2))


def test_a_chain_out_of_order_or_with_a_link_missing_is_refused() -> None:
    whole = chain(1, 2, 3)
    first, second = whole.rotations
    for links in ((second, first), (first,), (second,), ()):
        refused(sign_release(FILES, Signer(key(3), links)), public(1))
    # From the middle on, what was before does not matter.
    assert verify_signature(sign_release(FILES, Signer(key(3), (second,))), public(2)) == public(3)


def test_a_broken_link_is_refused() -> None:
    for index in (0, 1):
        links = list(chain(1, 2, 3).rotations)
        links[index] = links[index].model_copy(update={"signature": links[1 - index].signature})
        refused(sign_release(FILES, Signer(key(3), tuple(links))), public(1))


def test_a_stranger_cannot_vouch_for_a_key_of_theirs() -> None:
    stranger = 9
    refused(sign_release(FILES, chain(stranger)), public(1))
    refused(sign_release(FILES, chain(8, stranger)), public(1))
    # Their word, in the name of the pinned key.
    forged = rotation(key(stranger), key(stranger).public_key()).model_copy(
        update={"old": public(1)}
    )
    refused(sign_release(FILES, Signer(key(stranger), (forged,))), public(1))
    # Their key at the end of a true chain.
    links = (*chain(1, 2).rotations, rotation(key(stranger), key(stranger).public_key()))
    refused(sign_release(FILES, Signer(key(stranger), links)), public(1))


def test_as_many_rotations_as_a_server_may_make_are_followed_and_no_more() -> None:
    numbers = range(MAX_ROTATIONS + 1)
    assert verify_signature(sign_release(FILES, chain(*numbers)), public(0)) == public(64)
    longer = chain(*numbers, 65)
    steps = [step.model_dump() for step in longer.rotations]
    files = sign_release(FILES, Signer(longer.key))
    files = changed(files, lambda content: content.update(rotations=steps))
    assert "malformed" in refused(files, public(0))


# Anything at all


def test_an_oversized_signature_is_refused_whatever_is_in_it() -> None:
    files = sign_release(FILES, chain(1))
    padded = {**files, SIGNATURE: files[SIGNATURE] + b" " * (1 << 20)}
    assert "malformed" in refused(padded, public(1))
    deep = b'{"format":' * 100_000
    assert "malformed" in refused({**files, SIGNATURE: deep}, public(1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["format", "key", "signature", "rotations", "more"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_as_a_signature_ends_in_a_refusal(data: bytes) -> None:
    refused({**FILES, SIGNATURE: data}, public(1))


@settings(max_examples=300, deadline=None)
@given(FIELDS, JSON)
def test_whatever_stands_in_a_field_ends_in_a_refusal(field: str, value: Any) -> None:
    files = sign_release(FILES, chain(1, 2))
    before = json.loads(files[SIGNATURE])
    other = changed(files, lambda content: content.update({field: value}))
    if json.loads(other[SIGNATURE]) == before:
        return
    refused(other, public(1))


@pytest.mark.parametrize(
    "text", ["", "x", "é" * 44, "A" * 44, "A" * 42 + "=", "A" * 44 + "=", "\0"]
)
def test_what_is_no_public_key_is_said_to_be_none(text: str) -> None:
    with pytest.raises(MesofedError, match="Expected a server's public key"):
        read_key_text(text)


def test_a_public_key_is_read_as_it_was_written() -> None:
    assert key_text(read_key_text(f" {public(1)}\n")) == public(1)
