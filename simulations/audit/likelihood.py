"""Attacks by likelihood: a LoRA makes likelier what it was trained on, and that shows.

    score of an item  =  NLL(item | what the attacker compares with)  -  NLL(item | the LoRA)

The comparison is with LoRAs of other people, trained alike over the same parts. Without one an
attack mistakes easy texts for members; and against the parts below alone, any change whatever of
weights that were trained on the members tells them apart, noise included.

Source: Yeom et al., Privacy Risk in Machine Learning (2018), for the attack by loss; Watson et al.,
On the Importance of Difficulty Calibration in Membership Inference Attacks (2022), for the
reference; Carlini et al., Membership Inference Attacks From First Principles (2022), for references
that are trained alike; Kim et al., PriME (2025), for the leak of shared LoRAs.
"""

from collections.abc import Sequence

import numpy as np
import torch

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem
from shared.lora.algebra import concatenate
from shared.lora.layer import Parts
from shared.lora.lora import Lora
from shared.retrieval import Examples, history_with_examples
from shared.samples import Sample, collate
from shared.training import answer_losses, mean_per_user
from simulations.audit.attack import Scored, Scores
from simulations.audit.people import Halved

REFERENCES = 2
ROWS = 32
"""Samples in one forward pass."""


@torch.no_grad()
def item_losses(base: BaseModel, loras: Sequence[Lora], samples: Sequence[Sample]) -> Scores:
    """Return the NLL of each sample's answer, (samples,), in nats per token, with LoRAs on."""
    shared = concatenate(loras).to(base.dtype, base.device) if loras else None
    order = sorted(range(len(samples)), key=lambda place: len(samples[place]))
    losses = np.empty(len(samples))
    with base.lock, base.stack.using(Parts(1, shared)):
        for start in range(0, len(order), ROWS):
            places = order[start : start + ROWS]
            batch = collate([[samples[i]] for i in places], base.pad_token, base.device)
            found = mean_per_user(answer_losses(base, batch), batch)  # one sample a user
            losses[places] = found.double().cpu().numpy()
    return losses


def gains(base: BaseModel, below: Sequence[Lora], lora: Lora, samples: Sequence[Sample]) -> Scores:
    """Return how much likelier a LoRA makes each sample, (samples,), in nats per token."""
    return item_losses(base, below, samples) - item_losses(base, [*below, lora], samples)


def membership_by_likelihood(
    base: BaseModel,
    below: Sequence[Lora],
    loras: Sequence[Lora],
    people: Sequence[Halved],
    examples: Examples,
) -> list[Scored]:
    """Score each person's given items (members) and kept items (others) by the person's LoRA.

    Parameters
    ----------
    below : sequence of Lora
        Parts under the LoRAs.
    loras, people : sequence of Lora and of Halved
        One LoRA a person; those of the next ``REFERENCES`` people are compared with, and where
        there is one person alone, the parts below.
    examples : Examples
        Own items before each, as in the training of the LoRAs.
    """
    count = len(loras)
    scored = []
    for place, (lora, person) in enumerate(zip(loras, people, strict=True)):
        next_ones = range(place + 1, place + 1 + min(REFERENCES, count - 1))
        references = [[*below, loras[other % count]] for other in next_ones] or [[*below]]
        members, others = (
            samples_of(base, items, examples) for items in (person.given.history, person.kept)
        )
        items = [*members, *others]
        compared = np.mean([item_losses(base, parts, items) for parts in references], axis=0)
        scores = compared - item_losses(base, [*below, lora], items)
        scored.append(Scored(scores[: len(members)], scores[len(members) :]))
    return scored


def samples_of(base: BaseModel, items: Sequence[ProfileItem], examples: Examples) -> list[Sample]:
    """Return the samples of one half of a person's history, oldest first, as training makes them.

    An item has earlier ones of its own half before it: given items just what they were trained
    with, and kept items what they would have been, had the lot fallen the other way.
    """
    return history_with_examples(base, items, examples)
