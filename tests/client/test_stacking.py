"""Both forms of stacked inference against a plain model with every update added to its weights."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import client.device
import client.evaluation
from client.answers import choose_labels, generate, gold_losses
from client.device import Device
from client.evaluation import evaluate_stacks
from client.personalize import Personalised
from client.stacking import folding_pays, stacked
from client.vault import Vault
from shared import tiny
from shared.base_model import BaseModel, load_base
from shared.config import Format, RunConfig
from shared.lora.lora import Factors, Lora
from shared.samples import encode

FEW, MANY = (0, 1), (0, 10_000)
"""Tokens to come for which nothing is folded, and for which everything is that may be."""

PROMPTS = [f"post: {word}\nheadline:" for word in ("a", "what a day", "Zürich", "5", "the q " * 9)]
LABELS = ["drama", "dream", "gear", "lesson"]


def random_lora(base: BaseModel, rank: int, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    return Lora(
        {m.name: Factors(draw(m.in_features, rank), draw(rank, m.out_features)) for m in base.maps}
    )


def stacks_of(base: BaseModel) -> list[Personalised]:
    """Stacks of three people: some parts in common, weights and private parts of their own."""
    first, second, third = (random_lora(base, rank, rank) for rank in (4, 2, 1))
    return [
        Personalised((first, second), torch.tensor([1.0, 0.7]), random_lora(base, 2, 10)),
        Personalised((first, third), torch.tensor([1.0, -0.4]), random_lora(base, 2, 11)),
        Personalised((first, second), torch.tensor([1.0, 0.1]), random_lora(base, 2, 12)),
    ]


@pytest.fixture(scope="module")
def stacks(base: BaseModel) -> list[Personalised]:
    return stacks_of(base)


def weights_of(base: BaseModel) -> dict[str, Tensor]:
    """All numbers of the model, under the names that they have without adapter layers."""
    return {
        name.replace(".base.", "."): tensor.clone()
        for name, tensor in base.model.state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_hand(stack: Personalised, ids: Tensor) -> Tensor:
    """Logits of a model of its own, without adapter layers, in fp64."""
    model = tiny.build_model().double()
    parts = [*zip(stack.shared, stack.weights.tolist(), strict=True)]
    if stack.private is not None:
        parts.append((stack.private, 1.0))
    with torch.no_grad():
        for lora, weight in parts:
            for name, factors in lora:
                delta = factors.b.double().T @ factors.a.double().T
                model.get_submodule(name).weight += weight * delta
        return model(input_ids=ids).logits


def ids_of(base: BaseModel) -> Tensor:
    return torch.tensor([base.tokenizer.encode("post: what a day"), list(range(40, 56))])


@pytest.mark.parametrize("part", ["all", "shared", "private"])
def test_both_forms_are_the_stack(base: BaseModel, stacks: list[Personalised], part: str) -> None:
    stack = stacks[0]
    if part == "shared":
        stack = replace(stack, private=None)
    elif part == "private":
        stack = replace(stack, shared=(), weights=torch.zeros(0))
    ids, before = ids_of(base), weights_of(base)
    expected = by_hand(stack, ids)
    for tokens in (FEW, MANY):
        with stacked(base, [stack], *tokens) as parts, base.stack.using(parts), torch.no_grad():
            assert same(weights_of(base), before) == (tokens == FEW)
            came = base.model(input_ids=ids).logits
        torch.testing.assert_close(came.double(), expected, atol=1e-4, rtol=1e-4)
    plain = by_hand(Personalised((), torch.zeros(0)), ids)
    assert float((expected - plain).abs().max()) > 0.1


def test_both_forms_give_the_same_answers(base: BaseModel, stacks: list[Personalised]) -> None:
    samples = [encode(base, prompt, "what a day") for prompt in PROMPTS]

    def answers(stack: Personalised, tokens: tuple[int, int]) -> tuple[Any, Any, list[float]]:
        with stacked(base, [stack], *tokens) as parts:
            written = generate(base, parts, [PROMPTS], 16)
            chosen = choose_labels(base, parts, [PROMPTS], LABELS)
            (losses,) = gold_losses(base, parts, [samples])
        return written, chosen, losses

    found = []
    for stack in stacks:
        unmerged, folded = answers(stack, FEW), answers(stack, MANY)
        assert folded[:2] == unmerged[:2]
        assert folded[2] == pytest.approx(unmerged[2], abs=1e-4)
        found.append(unmerged)
    assert len({str(written) for written, _, _ in found}) == 3
    assert len({str(losses) for _, _, losses in found}) == 3


def test_several_people_in_a_batch_answer_as_each_alone_in_either_form(
    base: BaseModel, stacks: list[Personalised]
) -> None:
    # Everyone is asked the same first, so a stack in another's place cannot pass.
    asked = [PROMPTS[:1], PROMPTS, PROMPTS[:3]]
    before = weights_of(base)
    with stacked(base, stacks, *MANY) as parts:
        assert same(weights_of(base), before), "there is no one stack to fold"
        together = generate(base, parts, asked, 16)
    for tokens in (FEW, MANY):
        for stack, prompts, came in zip(stacks, asked, together, strict=True):
            with stacked(base, [stack], *tokens) as parts:
                assert generate(base, parts, [prompts], 16) == [came]
    assert len({own[0] for own in together}) == 3


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_base_model_is_left_as_it_was(
    base: BaseModel,
    stacks: list[Personalised],
    tokens: tuple[int, int],
    error: type[BaseException] | None,
) -> None:
    before, parts_before = weights_of(base), base.stack.parts

    def answer() -> None:
        with stacked(base, stacks[:1], *tokens) as parts:
            generate(base, parts, [PROMPTS], 4)
            if error is not None:
                raise error

    if error is None:
        answer()
    else:
        with pytest.raises(error):
            answer()
    assert same(weights_of(base), before)
    assert base.stack.parts is parts_before
    assert open_to_others(base)


def open_to_others(base: BaseModel) -> bool:
    """Whether another thread gets the base model's lock."""
    found: list[bool] = []

    def try_it() -> None:
        found.append(base.lock.acquire(blocking=False))
        if found[0]:
            base.lock.release()

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return found[0]


