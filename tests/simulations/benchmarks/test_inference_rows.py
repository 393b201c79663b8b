"""Stacked inference, experts for many users, moving between users: all sides give one answer."""

from pathlib import Path

import pytest
import torch

from client.personalize import Personalised, parts_of
from shared.base_model import BaseModel
from shared.errors import MesofedError
from simulations.benchmarks import mixture, next_user, stacked_inference
from simulations.benchmarks.equality import relative_difference
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.models import plain_model, resident
from simulations.benchmarks.peft_peer import wrap
from simulations.benchmarks.workload import ALL_LINEAR, started_slab, text_tokens


@pytest.fixture(scope="module")
def exact(settings: Settings) -> BaseModel:
    return resident(settings, "fp32", ALL_LINEAR)


@pytest.fixture
def bare(exact: BaseModel) -> object:
    return plain_model("tiny", torch.float32, exact.device, "eager")


def test_unmerged_and_folded_give_what_dense_updates_give(exact: BaseModel, bare: object) -> None:
    stack = stacked_inference.three_parts(exact)
    empty, unmerged, folded, after = stacked_inference.check_outputs(exact, bare, stack)
    assert (empty.value, after.value) == (0.0, 0.0)
    assert max(unmerged.value, folded.value) < 1e-5
    # The plain model is given back as it was.
    again = stacked_inference.check_outputs(exact, bare, stack)
    assert again[0].value == 0.0


def test_a_stack_that_changes_nothing_would_be_noticed(
    exact: BaseModel, bare: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_private(base: BaseModel, stacks: list[Personalised]) -> object:
        return parts_of(base, [Personalised(stack.shared, stack.weights) for stack in stacks])

    monkeypatch.setattr(stacked_inference, "parts_of", without_private)
    with pytest.raises(MesofedError, match="unmerged"):
        stacked_inference.check_outputs(exact, bare, stacked_inference.three_parts(exact))


@torch.no_grad()
def test_writing_leaves_the_cache_as_it_was(exact: BaseModel) -> None:
    ids = torch.tensor([text_tokens(exact, stacked_inference.PROMPT)])
    step = stacked_inference.decode(exact.model, ids)
    lengths: list[int] = []
    handle = exact.model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["past_key_values"].get_seq_length()),
        with_kwargs=True,
    )
    step()
    step()
    handle.remove()
    one = list(
        range(stacked_inference.CONTEXT, stacked_inference.CONTEXT + stacked_inference.NEW_TOKENS)
    )
    assert lengths == one + one


@torch.no_grad()
def test_one_batch_gives_every_user_what_peft_gives(exact: BaseModel) -> None:
    stacks = mixture.mixed_stacks(exact)
    assert all(stack.weights.sum() == pytest.approx(1.0) for stack in stacks)
    ids = torch.tensor([text_tokens(exact, mixture.USERS * 12)]).view(mixture.USERS, 12)
    with exact.stack.using(parts_of(exact, stacks)):
        ours = mixture.last_logits(exact.model, ids)
    plain = plain_model("tiny", torch.float32, exact.device)
    loop = mixture.active_loop(plain, stacks, ids)
    other = plain_model("tiny", torch.float32, exact.device)
    batch = mixture.mixed_batch(other, exact, stacks, ids)
    assert relative_difference(ours, loop()) < 1e-5
    assert relative_difference(ours, batch()) < 1e-5
    # Users differ, so that giving one of them another's experts would show.
    assert relative_difference(ours.roll(1, 0), loop()) > 1e-2


def test_the_next_user_comes_out_as_it_went_in(exact: BaseModel, tmp_path: Path) -> None:
    stored = started_slab(exact, 4, 3)
    swap = next_user.slab_swap(stored)
    for user in (2, 0, 1):
        assert torch.equal(swap(user), stored.rows[user])
    plain = plain_model("tiny", torch.float32, exact.device)
    wrapped = wrap(plain, type(stored)(stored.maps, 4, stored.rows[:1]))
    states = [
        {
            f"base_model.model.{name}.lora_{side}.weight": tensor.mT.contiguous()
            for name, factors in stored.lora(user)
            for side, tensor in (("A", factors.a), ("B", factors.b))
        }
        for user in (2, 1)
    ]
    first, second = (
        next_user.in_and_out(wrapped, state, {k: torch.empty_like(v) for k, v in state.items()})
        for state in states
    )
    # What came out of the first is still there when the second is in.
    assert next_user.difference(stored.lora(2), first) == 0
    assert next_user.difference(stored.lora(1), second) == 0
    assert next_user.difference(stored.lora(1), first) > 0
