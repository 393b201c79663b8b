"""Stacked inference: a stack answers unmerged or folded into the weights, whichever costs less.

    unmerged   y = W x + B (A x)      dearer with every token
    folded     y = (W + B A) x        dearer once, then nothing          (B A: all parts together)

Both are exact. Folding is for one person and an fp32 base model alone: several people differ in
their weights, and other formats lose up to half of a small update when it is added to them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from client.personalize import Personalised, parts_of
from shared.base_model import BaseModel
from shared.lora.algebra import base_weights, merged
from shared.lora.layer import Parts

# The cost model, in milliseconds, measured on SmolLM2-135M in fp32 with one thread, a stack of
# rank 26 in all on every linear map:
#
#                                              30 layers   top 10 layers
#     fold and restore, once                      332          112
#     unmerged, more for a generated token          8.1          2.3
#     unmerged, more for a prompt token             0.22         0.10
#
# A generated token is a forward pass of its own and pays for many small kernels; a prompt token
# shares one pass with the others. All three grow with the number of adapted maps, so that the
# break-even hardly depends on the depth: 45 generated tokens, or 1,350 read, or 37 after 256.
PROMPT_TOKENS_A_GENERATED_ONE = 30
BREAK_EVEN = 45


def folding_pays(prompt_tokens: int, new_tokens: int) -> bool:
    """Whether so many tokens to come cost more unmerged than folding and restoring does.

    Parameters
    ----------
    prompt_tokens : int
        Tokens to be read, in however many forward passes.
    new_tokens : int
        Steps of generation, each of which is one forward pass.
    """
    return new_tokens + prompt_tokens / PROMPT_TOKENS_A_GENERATED_ONE >= BREAK_EVEN


@contextmanager
def stacked(
    base: BaseModel, stacks: Sequence[Personalised], prompt_tokens: int, new_tokens: int
) -> Iterator[Parts]:
    """Give the parts with which the people's stacks answer, in the cheaper of the two forms.

    Folded, the stack is in the weights of the base model for the length of the block, and the
    parts are empty; the weights are restored by copy, to the bit, which takes memory for the
    adapted weights once more. The base model's lock is held throughout, so that nobody else meets
    the folded weights.

    Parameters
    ----------
    stacks : sequence of Personalised
        One a person, under one method.
    prompt_tokens, new_tokens : int
        Tokens to come, as :func:`folding_pays` takes them.
    """
    may_fold = len(stacks) == 1 and base.format == "fp32"
    with base.lock:
        lora = stacks[0].folded() if may_fold and folding_pays(prompt_tokens, new_tokens) else None
        if lora is None:
            yield parts_of(base, stacks)
            return
        weights = base_weights(base.model, list(lora.factors))
        with merged(weights, lora.to(torch.float32, base.device)):
            yield Parts()
