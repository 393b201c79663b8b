"""Answers of the personalised model: a choice among labels or scores, or greedy generation.

All functions take one group of texts a person, in the order of the people in ``parts``, and
answer for all of them in one batch.
"""

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.errors import MesofedError
from shared.lora.layer import Parts
from shared.samples import Sample, answer_tokens, collate, encode_prompt
from shared.training import answer_losses

Groups = Sequence[Sequence[str]]


@torch.no_grad()
def gold_losses(
    base: BaseModel, parts: Parts, groups: Sequence[Sequence[Sample]]
) -> list[list[float]]:
    """Return the mean negative log-likelihood per token, in nats, of each sample's answer."""
    batch = collate(groups, base.pad_token, base.device)
    with base.stack.using(parts):
        losses = answer_losses(base, batch)
    total = losses.new_zeros(len(batch.ids)).index_add(0, batch.row, losses)
    count = torch.bincount(batch.row, minlength=len(batch.ids)).clamp(min=1)
    by_user = (total / count).view(parts.users, -1).tolist()
    return [means[: len(group)] for means, group in zip(by_user, groups, strict=True)]


@torch.no_grad()
def choose_labels(
    base: BaseModel,
    parts: Parts,
    prompts: Groups,
    labels: Sequence[str],
    priors: Sequence[Mapping[str, float] | None] = (),
    ordered: bool = False,
) -> list[list[str]]:
    """Return, for each prompt, the label that greedy decoding among the labels arrives at.

    At each token only continuations of labels that are still possible are allowed. The model is
    asked only where they part, so one forward pass tells apart labels whose first tokens differ.

    Parameters
    ----------
    priors : sequence of mapping, optional
        By person, the probability of each label before the prompt is read; None for even ones.
        Where labels part, a token's likelihood counts times the probability of the labels that it
        leaves possible.
    ordered : bool
        Whether labels are scores, from the lowest to the highest. The median of the distribution
        over them is taken, not its mode: of all answers it has the least expected absolute error,
        by which scores are judged (Lukasik et al., 2024, arXiv 2403.04182). That takes
        scores that one token tells apart, as digits are; others are chosen like any labels.
    """
    priors = priors or [None] * len(prompts)
    end = base.tokenizer.eos_token_id
    spelled = {(*answer_tokens(base, label), end): label for label in labels}
    room = max(map(len, spelled))
    place = _parting(list(spelled)) if len(spelled) > 1 else 0
    ordered = ordered and len({tokens[place] for tokens in spelled}) == len(spelled)
    contexts = [[encode_prompt(base, prompt, room) for prompt in group] for group in prompts]
    possible = [[list(spelled) for _ in group] for group in prompts]
    while any(len(left) > 1 for own in possible for left in own):
        undecided = [[i for i, left in enumerate(own) if len(left) > 1] for own in possible]
        # One answer token to be predicted: the batch reads the hidden state before it.
        samples = [
            [
                Sample((*contexts[u][i], *possible[u][i][0][: _parting(possible[u][i])]), (end,))
                for i in own
            ]
            for u, own in enumerate(undecided)
        ]
        batch = collate(samples, base.pad_token, base.device)
        with base.stack.using(parts):
            hidden = base.hidden_states(batch.ids, batch.lengths)[batch.row, batch.position]
        logits = iter(base.logits(hidden))  # one row, (vocabulary,), an undecided prompt
        for own, rows, prior in zip(possible, undecided, priors, strict=True):
            for i in rows:
                depth = _parting(own[i])
                allowed = sorted({tokens[depth] for tokens in own[i]})
                scores = next(logits)[allowed]  # up to a constant, log-likelihoods
                if prior is not None:
                    mass = dict.fromkeys(allowed, 0.0)
                    for tokens in own[i]:
                        mass[tokens[depth]] += prior[spelled[tokens]]
                    scores = scores + torch.tensor(list(mass.values()), device=scores.device).log()
                if ordered:
                    score_of = {tokens[depth]: labels.index(spelled[tokens]) for tokens in own[i]}
                    best = allowed[_median(scores, [score_of[token] for token in allowed])]
                else:
                    best = allowed[int(scores.argmax())]
                own[i] = [tokens for tokens in own[i] if tokens[depth] == best]
    return [[spelled[left[0]] for left in own] for own in possible]


def _median(log_likelihoods: Tensor, places: Sequence[int]) -> int:
    """Return the index whose place is the median, the lower one where half lies on either side."""
    order = sorted(range(len(places)), key=places.__getitem__)
    below = log_likelihoods.double().softmax(0)[order].cumsum(0)
    return order[int((below < 0.5).sum().clamp(max=len(order) - 1))]


def _parting(spellings: Sequence[tuple[int, ...]]) -> int:
    """Return the first place where spellings differ; none is the beginning of another."""
    places = enumerate(zip(*spellings, strict=False))
    return next(place for place, tokens in places if len(set(tokens)) > 1)


@torch.no_grad()
def generate(
    base: BaseModel,
    parts: Parts,
    prompts: Groups,
    max_new_tokens: int,
    room: int | None = None,
) -> list[list[str]]:
    """Continue each prompt greedily to the end of sequence, with a key-value cache.

    Parameters
    ----------
    room : int, optional
        Tokens kept for the answer when a prompt is cut; ``max_new_tokens`` by default.

    Raises
    ------
    MesofedError
        If a prompt is empty.
    """
    room = max_new_tokens if room is None else room
    contexts = [[encode_prompt(base, prompt, room) for prompt in group] for group in prompts]
    if not all(context for group in contexts for context in group):
        raise MesofedError(
            "Expected a prompt to continue; got an empty one. Write at least a word."
        )
    rows = max(len(group) for group in contexts)
    length = max(len(context) for group in contexts for context in group)
    # Generation appends on the right, so here the padding stands on the left, masked. A person
    # with fewer prompts than the others gets rows of a single token.
    ids = torch.full((len(contexts), rows, length), base.pad_token, dtype=torch.long)
    mask = torch.zeros_like(ids)
    mask[..., -1] = 1
    for user, group in enumerate(contexts):
        for row, context in enumerate(group):
            ids[user, row, length - len(context) :] = torch.tensor(context)
            mask[user, row, length - len(context) :] = 1
    # The head is needed at the last position alone; over a whole batch it takes gigabytes.
    known = inspect.signature(base.model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    with base.stack.using(parts):
        out: Tensor = base.model.generate(  # type: ignore[operator]
            input_ids=ids.flatten(0, 1).to(base.device),
            attention_mask=mask.flatten(0, 1).to(base.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=base.pad_token,
            eos_token_id=base.tokenizer.eos_token_id,
            **last,
        )
    texts = base.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return [
        [text.strip() for text in texts[user * rows : user * rows + len(group)]]
        for user, group in enumerate(contexts)
    ]
