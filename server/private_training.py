"""DP-SGD for LoRAs: a LoRA that does not tell whether any one sample was among its own.

    row of the LoRA       the row, once a sample    gradients, by sample    one step

                      +-> | a_0 | b_0 | ... |  ->   g_1, clipped to C  -+
    | a_0 | b_0 | ... +-> | a_0 | b_0 | ... |  ->   g_2, clipped to C   +-> sum + C sigma N(0, I)
                      +-> | a_0 | b_0 | ... |  ->   g_3, clipped to C  -+

The batch that trains many users' LoRAs trains one LoRA as if every sample had its own: the
gradient of a row is then the gradient by one sample, exact and at no further cost.

Source: Abadi et al., Deep Learning with Differential Privacy (2016), algorithm 1, with AdamW in
the place of plain descent, which only processes what is noised already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.training_budget import Budget, plan_budget
from shared.base_model import BaseModel
from shared.cohort import Trained
from shared.config import BankConfig
from shared.lora.layer import Parts
from shared.lora.lora import Lora
from shared.lora.slab import Slab
from shared.progress import tokens_done
from shared.samples import Sample, collate
from shared.seeding import derive_seed
from shared.training import Trainee, answer_losses, learning_rate, mean_per_user


@dataclass(frozen=True)
class PrivatelyTrained(Trained):
    """What a cohort has learned under differential privacy.

    Attributes
    ----------
    budgets : dict of str to Budget
        By trainee. Trainees share no sample, so the guarantee of a sample is its trainee's.
    """

    budgets: dict[str, Budget]


def train_privately(
    base: BaseModel,
    trainees: Sequence[Trainee],
    initial: Slab,
    config: BankConfig,
    population: Lora,
    noise_seed: int,
    releases: int = 1,
) -> PrivatelyTrained:
    """Train every trainee's LoRA within (``dp_epsilon``, ``dp_delta``) for each of its samples.

    Parameters
    ----------
    trainees : sequence of Trainee
        The users; each has at least one sample, and none has one of another's.
    initial : Slab
        Where each trainee starts; independent of the samples.
    config : BankConfig
        ``batch_size`` is the expected size of a step's Poisson batch, ``clip_norm`` the bound of
        one sample's gradient.
    population : Lora
        Frozen under the trainees' LoRAs.
    noise_seed : int
        Decides which samples are drawn and the noise. Whoever knows it can take the noise away.
    releases : int
        Trainings on the same samples that share the budget, this one among them.

    Raises
    ------
    MesofedError
        If the budget leaves nothing to learn.
    """
    shared = population.to(base.dtype, base.device)
    rows, curves, budgets, tokens = [], {}, {}, 0
    for trainee, start in zip(trainees, initial.rows, strict=True):
        budget = plan_budget(
            len(trainee.samples),
            config.batch_size,
            config.epochs,
            releases,
            config.dp_epsilon,
            config.dp_delta,
        )
        row, curve, seen = _train(
            base,
            trainee,
            Slab(initial.maps, initial.rank, start[None]),
            config,
            shared,
            budget,
            derive_seed(noise_seed, "dp-sgd", trainee.name),
        )
        rows.append(row)
        curves[trainee.name], budgets[trainee.name] = curve, budget
        tokens += seen
    slab = Slab(initial.maps, initial.rank, torch.stack(rows))
    return PrivatelyTrained(slab, None, curves, tokens, budgets)


def clip_each(gradients: Tensor, bound: float) -> Tensor:
    """Scale each row, (samples, parameters), to a norm of at most ``bound``.

    A row that is not finite counts as zero: it must not reach the others through the sum.
    """
    norms = gradients.norm(dim=1, keepdim=True)  # (samples, 1)
    scaled = gradients * (bound / norms.clamp(min=1e-12)).clamp(max=1.0)
    return torch.where(norms.isfinite(), scaled, torch.zeros_like(scaled))


def noised_mean(total: Tensor, bound: float, budget: Budget, generator: torch.Generator) -> Tensor:
    """Add the budget's noise to a sum of clipped gradients, (parameters,), and average it.

    The divisor is the expected number of samples: the true one would be told without noise.
    """
    noise = torch.randn(total.shape, generator=generator)
    noised = total + budget.noise_multiplier * bound * noise.to(total.device)
    return noised / (budget.sampling_rate * budget.samples)


def _train(
    base: BaseModel,
    trainee: Trainee,
    slab: Slab,
    config: BankConfig,
    shared: Lora,
    budget: Budget,
    seed: int,
) -> tuple[Tensor, list[tuple[int, float]], int]:
    """Return one trainee's row, (parameters,), learning curve and tokens processed."""
    generator = torch.Generator().manual_seed(seed)
    row = slab.rows[0].to(base.device, copy=True)
    optimiser = torch.optim.AdamW([row], weight_decay=config.weight_decay)
    curve: list[tuple[int, float]] = []
    tokens = 0
    for step in range(budget.steps):
        drawn = torch.rand(budget.samples, generator=generator) < budget.sampling_rate
        # Sorted by length, samples of a batch need little padding.
        batch = sorted((trainee.samples[i] for i in torch.nonzero(drawn)[:, 0].tolist()), key=len)
        total, losses = torch.zeros_like(row), []
        for start in range(0, len(batch), config.batch_size):
            part = batch[start : start + config.batch_size]
            own, gradients = per_sample_gradients(base, slab, row, shared, part)
            total += clip_each(gradients, config.clip_norm).sum(0)
            losses += own.tolist()
        row.grad = noised_mean(total, config.clip_norm, budget, generator)
        for parameters in optimiser.param_groups:
            parameters["lr"] = learning_rate(config, step, budget.steps)
        optimiser.step()
        if losses:
            curve.append((step, sum(losses) / len(losses)))
        seen = sum(map(len, batch))
        tokens += seen
        tokens_done(seen)
    row.grad = None
    return row.cpu(), curve, tokens


def per_sample_gradients(
    base: BaseModel, slab: Slab, row: Tensor, shared: Lora, samples: Sequence[Sample]
) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample, (samples,), and its gradient, (samples, parameters).

    Parameters
    ----------
    slab : Slab
        Tells the layout of ``row``.
    row : Tensor, (parameters,)
        The LoRA.
    shared : Lora
        Frozen under it, in the base model's format.
    """
    count = len(samples)
    leaves = Slab(slab.maps, slab.rank, row.expand(count, -1)).leaves(count)
    batch = collate([[sample] for sample in samples], base.pad_token, base.device)
    with base.stack.using(Parts(count, shared, None, leaves)):
        losses = mean_per_user(answer_losses(base, batch), batch)
        learned = [tensor for f in leaves.values() for tensor in (f.a, f.b)]
        gradients = torch.autograd.grad(losses.sum(), learned)
    return losses.detach(), Slab.to_rows(gradients)
