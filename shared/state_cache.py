"""States of texts, remembered: in memory as far as a budget goes, then in a memory-mapped file.

    new -> | memory, last used last | -- longest unused, when full --> | file | -- full --> gone

The file is temporary and has no name in any folder, so nothing is left behind, however the
process ends, and nobody else can open it.
"""

import mmap
import tempfile
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import IO

import torch
from torch import Tensor

# The file may grow to so many times the memory.
FILE_SHARE = 8

Text = tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Where states stand in the file, and what they were."""

    start: int
    like: Tensor  # on the device, without elements
    shape: torch.Size


@dataclass
class StateCache:
    """States by the tokens of their text.

    Attributes
    ----------
    limit : int
        Bytes kept in memory.
    """

    limit: int
    _memory: OrderedDict[Text, Tensor] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _places: dict[Text, _Place] = field(default_factory=dict)
    _file: IO[bytes] | None = None
    _end: int = 0

    def __contains__(self, text: Text) -> bool:
        return text in self._memory or text in self._places

    def put(self, text: Text, states: Tensor) -> None:
        """Remember states, (tokens, width); :meth:`trim` then holds the memory to its limit."""
        self._memory[text] = states
        self._bytes += states.nbytes

    def get(self, text: Text) -> Tensor:
        """Return remembered states, (tokens, width); they are not to be changed.

        Raises
        ------
        KeyError
            If they were never there, or went when memory and file were full.
        """
        if text in self._memory:
            self._memory.move_to_end(text)
            return self._memory[text]
        return self._mapped(self._places[text])

    def trim(self) -> None:
        """Move the longest unused states to the file, as far as the memory is short."""
        while self._bytes > self.limit:
            text, states = self._memory.popitem(last=False)
            self._bytes -= states.nbytes
            if self._end + states.nbytes <= FILE_SHARE * self.limit:
                self._write(text, states)

    def _write(self, text: Text, states: Tensor) -> None:
        data = states.contiguous().view(torch.uint8).cpu().numpy().tobytes()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="mesofed-", buffering=0)  # noqa: SIM115
            self._file.seek(self._end)
            if self._file.write(data) < len(data):
                return
        except OSError:
            return  # without room on the disk, states are computed again
        self._places[text] = _Place(self._end, states.new_empty(0), states.shape)
        page = mmap.ALLOCATIONGRANULARITY  # a mapping starts where a page does
        self._end += -(-len(data) // page) * page

    def _mapped(self, place: _Place) -> Tensor:
        assert self._file is not None
        size = place.shape.numel() * place.like.element_size()
        # A private mapping may be written to, which torch asks for; nothing reaches the file.
        pages = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=place.start)
        states = torch.frombuffer(pages, dtype=place.like.dtype).view(place.shape)
        return states.to(place.like.device)
