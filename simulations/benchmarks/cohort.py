"""Our side of the training rows: the cohort trainer, one step of all users at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base_model import BaseModel
from shared.cohort import Cohort
from shared.config import TrainingConfig
from shared.lora.layer import Parts
from shared.lora.slab import Slab
from shared.samples import collate
from shared.training import Trainee, answer_losses, mean_per_user
from simulations.benchmarks.workload import Workload

LEARNING_RATE = 1e-4
# More steps than any benchmark takes.
ENDLESS = 1000


@dataclass(frozen=True)
class Gradients:
    """What one step computes, on either side.

    Attributes
    ----------
    losses : Tensor, (users,)
        Mean negative log-likelihood per answer token, in nats.
    rows : Tensor, (users, parameters)
        In the layout of the slab.
    """

    losses: Tensor
    rows: Tensor


def cohort_gradients(base: BaseModel, slab: Slab, workload: Workload) -> Gradients:
    """Run one batch of all users forward and backward, as the trainer does."""
    batch = collate(workload.groups, base.pad_token, base.device)
    private = slab.leaves(batch.users)
    with base.stack.using(Parts(batch.users, private=private)):
        losses = mean_per_user(answer_losses(base, batch), batch)
        gradients = torch.autograd.grad(
            losses.sum(), [tensor for f in private.values() for tensor in (f.a, f.b)]
        )
    return Gradients(losses.detach(), Slab.to_rows(gradients))


class CohortStep:
    """A training step with the product's trainer: of as many of the users as its memory allows.

    Parameters
    ----------
    slab : Slab
        Where the users start; left as it is.

    Attributes
    ----------
    share : float
        Share of the users that went into the last step.
    """

    def __init__(self, base: BaseModel, slab: Slab, workload: Workload) -> None:
        config = TrainingConfig(
            epochs=ENDLESS, batch_size=1, learning_rate=LEARNING_RATE, warmup=0.0
        )
        self._cohort = Cohort(base, slab.rank, config)
        self._members = [
            self._cohort.join(Trainee(f"user {user}", (sample,), user), slab.rows[user])
            for user, sample in enumerate(workload.samples)
        ]
        self._tokens = workload.tokens
        self.share = 0.0
        # The trainer measures the memory of a step on one user before it takes many.
        self()
        self()

    def __call__(self) -> None:
        """Take the step."""
        before = sum(member.tokens for member in self._members)
        self._cohort.step()
        self.share = (sum(member.tokens for member in self._members) - before) / self._tokens

    @property
    def users(self) -> int:
        """Users of the workload."""
        return len(self._members)

    @property
    def losses(self) -> list[float]:
        """Return the first loss of each user that has had a step, in the order of the users."""
        return [member.curve[0][1] for member in self._members if member.curve]