def test_nobody_else_meets_folded_weights(base: BaseModel, stacks: list[Personalised]) -> None:
    with stacked(base, stacks[:1], *MANY):
        assert not open_to_others(base)


@pytest.mark.parametrize("kind", ["bf16", "int8", "nf4"])
def test_other_formats_never_fold(small_config: RunConfig, kind: Format) -> None:
    settings = small_config.base.model_copy(update={"format": kind})
    base = load_base(settings, small_config.adapt)
    stack, before = stacks_of(base)[0], weights_of(base)
    samples = [[encode(base, "post: a\ntag:", "gear")]]
    found = []
    for tokens in (FEW, MANY):
        with stacked(base, [stack], *tokens) as parts:
            assert same(weights_of(base), before)
            found.append(gold_losses(base, parts, samples))
    assert found[0] == found[1]
    with stacked(base, [Personalised((), torch.zeros(0))], *MANY) as parts:
        assert gold_losses(base, parts, samples) != found[0], "the stack is on"


def test_where_nothing_is_on_nothing_is_folded(base: BaseModel) -> None:
    before = weights_of(base)
    with stacked(base, [Personalised((), torch.zeros(0))], *MANY) as parts:
        assert same(weights_of(base), before)
        assert (parts.shared, parts.private) == (None, None)


# The break-even, by the measured milliseconds: fold and restore 332, generated token 8.1, read 0.22


@pytest.mark.parametrize(
    ("prompt_tokens", "new_tokens"), [(0, 45), (1350, 0), (256, 37), (500, 29), (20, 45)]
)
def test_folding_begins_at_the_break_even(
    base: BaseModel, stacks: list[Personalised], prompt_tokens: int, new_tokens: int
) -> None:
    before = weights_of(base)
    fewer = (prompt_tokens, new_tokens - 1) if new_tokens else (prompt_tokens - 1, new_tokens)
    for tokens, pays in ((fewer, False), ((prompt_tokens, new_tokens), True)):
        assert folding_pays(*tokens) is pays
        assert 0.22 * tokens[0] + 8.1 * tokens[1] == pytest.approx(332, abs=40)
        with stacked(base, stacks[:1], *tokens):
            assert same(weights_of(base), before) == (not pays)


# Who asks for it


@pytest.fixture
def folded_when_generating(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """By call of ``generate``: whether the weights of the base model are other than their own."""
    found: list[bool] = []
    before = weights_of(base)

    def noting(*arguments: Any) -> Any:
        found.append(not same(weights_of(base), before))
        return generate(*arguments)

    monkeypatch.setattr(client.device, "generate", noting)
    monkeypatch.setattr(client.evaluation, "generate", noting)
    return found


@pytest.fixture
def open_vault(federation: Any, base: BaseModel) -> Callable[[int], Device]:
    config = federation.config

    def opened(index: int) -> Device:
        vault = Vault(federation.run_dir / "vaults" / f"{index:04d}")
        return Device(base, vault, config.methods, config.private, config.seed)

    return opened


def test_a_device_folds_for_a_long_answer_and_not_for_a_short_one(
    open_vault: Callable[[int], Device], base: BaseModel, folded_when_generating: list[bool]
) -> None:
    device = open_vault(0)
    # The prompt's 26 bytes, this model's tokens, count as 0.9 generated ones of the 45.
    short, long = (device.answer("meso-tuned", PROMPTS[1], tokens) for tokens in (44, 45))
    assert len(base.tokenizer.encode(PROMPTS[1])) == 26
    assert folded_when_generating == [False, True]
    # Greedy: the short answer is how the long one begins, but for a character cut in two.
    assert long.startswith(short.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_one_person_is_evaluated_folded_and_several_are_not(
    federation: Any, open_vault: Callable[[int], Device], folded_when_generating: list[bool]
) -> None:
    users = federation.people.device
    headlines = tuple(q for user in users for q in user.queries if q.task == "headline")
    people = [replace(user, queries=headlines[:4]) for user in users]
    stacks = [open_vault(index).personalised("oppu") for index in range(len(people))]
    base = open_vault(0).base
    (alone,) = evaluate_stacks(base, people[:1], stacks[:1])
    together = evaluate_stacks(base, people, stacks)
    assert folded_when_generating == [True, False]
    assert len(alone["queries"]) == len(people[0].queries) > 1
    for one, other in zip(alone["queries"], together[0]["queries"], strict=True):
        assert one.pop("nll") == pytest.approx(other.pop("nll"), abs=1e-4)
        assert one == other
