"""The row on base formats: footprint, decode, training step and loss against fp32."""

import statistics
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from shared.base_model import BaseModel
from shared.cohort import train_cohort
from shared.config import Format, TrainingConfig
from shared.lora.lora import Factors
from shared.samples import Sample, collate
from shared.training import Trainee, answer_losses
from simulations.benchmarks.cohort import CohortStep, cohort_gradients
from simulations.benchmarks.equality import BF16_COSINE, smallest_cosine
from simulations.benchmarks.interleave import interleave
from simulations.benchmarks.measurement import (
    Bar,
    Equality,
    Figure,
    Finding,
    Settings,
    checked,
    ratios,
)
from simulations.benchmarks.models import resident
from simulations.benchmarks.stacked_inference import decode
from simulations.benchmarks.training import timed
from simulations.benchmarks.workload import (
    QUERY_VALUE,
    Workload,
    make_workload,
    started_slab,
    text_tokens,
)

FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "nf4")
USERS, TOKENS, RANK, TEXT_TOKENS = 2, 64, 8, 512
TRAINING = TrainingConfig(epochs=4, batch_size=1, learning_rate=1e-3)


def quantised_bases(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Compare the base formats: fp32, bf16, int8, and NF4 of bitsandbytes."""
    bases = {form: resident(settings, form, QUERY_VALUE) for form in FORMATS}
    exact = bases["fp32"]
    workload = make_workload(exact, [TOKENS] * USERS, 1.0)
    # An evaluation comes first, because some kernels have no backward after one.
    losses = {form: text_loss(base) for form, base in bases.items()}
    cosines, equalities = check_gradients_of(bases, workload)
    trained = {form: training_loss(base, workload) for form, base in bases.items()}
    with torch.no_grad():
        ids = torch.tensor([text_tokens(exact, 2 * TOKENS)], device=exact.device)
        decoding = interleave(
            {form: decode(base.model, ids) for form, base in bases.items()},
            settings.rounds,
            on_round,
        )
    slab = started_slab(exact, RANK, USERS)
    stepping = timed(
        {form: CohortStep(base, slab, workload) for form, base in bases.items()},
        settings.rounds,
        on_round,
    )
    sizes = {form: footprint(base.model) for form, base in bases.items()}
    formats = [
        {
            "format": form,
            "footprint_bytes": sizes[form],
            "footprint": sizes[form] / sizes["fp32"],
            "decode": statistics.median(ratios(decoding[form], decoding["fp32"])),
            "training_step": statistics.median(ratios(stepping[form], stepping["fp32"])),
            "loss": losses[form],
            "training_loss": trained[form],
            "gradient_cosine": cosines[form],
        }
        for form in FORMATS
    ]
    return Finding(
        figures=(
            Figure(
                "NF4 base, footprint",
                "fp32 base",
                (sizes["nf4"] / sizes["fp32"],),
                Bar(0.22, at_least=False),
                higher_is_better=False,
            ),
            Figure(
                "int8 base, training loss, in nats",
                "fp32 base",
                (abs(trained["int8"] - trained["fp32"]),),
                Bar(0.03, at_least=False),
                unit="nats",
                higher_is_better=False,
            ),
        ),
        equalities=equalities,
        seconds={
            **{f"decode, {form}": values for form, values in decoding.items()},
            **{f"training step, {form}": values for form, values in stepping.items()},
        },
        facts={"formats": formats},
    )


def check_gradients_of(
    bases: dict[Format, BaseModel], workload: Workload
) -> tuple[dict[Format, float], tuple[Equality, ...]]:
    """Check that every format trains, and return each one's cosine to the fp32 gradients.

    Raises
    ------
    MesofedError
        If a parameter has no gradient, or bf16 leads elsewhere than fp32.
    """
    slab = started_slab(bases["fp32"], RANK, workload.users)
    rows = {form: cohort_gradients(base, slab, workload).rows for form, base in bases.items()}
    cosines = {form: smallest_cosine(own, rows["fp32"]) for form, own in rows.items()}
    missing = [
        checked(f"parameters without a gradient, {form}", share_without(slab.views(own)), 0.0)
        for form, own in rows.items()
    ]
    what = "directions of fp32 and bf16 gradients (1 - cosine)"
    turned = checked(what, 1 - cosines["bf16"], 1 - BF16_COSINE)
    return cosines, (*missing, turned)


def share_without(gradients: Mapping[str, Factors]) -> float:
    """Return the share of factors whose gradient is zero throughout."""
    tensors = [tensor for f in gradients.values() for tensor in (f.a, f.b)]
    return sum(not tensor.any() for tensor in tensors) / len(tensors)


@torch.no_grad()
def text_loss(base: BaseModel) -> float:
    """Return the bare base model's mean loss on a text, in nats per token."""
    ids = text_tokens(base, TEXT_TOKENS)
    batch = collate([[Sample(ids[:1], ids[1:])]], base.pad_token, base.device)
    return float(answer_losses(base, batch).mean())


def training_loss(base: BaseModel, workload: Workload) -> float:
    """Return the mean loss over a short training from the same start, in nats per token."""
    trainees = [Trainee(f"user {u}", (s,), seed=u) for u, s in enumerate(workload.samples)]
    trained = train_cohort(base, trainees, started_slab(base, RANK, workload.users), TRAINING)
    return statistics.fmean(loss for curve in trained.curves.values() for _, loss in curve)


def footprint(model: nn.Module) -> int:
    """Return the bytes of a model's weights and buffers, with the scales of quantised ones."""
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}
    return sum(sizes.values())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Go through everything that a model keeps in memory; tied weights come more than once."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        state = getattr(parameter, "quant_state", None)  # of NF4
        for tensor in (getattr(state, "absmax", None), getattr(state, "code", None)):
            if isinstance(tensor, Tensor):
                yield tensor
