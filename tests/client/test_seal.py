"""Sealed files: AES-GCM as published, and nothing else than what was written ever opens."""

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from client.seal import KEY_BYTES, OPEN, DamagedError, NewerError, Seal
from shared.errors import MesofedError

KEY = bytes(range(KEY_BYTES))


# AES-256-GCM by the letter of FIPS 197 and NIST SP 800-38D, in plain integers.


def _double(byte: int) -> int:
    return (byte << 1 ^ (0x11B if byte & 0x80 else 0)) & 0xFF


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        product, a, b = product ^ (a if b & 1 else 0), _double(a), b >> 1
    return product


def _substitute(byte: int) -> int:
    inverse = next((x for x in range(256) if _times(byte, x) == 1), 0)
    rotated = [inverse << n | inverse >> (8 - n) for n in range(5)]
    return (rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63) & 0xFF


BOX = [_substitute(byte) for byte in range(256)]


def _words(key: bytes) -> list[bytes]:
    words, constant = [key[i : i + 4] for i in range(0, 32, 4)], 1
    while len(words) < 60:
        last = words[-1]
        if len(words) % 8 == 0:
            last = bytes(BOX[b] for b in last[1:] + last[:1])
            last = bytes([last[0] ^ constant, *last[1:]])
            constant = _double(constant)
        elif len(words) % 8 == 4:
            last = bytes(BOX[b] for b in last)
        words.append(bytes(a ^ b for a, b in zip(words[-8], last, strict=True)))
    return words


def encrypt_block(key: bytes, block: bytes) -> bytes:
    words = _words(key)

    def with_key(state: list[int], turn: int) -> list[int]:
        return [a ^ b for a, b in zip(state, b"".join(words[4 * turn : 4 * turn + 4]), strict=True)]

    state = with_key(list(block), 0)
    for turn in range(1, 15):
        state = [BOX[b] for b in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if turn < 14:
            state = [
                _double(c[i])
                ^ _double(c[(i + 1) % 4])
                ^ c[(i + 1) % 4]
                ^ c[(i + 2) % 4]
                ^ c[(i + 3) % 4]
                for c in (state[j : j + 4] for j in range(0, 16, 4))
                for i in range(4)
            ]
        state = with_key(state, turn)
    return bytes(state)


def _hash(key: bytes, data: bytes, text: bytes) -> int:
    def padded(part: bytes) -> bytes:
        return part + bytes(-len(part) % 16)

    h, total = int.from_bytes(encrypt_block(key, bytes(16)), "big"), 0
    blocks = padded(data) + padded(text) + (8 * len(data)).to_bytes(8, "big")
    blocks += (8 * len(text)).to_bytes(8, "big")
    for start in range(0, len(blocks), 16):
        total ^= int.from_bytes(blocks[start : start + 16], "big")
        product, value = 0, h
        for bit in range(127, -1, -1):
            product ^= value if total >> bit & 1 else 0
            value = value >> 1 ^ (0xE1 << 120 if value & 1 else 0)
        total = product
    return total


def gcm(key: bytes, nonce: bytes, text: bytes, data: bytes) -> bytes:
    """Encrypt; return cipher text and tag."""

    def pad(counter: int) -> bytes:
        return encrypt_block(key, nonce + counter.to_bytes(4, "big"))

    stream = b"".join(pad(2 + i) for i in range(len(text) // 16 + 1))
    cipher = bytes(a ^ b for a, b in zip(text, stream, strict=False))
    tag = _hash(key, data, cipher) ^ int.from_bytes(pad(1), "big")
    return cipher + tag.to_bytes(16, "big")


def test_the_peer_and_the_library_agree_with_the_published_vector() -> None:
    # McGrew and Viega, The Galois/Counter Mode of Operation, test case 16.
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    data = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    text = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    expected = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert gcm(key, nonce, text, data) == expected
    assert AESGCM(key).encrypt(nonce, text, data) == expected


def test_a_sealed_file_is_aes_gcm_bound_to_its_name() -> None:
    text = "A day, in two blocks of sixteen bytes and some more. ü".encode()
    sealed = Seal(KEY).close("private/r1/meso.json", text)
    assert sealed[:4] == b"MSV1"
    nonce = sealed[4:16]
    assert sealed[16:] == gcm(KEY, nonce, text, b"MSV1private/r1/meso.json")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=20))
def test_what_was_sealed_is_read_back(data: bytes, name: str) -> None:
    seal = Seal(KEY)
    assert seal.open(name, seal.close(name, data)) == data


def test_every_flipped_bit_is_refused() -> None:
    seal = Seal(KEY)
    sealed = seal.close("a", b"a small secret")
    for where in range(8 * len(sealed)):
        data = bytearray(sealed)
        data[where // 8] ^= 1 << where % 8
        with pytest.raises(DamagedError, match="a of the vault"):
            seal.open("a", bytes(data))


def test_a_later_format_is_not_taken_for_damage() -> None:
    later = b"MSV2" + bytes(60)
    with pytest.raises(
        NewerError, match=r"a of the vault in format 1; got format 2.*Update Mesofed"
    ):
        Seal(KEY).open("a", later)
    # What counts as missing where it is damaged must not be made anew over it.
    assert not issubclass(NewerError, DamagedError)
    # With the rest in this format, the number alone is damaged.
    with pytest.raises(DamagedError, match="begins with another format"):
        Seal(KEY).open("a", b"MSV2" + bytes(Seal(KEY).close("a", b"text")[4:]))


def test_every_truncation_and_every_addition_is_refused() -> None:
    seal = Seal(KEY)
    sealed = seal.close("a", b"a small secret")
    for length in range(len(sealed)):
        with pytest.raises(DamagedError):
            seal.open("a", sealed[:length])
        with pytest.raises(DamagedError):
            seal.open("a", sealed + sealed[: length + 1])


def test_another_name_and_another_key_are_refused() -> None:
    seal = Seal(KEY)
    sealed = seal.close("statistics/r1.json", b"{}")
    for name in ("statistics/r2.json", "statistics/r1.jso", "", "tatistics/r1.json"):
        with pytest.raises(DamagedError):
            seal.open(name, sealed)
    with pytest.raises(DamagedError):
        Seal(KEY[::-1]).open("statistics/r1.json", sealed)


def test_an_open_file_is_not_taken_for_a_sealed_one() -> None:
    for data in (b"", b"{}", b"MSV1", b"MSV1" + bytes(27), b"MSV1" + bytes(28), b"x" * 100):
        with pytest.raises(MesofedError):
            Seal(KEY).open("a", data)


def test_the_same_bytes_are_never_sealed_alike() -> None:
    seal = Seal(KEY)
    sealed = [bytes(seal.close("a", b"the same")) for _ in range(200)]
    assert len({data[4:16] for data in sealed}) == 200
    assert len({data[16:] for data in sealed}) == 200


def test_nonces_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\x07" * size)
    assert Seal(KEY).close("a", b"x")[4:16] == b"\x07" * 12


def test_the_key_is_in_no_text_about_a_seal() -> None:
    assert KEY.hex() not in repr(Seal(KEY))
    assert repr(KEY)[2:-1] not in repr(Seal(KEY))
    assert repr(Seal(KEY)) == repr(OPEN)


def test_the_vault_of_a_simulation_is_as_it_is() -> None:
    assert OPEN.close("a", b"data") == OPEN.open("b", b"data") == b"data"
