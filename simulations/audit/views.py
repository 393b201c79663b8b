"""Views of bytes: every reading of a haystack in which a secret could stand.

as it is, reversed, numbers written as decimals; what zlib and gzip streams, base64 and hex runs in
it hold, and the same views of those, two layers deep.
"""

import base64
import contextlib
import re
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

DEPTH = 2
DECIMALS = (2, 3)
"""Numbers in texts are read as whole multiples of 10**-2 and of 10**-3, however many they show."""

_COMPRESSED = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){16,}")
_NUMBER = re.compile(rb"-?\d+\.\d+(?:[eE][-+]?\d+)?")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_MOST_INFLATED = 1 << 26
_PIECE = 1 << 12
_SHORTEST = 16


def views(data: bytes, depth: int = DEPTH) -> Iterator[tuple[str, bytes]]:
    """Return each reading of ``data`` with its name."""
    yield "as it is", data
    yield "reversed", data[::-1]
    yield from _numbers(data)
    if depth:
        for name, inner in _unpacked(data):
            if len(inner) >= _SHORTEST:
                for inside, view in views(inner, depth - 1):
                    yield (name if inside == "as it is" else f"{inside} in {name}"), view


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    for found in _COMPRESSED.finditer(data):
        yield "zlib", _inflated(memoryview(data)[found.start() :])
    for found in _BASE64.finditer(data):
        run = found[0].translate(_URL_SAFE)
        for start in range(4):
            whole = run[start : start + (len(run) - start) // 4 * 4]
            yield "base64", base64.b64decode(whole)
    for found in _HEX.finditer(data):
        yield "hex", bytes.fromhex(found[0].decode("ascii"))
        yield "hex", bytes.fromhex(found[0][1:-1].decode("ascii"))


def _inflated(data: memoryview) -> bytes:
    """Return what a stream holds, up to where it ends, breaks off or turns out to be none."""
    stream = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever its header says
    out = bytearray()
    for start in range(0, len(data), _PIECE):
        piece, before = data[start : start + _PIECE], stream.copy()
        try:
            out += stream.decompress(piece)
        except zlib.error:  # what came before the break is lost to the call, so take it singly
            return bytes(out + _until_it_breaks(before, piece))
        if stream.eof or len(out) > _MOST_INFLATED:
            break
    return bytes(out)


def _until_it_breaks(stream: "zlib._Decompress", data: memoryview) -> bytes:
    out = bytearray()
    with contextlib.suppress(zlib.error):
        for place in range(len(data)):
            out += stream.decompress(data[place : place + 1])
    return bytes(out)


def _numbers(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Return the decimals of a text, in order, as int64 multiples of a power of ten."""
    numbers = np.array([float(found[0]) for found in _NUMBER.finditer(data)], dtype=np.float64)
    numbers = np.clip(np.nan_to_num(numbers), -1e9, 1e9)
    if len(numbers):
        for decimals in DECIMALS:
            yield "decimal numbers", as_units(numbers, decimals).tobytes()


def as_units(numbers: npt.NDArray[np.float64], decimals: int) -> npt.NDArray[np.int64]:
    """Return numbers as int64 multiples of 10**-decimals."""
    units: npt.NDArray[np.int64] = np.rint(numbers * 10**decimals).astype("<i8")
    return units
