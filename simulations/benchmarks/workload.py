"""What the benchmarks train on, for ours and for the peer alike.

The same token ids in both forms: as `Sample` (prompt, answer) for the cohort trainer, and as the
``input_ids`` and ``labels`` that a transformers model takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.lora.slab import Slab
from shared.samples import Sample
from shared.seeding import derive_seed

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUERY_VALUE = ("q_proj", "v_proj")

IGNORED = -100  # the label that transformers leaves out of its loss


@dataclass(frozen=True)
class Workload:
    """One training step's samples: one a user.

    Attributes
    ----------
    samples : tuple of Sample
        Of each user, all of one length.
    """

    samples: tuple[Sample, ...]

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.samples)

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return sum(len(sample) for sample in self.samples)

    @property
    def answers(self) -> int:
        """Tokens that carry loss."""
        return sum(len(sample.answer) for sample in self.samples)

    @property
    def groups(self) -> list[list[Sample]]:
        """The samples as the cohort trainer takes them."""
        return [[sample] for sample in self.samples]

    def labelled(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return each user's ``input_ids`` and ``labels``, (1, tokens) both."""
        return [_labelled(sample, device) for sample in self.samples]


def _labelled(sample: Sample, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[*sample.prompt, *sample.answer]], device=device)
    labels = ids.clone()
    labels[:, : len(sample.prompt)] = IGNORED
    return ids, labels


def text_tokens(base: BaseModel, count: int, start: int = 0) -> tuple[int, ...]:
    """Return token ids of natural text: Python's language reference, which comes with Python.

    Parameters
    ----------
    count : int
        How many tokens.
    start : int
        How many to leave out before them.
    """
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    # No token of a model in use is longer than thirty characters on average.
    ids = base.tokenizer.encode(text[: 30 * (start + count)], add_special_tokens=False)
    return tuple(ids[start : start + count])


def make_workload(
    base: BaseModel, lengths: Sequence[int], answer_share: float, start: int = 0
) -> Workload:
    """Return samples of natural text, one a user, whose last part is the answer.

    Random tokens would not do: gradients over them are chaotic, so that bf16 and fp32 differ.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each user's sample.
    answer_share : float
        Share of the tokens that carry loss; 1 for all but the first, which nothing predicts.
    start : int
        Tokens of the text to leave out, to get other samples.
    """
    ids = text_tokens(base, sum(lengths), start)
    samples = []
    for length in lengths:
        own, ids = ids[:length], ids[length:]
        prompt = max(1, length - round(length * answer_share))
        samples.append(Sample(own[:prompt], own[prompt:]))
    return Workload(tuple(samples))


def started_slab(base: BaseModel, rank: int, users: int) -> Slab:
    """Return LoRAs in mid-training: neither factor is zero, so that both have a gradient."""
    slab = Slab.initial(base.maps, rank, [derive_seed(0, "start", user) for user in range(users)])
    views = slab.views()
    for user in range(users):
        generator = torch.Generator().manual_seed(derive_seed(0, "middle", user))
        for linear in base.maps:
            views[linear.name].b[user].normal_(0.0, 0.01, generator=generator)
    return Slab(slab.maps, slab.rank, slab.rows.to(base.device))
