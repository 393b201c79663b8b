"""Seeds that depend on what they are for, and on nothing else."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose of a run, such as ``(7, "oppu", "user-12")``.

    The same run seed and purpose give the same value in every process and on every engine, so a
    user's result does not depend on who else is trained, or in which order.
    """
    text = "\x1f".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
