"""Answers against slow and plain truths: one prompt, one pass, one token at a time."""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from client.answers import _median, choose_labels, generate, gold_losses
from shared.base_model import BaseModel
from shared.errors import MesofedError
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.samples import Sample, encode, encode_prompt

PROMPTS = [
    "post: " + "w" * (i * 7 % 23) + f" {word}\ntag:"
    for i, word in enumerate(
        ("one", "two", "b", "Zürich", "5", "what a day", "", "end", "q", "rst")
    )
]


@pytest.fixture(params=["base", "adapted"])
def parts(request: pytest.FixtureRequest, base: BaseModel) -> Parts:
    if request.param == "base":
        return Parts()
    generator = torch.Generator().manual_seed(12)

    def draw(*shape: int) -> Tensor:
        return 0.25 * torch.randn(*shape, generator=generator)

    shared = Lora(
        {m.name: Factors(draw(m.in_features, 3), draw(3, m.out_features)) for m in base.maps}
    )
    return Parts(1, shared, torch.tensor([[1.0, 0.5, -0.5]]))


def next_logits(base: BaseModel, parts: Parts, ids: list[int]) -> Tensor:
    """Logits after one unpadded row, by the whole model without a cache."""
    with torch.no_grad(), base.stack.using(parts):
        return base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def asked(base: BaseModel, prompt: str, labels: list[str]) -> list[int]:
    """Return a prompt that leaves room for the longest label and its end."""
    return list(encode_prompt(base, prompt, 1 + max(len(f" {label}") for label in labels)))


def brute_force(base: BaseModel, parts: Parts, prompt: str, labels: list[str]) -> str:
    """Greedy decoding where only tokens are allowed that go on to some label."""
    end = base.tokenizer.eos_token_id
    spelled = {
        (*base.tokenizer.encode(f" {label}", add_special_tokens=False), end): label
        for label in labels
    }
    context, chosen = asked(base, prompt, labels), ()
    while chosen not in spelled:
        allowed = {s[len(chosen)] for s in spelled if s[: len(chosen)] == chosen}
        logits = next_logits(base, parts, context + list(chosen))
        chosen += (max(sorted(allowed), key=lambda token: logits[token].item()),)
    return spelled[chosen]


def label_lists() -> list[list[str]]:
    """Lists with labels that share beginnings or are the beginning of others."""
    rng = random.Random(3)
    made = [
        sorted({"".join(rng.choices("aeiost", k=rng.randint(1, 4))) for _ in range(8)})
        for _ in range(8)
    ]
    return [["drama", "dream", "dreams", "gear", "gears", "lesson"], list("12345"), *made]


def test_labels_are_chosen_as_greedy_decoding_among_them_does(
    base: BaseModel, parts: Parts
) -> None:
    different = 0
    for labels in label_lists():
        expected = [brute_force(base, parts, prompt, labels) for prompt in PROMPTS]
        assert choose_labels(base, parts, [PROMPTS], labels) == [expected]
        assert choose_labels(base, parts, [PROMPTS], labels[::-1]) == [expected]
        different += len(set(expected)) > 1
    assert different >= 3, "prompts that all have one answer test little"


def test_labels_that_differ_in_their_first_letter_are_told_by_one_argmax(
    base: BaseModel, parts: Parts
) -> None:
    labels = ["gear", "dream", "lesson", "comedy", "triumph", "secret", "routine"]
    expected = []
    for prompt in PROMPTS:
        # Bytes: all labels begin with the space, then with different letters.
        logits = next_logits(base, parts, [*asked(base, prompt, labels), ord(" ")])
        expected.append(max(labels, key=lambda label: logits[ord(label[0])].item()))
    assert choose_labels(base, parts, [PROMPTS], labels) == [expected]
    assert len(set(expected)) > 1


def test_a_batch_answers_as_each_prompt_alone(base: BaseModel, parts: Parts) -> None:
    labels = ["drama", "dream", "gear", "lesson"]
    alone = [choose_labels(base, parts, [[prompt]], labels)[0][0] for prompt in PROMPTS]
    assert choose_labels(base, parts, [PROMPTS], labels) == [alone]


