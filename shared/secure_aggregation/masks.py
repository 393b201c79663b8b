"""Keys and masks: what two devices agree on, and vectors of numbers modulo 2^64.

Of ``flwr.common.secure_aggregation`` 1.41 nothing is used here. Its mask generator folds the seed
to 32 bits and feeds a Mersenne twister, so a server can try all seeds; its keys are not bound to a
round; its quantisation is random and saturates; its Shamir sharing is slow (see ``shamir.py``).
X25519, HKDF, ChaCha20 and ChaCha20-Poly1305 come from ``cryptography``.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

KEY_BYTES = 32
NUMBER_BYTES = 8
"""Numbers are modulo 2^64: 10,000 devices fill 2^27 of it, and noise stays far below the rest."""
TAG_BYTES = 16

Ring = NDArray[np.uint64]


def derive(secret: bytes, context: bytes, *label: str | int) -> bytes:
    """Return 32 bytes that follow from a uniform secret, a session and a purpose."""
    info = context + "|".join(map(str, label)).encode()
    return HKDFExpand(SHA256(), KEY_BYTES, info).derive(secret)


def public_key(private: bytes) -> bytes:
    """Return the public key of an X25519 private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, context: bytes, *label: str | int) -> bytes | None:
    """Return the key of two devices for one purpose, or None if the public key is no key.

    Both sides get the same; a key of small order, which would make it known to all, is refused.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        return None
    return derive(sha256(shared).digest(), context, *label)


def mask(key: bytes, length: int) -> Ring:
    """Return the numbers that a key stands for, (length,): ChaCha20's keystream."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(NUMBER_BYTES * length)), dtype="<u8")


def to_ring(numbers: Iterable[int]) -> Ring:
    """Return whole numbers modulo 2^64."""
    return np.array([number % 2**64 for number in numbers], dtype=np.uint64)


def from_ring(ring: Ring) -> list[int]:
    """Return the whole numbers from -2^63 to 2^63 - 1 that a vector stands for."""
    return [int(number) for number in ring.astype(np.int64)]


def to_bytes(ring: Ring) -> bytes:
    """Return a vector's bytes, little end first."""
    return ring.astype("<u8").tobytes()


def from_bytes(data: bytes) -> Ring:
    """Return the vector that these bytes stand for."""
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def seal_share(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypt the shares for one device; each key encrypts one message, so the nonce is zero."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, context)


def open_share(key: bytes, ciphertext: bytes, context: bytes) -> bytes | None:
    """Decrypt the shares of one device; None if they were not sealed with this key."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), ciphertext, context)
    except InvalidTag:
        return None


def total(vectors: Sequence[Ring], length: int) -> Ring:
    """Return the sum of vectors modulo 2^64."""
    result = np.zeros(length, dtype=np.uint64)
    for vector in vectors:
        result += vector  # wraps, as numbers modulo 2^64 do
    return result
