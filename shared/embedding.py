"""User embeddings from content: what a person reads and writes, seen by the base model.

PROPER looks up a trained user id, so a new user has no embedding. Here the embedding is computed
from the history by the frozen base model, on the device, and a user whom the server has never
seen can be routed at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem
from shared.samples import Sample, collate, history_samples

# Rows a forward pass embeds at once.
EMBED_ROWS = 32


def embed_user(base: BaseModel, history: Iterable[ProfileItem]) -> Tensor:
    """Return the mean hidden state over a history, (width,), fp32.

    Tokens are averaged within an item and items within the user, so that a long text does not
    outweigh the others. No adapter is on: all users are seen by the same eyes.
    """
    samples = sorted(history_samples(base, history), key=len)
    states = [
        _item_means(base, samples[start : start + EMBED_ROWS])
        for start in range(0, len(samples), EMBED_ROWS)
    ]
    return torch.cat(states).mean(0).cpu()


@torch.no_grad()
def _item_means(base: BaseModel, samples: Sequence[Sample]) -> Tensor:
    """Return the mean hidden state of each sample, (samples, width)."""
    batch = collate([[sample] for sample in samples], base.pad_token, base.device)
    hidden = base.hidden_states(batch.ids, batch.lengths).float()  # (samples, tokens, width)
    lengths = torch.tensor(batch.lengths, device=hidden.device)
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * real[..., None]).sum(1) / lengths[:, None]


@dataclass(frozen=True)
class EmbeddingSpace:
    """Where user embeddings are compared: centred, on their leading axes, on the unit sphere.

    Mean hidden states share a large common part, which makes every two users look alike until it
    is taken away. The axes are not scaled to equal variance: with a few dozen users, whitening
    raises noise to the level of the groups.

    Attributes
    ----------
    mean : Tensor, (width,)
        Mean embedding of the server's users.
    basis : Tensor, (width, k)
        Leading principal axes of the server's users, orthonormal.
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, embeddings: Tensor, dimensions: int) -> "EmbeddingSpace":
        """Fit the space on the server's users, (users, width)."""
        mean = embeddings.mean(0)
        _, _, vt = torch.linalg.svd((embeddings - mean).double(), full_matrices=False)
        # Centred users span one dimension less than there are users.
        k = max(1, min(dimensions, len(embeddings) - 1))
        return cls(mean, vt[:k].mT.float().contiguous())

    def place(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (..., width) to unit vectors (..., k)."""
        return torch.nn.functional.normalize((embeddings - self.mean) @ self.basis, dim=-1)
