"""Answers of the personalised model: constrained choice among labels, or greedy generation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.lora.layer import Parts
from shared.samples import Sample, collate, encode_prompt
from shared.training import answer_losses


@torch.no_grad()
def gold_losses(base: BaseModel, parts: Parts, samples: Sequence[Sample]) -> list[float]:
    """Return the mean negative log-likelihood per token, in nats, of each sample's answer."""
    batch = collate([samples], base.pad_token, base.device)
    with base.stack.using(parts):
        losses = answer_losses(base, batch)
    rows = losses.new_zeros(len(samples)).index_add(0, batch.row, losses)
    return (rows / torch.bincount(batch.row, minlength=len(samples))).tolist()


@torch.no_grad()
def choose_labels(
    base: BaseModel, parts: Parts, prompts: Sequence[str], labels: Sequence[str]
) -> list[str]:
    """Return, for each prompt, the label that greedy decoding among the labels arrives at.

    At each token only continuations of labels that are still possible are allowed. Labels whose
    first tokens differ are told apart by one forward pass.
    """
    end = base.tokenizer.eos_token_id
    spelled = {
        label: (*base.tokenizer.encode(f" {label}", add_special_tokens=False), end)
        for label in labels
    }
    contexts = [encode_prompt(base, prompt) for prompt in prompts]
    possible = [list(labels) for _ in prompts]
    depth = 0
    while open_rows := [i for i, left in enumerate(possible) if len(left) > 1]:
        # One answer token to be predicted: the batch reads the hidden state before it.
        samples = [
            Sample((*contexts[i], *spelled[possible[i][0]][:depth]), (end,)) for i in open_rows
        ]
        batch = collate([samples], base.pad_token, base.device)
        with base.stack.using(parts):
            hidden = base.hidden_states(batch.ids, batch.lengths)[batch.row, batch.position]
        logits = base.logits(hidden)  # (open rows, vocabulary)
        for i, scores in zip(open_rows, logits, strict=True):
            allowed = sorted({spelled[label][depth] for label in possible[i]})
            best = allowed[int(scores[allowed].argmax())]
            possible[i] = [label for label in possible[i] if spelled[label][depth] == best]
        depth += 1
    return [left[0] for left in possible]


@torch.no_grad()
def generate(
    base: BaseModel, parts: Parts, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Continue each prompt greedily to the end of sequence, with a key-value cache."""
    contexts = [encode_prompt(base, prompt) for prompt in prompts]
    length = max(len(context) for context in contexts)
    # Generation appends on the right, so here the padding stands on the left, masked.
    ids = torch.full((len(contexts), length), base.pad_token, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, context in enumerate(contexts):
        ids[row, length - len(context) :] = torch.tensor(context)
        mask[row, length - len(context) :] = 1
    with base.stack.using(parts):
        out: Tensor = base.model.generate(  # type: ignore[operator]
            input_ids=ids.to(base.device),
            attention_mask=mask.to(base.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=base.pad_token,
            eos_token_id=base.tokenizer.eos_token_id,
        )
    texts = base.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return [text.strip() for text in texts]
