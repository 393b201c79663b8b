"""What a method adds to the time of a generated token, measured beside the bare base model."""

import time
from collections.abc import Mapping

import torch

from shared.base_model import BaseModel
from shared.lora.layer import Parts
from simulations.baselines.gated_layer import Update, adding

PROMPT, NEW, REPEATS = 32, 12, 3


@torch.no_grad()
def added_milliseconds(
    base: BaseModel, parts: Parts, updates: Mapping[str, Update] | None = None
) -> float:
    """Return the milliseconds that parts add to each generated token of one person.

    The bare model and the parts run in turn, so that a busy machine slows both alike; of each the
    fastest run counts. Below zero means: less than the machine's noise.

    Parameters
    ----------
    updates : mapping, optional
        What is added to adapter layers beside the parts (``simulations.baselines.gated_layer``).
    """
    ids = torch.arange(PROMPT, device=base.device)[None] % base.pad_token  # (1, tokens)

    def now() -> float:
        if base.device.type == "cuda":  # which works on while this process goes ahead
            torch.cuda.synchronize(base.device)
        return time.perf_counter()

    def seconds(on: Parts, more: Mapping[str, Update]) -> float:
        started = now()
        with base.stack.using(on), adding(base, more):
            base.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=NEW,
                max_new_tokens=NEW,
                pad_token_id=base.pad_token,
                eos_token_id=base.tokenizer.eos_token_id,
            )
        return now() - started

    with base.lock:
        runs = [(seconds(Parts(), {}), seconds(parts, updates or {})) for _ in range(REPEATS)]
    bare, own = min(run[0] for run in runs), min(run[1] for run in runs)
    return 1000 * (own - bare) / NEW
