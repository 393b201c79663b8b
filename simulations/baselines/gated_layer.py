"""Updates of a linear map that depend on the token, which no LoRA can express.

    y = W x + B A x + f(x)          f: anything, by map

PROPER's gates look at every token, and so do those of Per-Pcs while they are trained; neither
folds into a LoRA, and no device of Mesofed runs them. So they are laid over the adapter layers by
hooks, for the length of a block, and the adapter layer knows nothing of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from shared.base_model import BaseModel

Update = Callable[[Tensor], Tensor | None]
"""From a map's input, (rows, tokens, in), to what is added to its output, or None for nothing."""


@contextmanager
def adding(base: BaseModel, updates: Mapping[str, Update]) -> Iterator[None]:
    """Add ``updates[name](x)`` to the output of each named map for the length of a block."""
    handles = [
        base.model.get_submodule(name).register_forward_hook(_hook(update))
        for name, update in updates.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(update: Update) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    def add(_: nn.Module, arguments: tuple[Any, ...], y: Tensor) -> Tensor | None:
        more = update(arguments[0])
        return None if more is None else y + more.to(y.dtype)

    return add