def prior_of(labels: Sequence[str], seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    weights = {label: rng.random() ** 6 + 1e-4 for label in labels}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def by_bayes(
    base: BaseModel, parts: Parts, prompt: str, prior: dict[str, float]
) -> tuple[str, float]:
    """Return the likeliest label where first letters differ, and by how much in log-odds."""
    logits = next_logits(base, parts, [*asked(base, prompt, list(prior)), ord(" ")])
    letters = [ord(label[0]) for label in prior]
    likelihoods = logits[letters].softmax(0)
    posterior = likelihoods * torch.tensor(list(prior.values()))
    (first, second), places = posterior.log().topk(2)
    return list(prior)[int(places[0])], float(first - second)


def test_a_prior_and_the_likelihoods_give_the_label_of_bayes_rule(
    base: BaseModel, parts: Parts
) -> None:
    labels = ["gear", "dream", "lesson", "comedy", "triumph", "secret", "routine"]
    plain = choose_labels(base, parts, [PROMPTS], labels)[0]
    moved = 0
    for seed in range(4):
        prior = prior_of(labels, seed)
        chosen = choose_labels(base, parts, [PROMPTS], labels, [prior])[0]
        for prompt, came in zip(PROMPTS, chosen, strict=True):
            expected, margin = by_bayes(base, parts, prompt, prior)
            assert came == expected or margin < 1e-4
        moved += sum(a != b for a, b in zip(plain, chosen, strict=True))
    assert moved >= 3, "a prior that changes nothing tests little"


def test_a_prior_counts_labels_together_that_a_token_leaves_possible(base: BaseModel) -> None:
    labels = ["drama", "dream", "gear"]
    # "d" and "g" part first; what the two labels in d have counts together there.
    for prompt in PROMPTS:
        logits = next_logits(base, Parts(), [*asked(base, prompt, labels), ord(" ")])
        odds = float(logits[ord("d")] - logits[ord("g")])
        for shift in (-0.2, 0.2):  # just beyond and just short of the turning point
            d = 1 / (1 + math.exp(odds + shift))
            turned = {"drama": d / 2, "dream": d / 2, "gear": 1 - d}
            (chosen,) = choose_labels(base, Parts(), [[prompt]], labels, [turned])[0]
            assert (chosen == "gear") == (shift > 0)
    assert choose_labels(base, Parts(), [PROMPTS], labels, [None]) == choose_labels(
        base, Parts(), [PROMPTS], labels
    )


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_of_scores_the_one_with_the_least_expected_error_is_chosen(
    base: BaseModel, parts: Parts, seed: int | None
) -> None:
    scores = list("12345")
    prior = dict.fromkeys(scores, 0.2) if seed is None else prior_of(scores, seed)
    came = choose_labels(base, parts, [PROMPTS], scores, [prior], ordered=True)[0]
    for prompt, chosen in zip(PROMPTS, came, strict=True):
        logits = next_logits(base, parts, [*asked(base, prompt, scores), ord(" ")]).double()
        share = logits[[ord(score) for score in scores]].softmax(0) * torch.tensor(
            [prior[score] for score in scores]
        )
        share /= share.sum()
        places = torch.arange(5.0).double()
        errors = (places[:, None] - places).abs() @ share
        error = dict(zip(scores, errors.tolist(), strict=True))
        assert error[chosen] <= min(error.values()) + 1e-5
    turned = choose_labels(base, parts, [PROMPTS], scores, [prior])[0]
    if seed is None:
        assert came != turned, "scores that are the likeliest anyway test little"


def test_the_median_is_the_lower_one_where_half_lies_on_either_side() -> None:
    even = torch.tensor([0.25, 0.25, 0.25, 0.25]).log()
    assert _median(even, [0, 1, 2, 3]) == 1
    assert _median(even, [3, 2, 1, 0]) == 2  # of the places 3, 2, 1, 0 that is the one at 1
    assert _median(torch.tensor([0.3, 0.6, 0.1]).log(), [2, 0, 1]) == 1
    assert _median(torch.tensor([0.0, -200.0, -200.0]), [2, 1, 0]) == 0


def test_scores_that_no_single_token_tells_apart_are_chosen_like_labels(
    base: BaseModel, parts: Parts
) -> None:
    for scores in (["1", "10", "2"], ["bad", "better", "best"]):
        expected = [brute_force(base, parts, prompt, scores) for prompt in PROMPTS]
        assert choose_labels(base, parts, [PROMPTS], scores, ordered=True) == [expected]


def test_every_person_has_an_own_prior(base: BaseModel, parts: Parts) -> None:
    labels = ["gear", "dream", "lesson"]
    certain = [{name: 1.0 - 2e-9 if name == own else 1e-9 for name in labels} for own in labels]
    several = Parts(
        3, parts.shared, parts.weights.repeat(3, 1) if parts.weights is not None else None
    )
    came = choose_labels(base, several, [PROMPTS[:2]] * 3, labels, certain)
    assert came == [[label] * 2 for label in labels]


def greedy(base: BaseModel, parts: Parts, prompt: str, tokens: int) -> list[int]:
    ids = list(encode_prompt(base, prompt, tokens))
    start = len(ids)
    while len(ids) - start < tokens:
        ids.append(int(next_logits(base, parts, ids).argmax()))
        if ids[-1] == base.tokenizer.eos_token_id:
            break
    return ids[start:]


def decoded(base: BaseModel, ids: list[int]) -> str:
    return str(base.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def ending_early(base: BaseModel, answers: Sequence[Sequence[int]]) -> BaseModel:
    """Let a token that an answer comes to on its way be the end of sequence."""
    letter = next(t for answer in answers for t in answer[3:] if 32 < t < 127 and t != answer[0])
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.eos_token = chr(letter)
    assert tokenizer.eos_token_id == letter
    return replace(base, tokenizer=tokenizer)


def test_generation_is_greedy_decoding_token_by_token(base: BaseModel, parts: Parts) -> None:
    expected = [decoded(base, greedy(base, parts, prompt, 12)) for prompt in PROMPTS]
    assert generate(base, parts, [PROMPTS], 12) == [expected]
    assert len(set(expected)) > 1


def test_generation_stops_at_the_end_of_sequence(base: BaseModel, parts: Parts) -> None:
    ending = ending_early(base, [greedy(base, parts, prompt, 12) for prompt in PROMPTS])
    answers = [greedy(ending, parts, prompt, 12) for prompt in PROMPTS]
    assert any(1 < len(answer) < 12 for answer in answers)
    assert generate(ending, parts, [PROMPTS], 12) == [[decoded(ending, a) for a in answers]]


@pytest.fixture
def passes(base: BaseModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of every forward pass through the last layer."""
    found: list[tuple[int, int]] = []

    def note(_: nn.Module, states: tuple[Tensor, ...]) -> None:
        found.append((states[0].shape[0], states[0].shape[1]))

    hook = base.model.get_decoder().layers[-1].register_forward_pre_hook(note)
    yield found
    hook.remove()


def test_generation_reads_a_prompt_once_and_then_one_token_a_pass(
    base: BaseModel, parts: Parts, passes: list[tuple[int, int]]
) -> None:
    ending = ending_early(base, [greedy(base, parts, prompt, 12) for prompt in PROMPTS])
    for prompts in (PROMPTS, *([prompt] for prompt in PROMPTS)):
        steps = max(len(greedy(ending, parts, prompt, 12)) for prompt in prompts)
        longest = max(len(encode_prompt(base, prompt, 12)) for prompt in prompts)
        passes.clear()
        generate(ending, parts, [prompts], 12)
        # The last token is only ever written.
        assert passes == [(len(prompts), longest), *[(len(prompts), 1)] * (steps - 1)]
        assert steps <= 12


def test_labels_take_a_pass_only_where_they_part(
    base: BaseModel, parts: Parts, passes: list[tuple[int, int]]
) -> None:
    # Bytes: all labels begin with the space, the first token at which these part is the second.
    for labels in (["gear", "dream", "lesson"], list("12345"), ["gears", "gear"]):
        passes.clear()
        choose_labels(base, parts, [PROMPTS], labels)
        assert [rows for rows, _ in passes] == [len(PROMPTS)], labels
    passes.clear()
    choose_labels(base, parts, [PROMPTS], ["gear"])
    assert passes == []
    # First which letter, for all; then, for those that are at d, drama or dream; then the end.
    labels = ["drama", "dream", "dreams", "gear"]
    letters = [
        max("dg", key=lambda x: next_logits(base, parts, [*asked(base, p, labels), 32])[ord(x)])
        for p in PROMPTS
    ]
    chosen = [brute_force(base, parts, prompt, labels) for prompt in PROMPTS]
    assert letters.count("d") > 0
    passes.clear()
    assert choose_labels(base, parts, [PROMPTS], labels) == [chosen]
    left = [len(PROMPTS), letters.count("d"), sum(c.startswith("dream") for c in chosen)]
    assert [rows for rows, _ in passes] == [rows for rows in left if rows]


def gold_samples(base: BaseModel) -> list[Sample]:
    answers = ("a", "gear", "über", "x y z", "5") * 2
    return [encode(base, p, answer) for p, answer in zip(PROMPTS, answers, strict=True)]


def loss_of_transformers(base: BaseModel, parts: Parts, sample: Sample) -> float:
    ids = torch.tensor([[*sample.prompt, *sample.answer]])
    labels = ids.clone()
    labels[0, : len(sample.prompt)] = -100
    with torch.no_grad(), base.stack.using(parts):
        return float(base.model(input_ids=ids, labels=labels).loss)


def test_gold_losses_are_the_losses_of_transformers(base: BaseModel, parts: Parts) -> None:
    samples = gold_samples(base)
    (came,) = gold_losses(base, parts, [samples])
    expected = [loss_of_transformers(base, parts, sample) for sample in samples]
    assert came == pytest.approx(expected, rel=1e-4)
    assert len({len(sample.answer) for sample in samples}) > 1


def test_the_stack_is_off_again_after_an_answer(base: BaseModel, parts: Parts) -> None:
    before = base.stack.parts
    choose_labels(base, parts, [PROMPTS[:2]], ["a", "b"])
    generate(base, parts, [PROMPTS[:2]], 2)
    gold_losses(base, parts, [[Sample((1, 2), (3,))]])
    assert base.stack.parts is before


# Several people at once

# Places in PROMPTS, by person: groups of unequal size, and the same prompt for several people.
ASKED = ((0, 1, 2, 3, 4), (3,), (), (9, 3))


@pytest.fixture(scope="module")
def people(base: BaseModel) -> Parts:
    """Parts of four people who differ in weights and in private parts."""
    generator = torch.Generator().manual_seed(21)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    users = len(ASKED)
    shared = Lora(
        {m.name: Factors(draw(m.in_features, 3), draw(3, m.out_features)) for m in base.maps}
    )
    private = {
        m.name: Factors(draw(users, m.in_features, 2), draw(users, 2, m.out_features))
        for m in base.maps
    }
    return Parts(users, shared, 3 * draw(users, 3), private)


def only(parts: Parts, user: int) -> Parts:
    """Return the parts of one of several people."""
    own = slice(user, user + 1)
    assert parts.weights is not None
    assert parts.private is not None
    private = {name: Factors(f.a[own], f.b[own]) for name, f in parts.private.items()}
    return Parts(1, parts.shared, parts.weights[own], private)


def test_people_with_more_and_fewer_prompts_get_their_own_texts(
    base: BaseModel, people: Parts
) -> None:
    asked = [[PROMPTS[place] for place in own] for own in ASKED]

    def token_by_token(model: BaseModel) -> list[list[list[int]]]:
        return [
            [greedy(model, only(people, user), prompt, 12) for prompt in own]
            for user, own in enumerate(asked)
        ]

    answers = token_by_token(base)
    assert generate(base, people, asked, 12) == [[decoded(base, a) for a in o] for o in answers]
    # The prompt that three people are asked tells them apart.
    assert len({tuple(a) for a in (answers[0][3], answers[1][0], answers[3][1])}) == 3
    # Some rows have ended, others, among them those that fill up, go on.
    ending = ending_early(base, [answer for own in answers for answer in own])
    answers = token_by_token(ending)
    assert len({len(answer) for own in answers for answer in own}) > 1
    came = generate(ending, people, asked, 12)
    assert came == [[decoded(ending, a) for a in own] for own in answers]


def test_people_with_more_and_fewer_prompts_get_their_own_labels(
    base: BaseModel, people: Parts
) -> None:
    asked = [[PROMPTS[place] for place in own] for own in ASKED]
    different = 0
    for labels in label_lists():
        expected = [
            [brute_force(base, only(people, user), prompt, labels) for prompt in own]
            for user, own in enumerate(asked)
        ]
        assert choose_labels(base, people, asked, labels) == expected
        different += len({expected[0][3], expected[1][0], expected[3][1]}) > 1
    assert different >= 3, "people who all answer alike test little"


def test_people_with_more_and_fewer_samples_get_their_own_losses(
    base: BaseModel, people: Parts
) -> None:
    samples = gold_samples(base)
    came = gold_losses(base, people, [[samples[place] for place in own] for own in ASKED])
    for user, (losses, own) in enumerate(zip(came, ASKED, strict=True)):
        alone = only(people, user)
        expected = [loss_of_transformers(base, alone, samples[place]) for place in own]
        assert losses == pytest.approx(expected, rel=1e-4)
    same = sorted((came[0][3], came[1][0], came[3][1]))
    assert min(b - a for a, b in pairwise(same)) > 0.01


def test_an_empty_prompt_is_refused(base: BaseModel, parts: Parts) -> None:
    with pytest.raises(MesofedError, match="got an empty one"):
        generate(base, parts, [["a word", ""]], 4)
