"""Searching bytes for canaries, or for any part of one that is 16 bytes or 4 numbers long.

Every form of every canary is cut into windows; a window at every byte of the haystack is hashed
with the same function and looked up. 64 bits of hash leave one false find in about a million
searches of 100 MB for a million windows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulations.audit.canaries import Canary, Values
from simulations.audit.views import DECIMALS, as_units, views

NARROW, WIDE = 16, 32
"""Bytes of a window: texts, fp32 and half formats; everything of eight bytes a number."""
_CHUNK = 1 << 23
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype="<u8"
)

_FIRST_BITS = 24
_SHIFT = np.uint64(64 - _FIRST_BITS)

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int32]
FirstBits = npt.NDArray[np.bool_]
Cells = npt.NDArray[Any]
Windows = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Find:
    """A canary that was found.

    Attributes
    ----------
    source : str
        Where the bytes come from: ``messages``, ``logs`` or ``files``.
    device : int
    kind : str
        Of the canary.
    form : str
        How it was written, such as ``utf-8`` or ``fp16``.
    view : str
        How the bytes had to be read, such as ``base64``.
    windows : int
        How many windows of it were seen.
    """

    source: str
    device: int
    kind: str
    form: str
    view: str
    windows: int


class Needles:
    """The windows of all forms of some canaries, ready to be looked up.

    Parameters
    ----------
    canaries : sequence of Canary

    Attributes
    ----------
    count : int
        Windows in all.
    """

    def __init__(self, canaries: Sequence[Canary]) -> None:
        self._what: list[tuple[Canary, str]] = []
        found: dict[int, list[tuple[Hashes, int]]] = {NARROW: [], WIDE: []}
        for canary in canaries:
            for form, windows in forms(canary):
                if len(windows):
                    hashes = _mixed(windows.view("<u8").T)
                    found[windows.shape[1]].append((hashes, len(self._what)))
                    self._what.append((canary, form))
        self._tables = {width: _table(parts) for width, parts in found.items() if parts}
        self.count = sum(len(hashes) for hashes, _, _ in self._tables.values())

    def search(self, source: str, data: bytes) -> list[Find]:
        """Return what of the canaries stands in ``data``, in any view of it."""
        seen: Counter[tuple[int, str]] = Counter()
        for view, content in views(data):
            for index in self._matches(content):
                seen[index, view] += 1
        return [
            Find(source, self._what[i][0].device, self._what[i][0].kind, self._what[i][1], view, n)
            for (i, view), n in seen.items()
        ]

    def _matches(self, data: bytes) -> Iterator[int]:
        whole = memoryview(data)
        for width, (hashes, owners, first_bits) in self._tables.items():
            for start in range(0, max(1, len(data) - width + 1), _CHUNK):
                chunk = whole[start : start + _CHUNK + width - 1]
                for offset in range(8):
                    there = _hashes(chunk[offset:], width)
                    there = there[first_bits[there >> _SHIFT]]
                    places = np.searchsorted(hashes, there).clip(max=len(hashes) - 1)
                    yield from owners[places[hashes[places] == there]].tolist()


def forms(canary: Canary) -> Iterator[tuple[str, Windows]]:
    """Return the forms in which a canary is searched for, each cut into windows.

    Returns
    -------
    iterator of (str, ndarray of bytes, (windows, ``NARROW`` or ``WIDE``))
    """
    if canary.text:
        written = {
            encoding: canary.text.encode(encoding)
            for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")
        }
        written |= {"lower case": canary.text.lower().encode()}
        written |= {"upper case": canary.text.upper().encode()}
        for form, data in written.items():
            yield form, _windows(np.frombuffer(data, np.uint8), NARROW)
    if canary.values is not None:
        for form, cells in _forms_of_numbers(canary.values, canary.planted):
            # Planted values are few, so every window of them is searched for. Of what is trained
            # every fourth: a part of a dozen numbers holds one that begins there.
            width = WIDE if cells.itemsize == 8 else NARROW
            yield form, _windows(cells, width, 1 if canary.planted else 4)


def _forms_of_numbers(values: Values, planted: bool) -> Iterator[tuple[str, Cells]]:
    single = values.astype("<f4")
    yield "fp64", values.astype("<f8")
    yield "fp32", single
    yield "fp32 big-endian", single.astype(">f4")
    with np.errstate(over="ignore"):
        yield "fp16", values.astype("<f2")
    yield "bf16", _bf16(single)
    if planted:
        for decimals in (2, 3, 4):
            rounded = np.round(values, decimals)
            yield f"fp64 of {decimals} decimals", rounded.astype("<f8")
            yield f"fp32 of {decimals} decimals", rounded.astype("<f4")
        for decimals in DECIMALS:
            yield f"decimal text of {decimals} decimals", as_units(values, decimals)


def _bf16(single: npt.NDArray[np.float32]) -> Cells:
    """Return the numbers in bf16, rounded to even as torch does it."""
    bits = single.view("<u4")
    rounded: Cells = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _windows(cells: Cells, width: int, stride: int = 1) -> Windows:
    """Return windows of ``width`` bytes as rows; numbers that say nothing are left out.

    A window of numbers that holds a zero, or one number twice, may be anybody's: LoRAs begin with
    zeros, and small values round to the same few.
    """
    size = width // cells.itemsize
    if len(cells) < size:
        return np.empty((0, width), np.uint8)
    rows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(cells, size)[::stride])
    if cells.itemsize > 1:
        ordered = np.sort(rows, axis=1)
        rows = rows[(rows != 0).all(1) & (ordered[:, 1:] != ordered[:, :-1]).all(1)]
    return rows.view(np.uint8).reshape(-1, width)


def _hashes(data: memoryview, width: int) -> Hashes:
    """Return the hashes of the windows that begin at every eighth byte."""
    words = np.frombuffer(data, dtype="<u8", count=len(data) // 8)
    lanes = width // 8
    count = max(0, len(words) - lanes + 1)
    return _mixed([words[lane : lane + count] for lane in range(lanes)])


def _mixed(lanes: Sequence[Hashes] | Hashes) -> Hashes:
    """Return one hash a window; its eight bytes from place 8 i on are in lane i."""
    total = np.zeros(len(lanes[0]), dtype=np.uint64)
    for lane, multiplier in zip(lanes, _MULTIPLIERS, strict=False):
        total += lane * multiplier
    # Neighbouring texts differ in few bits; mixing spreads them over all 64.
    total ^= total >> np.uint64(29)
    total *= _MULTIPLIERS[1]
    return total


def _table(parts: list[tuple[Hashes, int]]) -> tuple[Hashes, Owners, FirstBits]:
    """Return hashes in order, whose they are, and which first bits occur at all."""
    hashes = np.concatenate([part for part, _ in parts])
    owners = np.concatenate([np.full(len(part), owner, np.int32) for part, owner in parts])
    order = np.argsort(hashes, kind="stable")
    first_bits = np.zeros(1 << _FIRST_BITS, dtype=bool)
    first_bits[hashes >> _SHIFT] = True
    return hashes[order], owners[order], first_bits
