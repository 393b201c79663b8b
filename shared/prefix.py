"""The frozen prefix: the layers below the lowest LoRA, run once per text and then remembered.

    tokens -> | embedding, layers 0 .. cut-1 | -> states -> | layers cut .. n-1, norm | -> hidden
                frozen for everyone: cached                   carry the LoRAs

No LoRA can change what the prefix computes, so its output serves all epochs, stages, users and
methods. The shape of a batch follows from the length of its texts alone, and missing rows are
filled up with empty ones: matrix kernels choose their order of summation by shape, so a text's
states do not depend on what it happens to be batched with, or on what was in memory before a run
was resumed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.state_cache import StateCache

# Tokens of a batch, and of what the length of its texts is rounded up to a multiple.
BATCH_TOKENS, COLUMNS = 128, 16


def batch_shape(tokens: int) -> tuple[int, int]:
    """Return rows and columns of a batch of texts of so many tokens: 8 x 16, ..., 1 x 128."""
    columns = -(-tokens // COLUMNS) * COLUMNS
    return max(1, BATCH_TOKENS // columns), columns


class _Capture(nn.Module):
    """Stands after the last layer of the prefix and keeps what comes out of it."""

    states: Tensor

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        self.states = hidden_states
        return hidden_states


class _Through(nn.Module):
    """Stands in the place of a layer and changes nothing."""

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        return hidden_states


@dataclass
class FrozenPrefix:
    """The lower layers of a decoder, and their output for the texts seen.

    Attributes
    ----------
    decoder : Module
        With its layers in ``layers``.
    cut : int
        Number of layers in the prefix.
    dtype : torch.dtype
        Of the states.
    width : int
        Of the states.
    cache : StateCache
        What is remembered.
    """

    decoder: nn.Module
    cut: int
    dtype: torch.dtype
    width: int
    cache: StateCache

    def states(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the prefix's output for right-padded token ids, zero at the padding.

        Parameters
        ----------
        ids : Tensor of int64, (rows, tokens)
        lengths : sequence of int
            Tokens of each row without padding.

        Returns
        -------
        Tensor, (rows, tokens, width)
        """
        keys = [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        self._remember([key for key in dict.fromkeys(keys) if key and key not in self.cache])
        states = torch.zeros(*ids.shape, self.width, dtype=self.dtype, device=ids.device)
        for row, key in enumerate(keys):
            if key:
                states[row, : len(key)] = self.cache.get(key)
        self.cache.trim()
        return states

    def finish(self, states: Tensor) -> Tensor:
        """Return the last layer's normalised hidden states from the prefix's output."""
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        # The layers keep their numbers, by which some decoders choose a layer's attention mask.
        through = [_Through() for _ in range(self.cut)]
        with _layers(self.decoder, nn.ModuleList([*through, *layers[self.cut :]])):
            hidden: Tensor = self.decoder(inputs_embeds=states, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _remember(self, texts: Sequence[tuple[int, ...]]) -> None:
        """Run texts through the prefix and keep their states."""
        device = next(self.decoder.parameters()).device
        by_shape: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for text in texts:
            by_shape.setdefault(batch_shape(len(text)), []).append(text)
        layers, capture = self.decoder.layers, _Capture()
        assert isinstance(layers, nn.ModuleList)
        with _layers(self.decoder, nn.ModuleList([*layers[: self.cut], capture])):
            for (rows, columns), same in by_shape.items():
                for start in range(0, len(same), rows):
                    chunk = same[start : start + rows]
                    ids = torch.zeros(rows, columns, dtype=torch.long)
                    for row, text in enumerate(chunk):
                        ids[row, : len(text)] = torch.tensor(text)
                    self.decoder(input_ids=ids.to(device), use_cache=False)
                    for row, text in enumerate(chunk):
                        self.cache.put(text, capture.states[row, : len(text)].clone())


@contextmanager
def _layers(decoder: nn.Module, layers: nn.ModuleList) -> Iterator[None]:
    """Let a decoder consist of these layers for the length of a block."""
    whole, decoder.layers = decoder.layers, layers
    try:
        yield
    finally:
        decoder.layers = whole
