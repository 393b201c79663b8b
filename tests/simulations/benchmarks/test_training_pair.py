"""Cohort and PEFT compute the same losses, gradients and steps; if not, nothing is timed."""

import pytest
import torch

from shared.base_model import BaseModel
from shared.cohort import train_cohort
from shared.config import TrainingConfig
from shared.errors import MesofedError
from shared.lora.slab import Slab
from shared.precision import weight_format
from shared.training import Trainee
from simulations.benchmarks import training
from simulations.benchmarks.alone import gradient_difference, training_difference
from simulations.benchmarks.cohort import (
    LEARNING_RATE,
    CohortStep,
    Gradients,
    cohort_gradients,
)
from simulations.benchmarks.equality import (
    check_gradients,
    relative_difference,
    smallest_cosine,
)
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.models import plain_model, resident, top_layers
from simulations.benchmarks.peft_peer import (
    adapter_layer,
    adapter_name,
    peft_gradients,
    peft_step,
    wrap,
)
from simulations.benchmarks.workload import (
    ALL_LINEAR,
    IGNORED,
    QUERY_VALUE,
    make_workload,
    started_slab,
    text_tokens,
)


@pytest.fixture(scope="module")
def exact(settings: Settings) -> BaseModel:
    return resident(settings, "fp32", ALL_LINEAR)


def peer_of(base: BaseModel, slab: Slab) -> object:
    return wrap(plain_model("tiny", torch.float32, base.device), slab)


@pytest.mark.parametrize(
    ("adapt", "top_share", "answer_share"),
    [(ALL_LINEAR, 1.0, 1.0), (QUERY_VALUE, 1.0, 0.25), (QUERY_VALUE, 0.25, 0.25)],
)
def test_both_sides_of_a_training_row_agree(
    settings: Settings, adapt: tuple[str, ...], top_share: float, answer_share: float
) -> None:
    both = training.pair(settings, adapt, [24] * 3, answer_share, top_share)
    losses, gradients, directions = both.equalities
    assert losses.value < 1e-6
    assert gradients.value < 1e-5
    assert directions.value < 1e-2
    assert both.base.format == weight_format("auto", both.base.device)
    assert len(both.base.maps) == len(adapt) * top_layers(4, top_share)


def test_a_peer_with_other_weights_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object) -> object:
        model = plain_model("tiny", torch.float32, torch.device("cpu"))
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
        return model

    monkeypatch.setattr(training, "plain_model", wrong)
    with pytest.raises(MesofedError, match="differ by"):
        training.pair(settings, QUERY_VALUE, [24] * 2)


@pytest.mark.parametrize("wrong", ["losses", "rows", "timed"])
def test_each_comparison_counts(wrong: str) -> None:
    right = Gradients(torch.tensor([1.0, 2.0]), torch.randn(2, 50))
    off = Gradients(
        right.losses * (1.01 if wrong == "losses" else 1),
        right.rows.roll(1, 1) if wrong != "losses" else right.rows,
    )
    check_gradients(right, right, right)
    with pytest.raises(MesofedError):
        check_gradients(right if wrong == "timed" else off, off, right)


def test_one_wrong_user_among_many_is_noticed() -> None:
    rows = torch.randn(8, 100)
    other = rows.clone()
    other[5, 0] += 1e-2
    assert relative_difference(other, rows) > 1e-4
    assert smallest_cosine(other, rows) < 1 - 1e-8
    assert relative_difference(rows, rows) == 0


def test_both_optimisers_take_the_same_step(exact: BaseModel) -> None:
    workload = make_workload(exact, [16] * 2, 0.5)
    start = started_slab(exact, 4, 2)
    trained = train_cohort(
        exact,
        [Trainee(f"user {u}", (sample,), u) for u, sample in enumerate(workload.samples)],
        start,
        TrainingConfig(
            epochs=1, batch_size=1, learning_rate=LEARNING_RATE, warmup=0.0, clip_norm=1e9
        ),
    )
    peer = peer_of(exact, start)
    peft_step(peer, workload, exact.device)()
    theirs = torch.zeros_like(start.rows)
    for target, view in start.views(theirs).items():
        for user in range(2):
            layer = adapter_layer(peer, target)
            view.a[user] = layer.lora_A[adapter_name(user)].weight.detach().mT
            view.b[user] = layer.lora_B[adapter_name(user)].weight.detach().mT
    assert relative_difference(trained.slab.rows - start.rows, theirs - start.rows) < 1e-2
    assert relative_difference(trained.slab.rows, theirs) < 1e-6


def test_a_step_of_some_users_is_counted_as_such(exact: BaseModel) -> None:
    workload = make_workload(exact, [16] * 4, 0.5)
    step = CohortStep(exact, started_slab(exact, 4, 4), workload)
    assert (step.users, step.share) == (4, 1.0)
    assert training.share_of(step) == 1.0
    assert training.share_of(lambda: None) == 1.0
    assert training.users_in_a_batch({"ours": step, "peer": lambda: None}) == {"ours": 4}


def test_gradients_come_back_in_the_layout_of_the_slab(exact: BaseModel) -> None:
    workload = make_workload(exact, [12] * 2, 1.0)
    slab = started_slab(exact, 2, 2)
    peer = peer_of(exact, slab)
    name, user = exact.maps[5].name, 1
    layer = adapter_layer(peer, name)
    assert torch.equal(layer.lora_A[adapter_name(user)].weight, slab.lora(user).factors[name].a.mT)
    found = peft_gradients(peer, slab, workload)
    expected = cohort_gradients(exact, slab, workload)
    torch.testing.assert_close(found.rows, expected.rows, rtol=1e-4, atol=1e-6)


def test_a_user_learns_in_company_what_it_learns_alone(exact: BaseModel) -> None:
    equal = make_workload(exact, [16] * 3, 0.25)
    unequal = make_workload(exact, [16, 24, 19], 0.25)
    assert training_difference(exact, equal) == 0
    assert training_difference(exact, unequal) <= 1e-5
    assert gradient_difference(exact, unequal) <= 1e-5


def test_samples_and_labels_are_the_same_text(exact: BaseModel) -> None:
    workload = make_workload(exact, [20, 8], 0.25)
    assert (workload.users, workload.tokens, workload.answers) == (2, 28, 7)
    for sample, (ids, labels) in zip(
        workload.samples, workload.labelled(exact.device), strict=True
    ):
        assert tuple(ids[0].tolist()) == sample.prompt + sample.answer
        assert tuple(labels[labels != IGNORED].tolist()) == sample.answer
    assert workload.samples[1].prompt[0] == text_tokens(exact, 1, start=20)[0]
    whole = make_workload(exact, [20], 1.0)
    assert whole.answers == 19
