"""The stack of one person: which parts are on, at which weights, and what the device trains."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from client.personalize import (
    Personalised,
    Routing,
    _trainee,
    begin_personalising,
    compose,
    parts_of,
    route,
)
from shared.base_model import BaseModel
from shared.compute import _background, compute
from shared.config import PrivateConfig
from shared.embedding import EmbeddingSpace
from shared.errors import MesofedError
from shared.lora.algebra import base_weights, fuse
from shared.lora.lora import Factors, Lora
from shared.methods import METHODS
from shared.release import Release
from shared.routing import Retrieval, Router
from shared.samples import Sample, encode

# What each method declares, written down once more: parts with weights (experts 0.7 and 0.3,
# anchors 2 and 0 at 0.6 and 0.4, a quarter of it beside experts), tuned parts, private rank.
POPULATION = [("population", 1.0)]
EXPERTS = [("expert 0", 0.7), ("expert 1", 0.3)]
ANCHORS = [("anchor 2", 0.6), ("anchor 0", 0.4)]
BOTH = [*EXPERTS, *((name, weight / 4) for name, weight in ANCHORS)]
# Rank by rank: experts are of rank 2, anchors of rank 1; anchor 1 was not retrieved.
BY_RANK = [
    *((f"{name}, rank {rank}", weight) for name, weight in EXPERTS for rank in range(2)),
    *((f"{name}, rank 0", weight / 4) for name, weight in ANCHORS),
    ("anchor 1, rank 0", 0.0),
]
SOME = ("v_proj", "o_proj", "down_proj")
ON = {"oppu-qv": ("q_proj", "v_proj"), "meso-tuned": SOME, "meso": SOME}
ON |= {"meso-no-prior": SOME, "meso-no-release": SOME, "meso-gated": SOME}
PRIOR = {"population-prior", "meso", "meso-no-release", "meso-tuned", "meso-code", "meso-r1"}
PRIOR |= {"meso-r4", "meso-gated"}
GATED = {"meso-gated"}
EXPECTED: dict[str, tuple[list[tuple[str, float]], list[bool], int]] = {
    "base": ([], [], 0),
    "population": (POPULATION, [False], 0),
    "population-prior": (POPULATION, [False], 0),
    "experts": (POPULATION + EXPERTS, [False] * 3, 0),
    "anchors": (POPULATION + ANCHORS, [False] * 3, 0),
    "oppu": (POPULATION, [False], 3),
    "proper-folded": (POPULATION + EXPERTS, [False] * 3, 3),
    "mta-exact": (POPULATION + ANCHORS, [False] * 3, 1),
    "meso": (POPULATION + BOTH, [False] * 5, 1),
    "meso-tuned": (POPULATION + BOTH, [False] + [True] * 4, 1),
    "oppu-qv": (POPULATION, [False], 3),
    "meso-code": (POPULATION + BY_RANK, [False] + [True] * 7, 0),
    "meso-no-prior": (POPULATION + BOTH, [False] * 5, 1),
    "meso-no-release": (POPULATION, [False], 1),
    "meso-gated": (POPULATION + BOTH, [False] * 5, 1),
    "meso-r1": (POPULATION + BOTH, [False] * 5, 1),
    "meso-r4": (POPULATION + BOTH, [False] * 5, 4),
}
ROUTING = Routing(torch.tensor([0.7, 0.3]), Retrieval((2, 0), (0.6, 0.4), (0.9, 0.5)))
CONFIG = PrivateConfig(rank=3, stack_rank=1, epochs=1, batch_size=2, learning_rate=5e-3)


def random_lora(base: BaseModel, rank: int, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    return Lora(
        {m.name: Factors(draw(m.in_features, rank), draw(rank, m.out_features)) for m in base.maps}
    )


@pytest.fixture(scope="module")
def release(base: BaseModel) -> Release:
    experts = tuple(random_lora(base, 2, 10 + i) for i in range(2))
    bank = tuple(random_lora(base, 1, 20 + i) for i in range(3))
    return Release(
        version=1,
        base_name="tiny",
        base_fingerprint=base.fingerprint,
        population=random_lora(base, 4, 1),
        experts=experts,
        router=Router(torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0])),
        bank=bank,
        anchors=torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]),
        space=EmbeddingSpace(torch.zeros(base.width), torch.eye(base.width)[:, :2]),
        top_k=2,
        temperature=0.2,
    )


def named(release: Release, name: str) -> Lora:
    name, _, rank = name.partition(", rank ")
    if rank:
        return named(release, name).by_rank[int(rank)]
    kind, _, index = name.partition(" ")
    if kind == "population":
        return release.population
    return {"expert": release.experts, "anchor": release.bank}[kind][int(index)]


def with_delta(base: BaseModel, weighted: list[tuple[Lora, float]], ids: Tensor) -> Tensor:
    """Logits of the plain model with every update added to its weights, densely."""
    weights = base_weights(base.model, [m.name for m in base.maps])
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            for lora, factor in weighted:
                if name in lora.factors:
                    weight.data += factor * (lora.factors[name].a @ lora.factors[name].b).T
        with torch.no_grad():
            return base.model(input_ids=ids).logits.float()
    finally:
        for name, weight in weights.items():
            weight.data.copy_(kept[name])


def with_parts(base: BaseModel, stacks: Sequence[Personalised], ids: Tensor) -> Tensor:
    with torch.no_grad(), base.stack.using(parts_of(base, stacks)):
        return base.model(input_ids=ids).logits.float()


def history_loss(
    base: BaseModel, weighted: list[tuple[Lora, float]], samples: Sequence[Sample]
) -> float:
    """The answers' mean loss a token, summed over samples, with all updates added densely."""
    total = 0.0
    for sample in samples:
        logits = with_delta(base, weighted, torch.tensor([[*sample.prompt, *sample.answer]]))
        before = logits[0, len(sample.prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(before, torch.tensor(sample.answer)))
    return total


def start_by_hand(
    base: BaseModel, release: Release, method: str, samples: Sequence[Sample]
) -> list[float]:
    """The weights with which private training starts."""
    parts, _, _ = EXPECTED[method]
    weighted = [(named(release, name), weight) for name, weight in parts]
    weights = [weight for _, weight in parts]
    if method not in GATED:
        return weights
    likelier = history_loss(base, weighted, samples) < history_loss(base, weighted[:1], samples)
    return weights if likelier else [1.0, *[0.0] * (len(parts) - 1)]


def ids_of(base: BaseModel) -> Tensor:
    return torch.tensor([base.tokenizer.encode("post: what a day"), list(range(40, 56))])


def test_the_table_names_every_method() -> None:
    assert set(EXPECTED) == set(METHODS)


@pytest.mark.parametrize("method", list(EXPECTED))
def test_a_method_has_the_declared_parts_at_their_weights(method: str, release: Release) -> None:
    stack, tuned = compose(release, METHODS[method], ROUTING)
    parts, expected_tuned, _ = EXPECTED[method]
    assert len(stack.shared) == len(parts)
    for lora, (name, _) in zip(stack.shared, parts, strict=True):
        assert lora is named(release, name), name
    assert stack.weights.tolist() == pytest.approx([weight for _, weight in parts])
    assert tuned.tolist() == expected_tuned
    assert stack.private is None
    assert stack.label_prior == (method in PRIOR)


@pytest.mark.parametrize("method", list(EXPECTED))
def test_the_device_trains_what_the_method_leaves_to_it(
    method: str, release: Release, base: BaseModel
) -> None:
    samples = tuple(encode(base, f"post: {i}\ntag:", "gear") for i in range(3))
    trained = begin_personalising(
        base, release, METHODS[method], ROUTING, samples, CONFIG, seed=3
    )()
    assert trained.label_prior == (method in PRIOR)
    parts, tuned, rank = EXPECTED[method]
    start = start_by_hand(base, release, method, samples)
    if rank == 0 and not any(tuned):
        assert (trained.private, trained.private_parameters, trained.curve) == (None, 0, ())
        assert trained.weights.tolist() == pytest.approx(start)
    else:
        assert (trained.private.rank if trained.private is not None else 0) == rank
        on = [m for m in base.maps if m.name.rpartition(".")[2] in ON.get(method, m.name)]
        numbers = sum(rank * (m.in_features + m.out_features) for m in on)
        assert trained.private_parameters == numbers + sum(tuned)
        assert [step for step, _ in trained.curve] == [0, 1]
        read = 3 if method in GATED else 1  # to decide, the history is read twice
        assert trained.tokens == read * sum(len(sample) for sample in samples)
        moved = [abs(w - s) > 1e-6 for w, s in zip(trained.weights.tolist(), start, strict=True)]
        assert moved == tuned
        for _, factors in trained.private or ():
            assert float(factors.b.abs().max()) > 0
    # Folded into one LoRA or laid over the base: the same as adding it all up, densely.
    ids = ids_of(base)
    everything = [
        (named(release, name), weight)
        for (name, _), weight in zip(parts, trained.weights.tolist(), strict=True)
    ]
    if trained.private is not None:
        everything.append((trained.private, 1.0))
    expected = with_delta(base, everything, ids)
    torch.testing.assert_close(with_parts(base, [trained], ids), expected, atol=2e-4, rtol=1e-4)
    folded = trained.folded()
    assert (folded is None) == (not everything)
    if folded is not None:
        came = with_delta(base, [(folded, 1.0)], ids)
        torch.testing.assert_close(came, expected, atol=2e-4, rtol=1e-4)
        plain = with_delta(base, [], ids)
        assert float((expected - plain).abs().max()) > 0.1


def test_what_makes_the_own_history_less_likely_stays_off(
    release: Release, base: BaseModel
) -> None:
    # An expert and its opposite, both small: whichever outweighs the other, one way the history
    # becomes likelier than under the population LoRA, the other way less likely.
    small = fuse([random_lora(base, 2, 10)], [0.05])
    opposite = fuse([small], [-1.0])
    release = replace(release, experts=(small, opposite), bank=())
    samples = tuple(encode(base, f"post: {i}\ntag:", "gear up" * i) for i in range(1, 6))
    alone = history_loss(base, [(release.population, 1.0)], samples)
    likelier = []
    for first, second in ((0.9, 0.1), (0.1, 0.9)):
        routing = Routing(torch.tensor([first, second]), Retrieval((), (), ()))
        trained = begin_personalising(
            base, release, METHODS["meso-gated"], routing, samples, CONFIG, seed=3
        )()
        weighted = [(release.population, 1.0), (small, first), (opposite, second)]
        likelier.append(history_loss(base, weighted, samples) < alone)
        expected = [1.0, first, second] if likelier[-1] else [1.0, 0.0, 0.0]
        assert trained.weights.tolist() == pytest.approx(expected)
        assert trained.private is not None
    assert sorted(likelier) == [False, True]


def test_a_device_answers_while_it_chooses(release: Release, base: BaseModel) -> None:
    samples = tuple(encode(base, f"post: {i}\ntag:", "gear") for i in range(60))
    wait = begin_personalising(
        base, release, METHODS["meso-gated"], ROUTING, samples, CONFIG, seed=3
    )
    left = compute(lambda: len(_background))
    assert left == 1  # the choice is under way, and this came between its steps
    assert wait().tokens == 3 * sum(len(sample) for sample in samples)


def test_what_goes_wrong_in_a_choice_reaches_who_waits(
    release: Release, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("client.gate.gold_losses", fail)
    sample = encode(base, "post: x\ntag:", "gear")
    wait = begin_personalising(
        base, release, METHODS["meso-gated"], ROUTING, (sample,), CONFIG, seed=3
    )
    with pytest.raises(RuntimeError, match="no such luck"):
        wait()


def test_private_parts_on_different_maps_train_beside_each_other(
    release: Release, base: BaseModel
) -> None:
    samples = tuple(encode(base, f"post: {i}\ntag:", "gear") for i in range(3))

    def begin(name: str) -> Callable[[], Personalised]:
        return begin_personalising(base, release, METHODS[name], ROUTING, samples, CONFIG, seed=3)

    names = ("meso-no-prior", "meso", "meso-gated", "meso-r1")  # one rank, the same shared parts
    waiting = [begin(name) for name in names]
    together, alone = [wait() for wait in waiting], [begin(name)() for name in names]
    for name, first, second in zip(names, together, alone, strict=True):
        assert first.private is not None
        assert second.private is not None
        on = {m.rpartition(".")[2] for m in first.private.factors}
        assert on == set(ON.get(name, {m.name.rpartition(".")[2] for m in base.maps}))
        assert torch.equal(first.weights, second.weights)
        for map_name, factors in first.private:
            assert torch.equal(factors.b, second.private.factors[map_name].b)


def test_a_published_method_whose_maps_carry_nothing_is_refused(
    release: Release, base: BaseModel
) -> None:
    narrow = replace(base, maps=tuple(m for m in base.maps if "k_proj" in m.name))
    sample = encode(base, "post: x\ntag:", "gear")
    with pytest.raises(MesofedError, match=r"Expected some of q_proj, v_proj .* for oppu-qv"):
        begin_personalising(narrow, release, METHODS["oppu-qv"], ROUTING, (sample,), CONFIG, seed=3)


def test_a_stack_goes_on_all_maps_where_its_own_carry_nothing(
    release: Release, base: BaseModel
) -> None:
    narrow = replace(base, maps=tuple(m for m in base.maps if "k_proj" in m.name))
    sample = encode(base, "post: x\ntag:", "gear")
    trained = begin_personalising(
        narrow, release, METHODS["meso"], ROUTING, (sample,), CONFIG, seed=3
    )()
    assert trained.private is not None
    assert set(trained.private.factors) == {m.name for m in narrow.maps}


@pytest.mark.parametrize(
    ("items", "share", "held"),
    [(10, 0.3, 3), (10, 0.0, 0), (10, 0.01, 1), (3, 0.1, 1), (3, 0.5, 2), (2, 0.5, 0), (1, 0.5, 0)],
)
def test_the_newest_history_is_held_out_and_something_is_left_to_learn_from(
    base: BaseModel, items: int, share: float, held: int
) -> None:
    history = tuple(encode(base, f"post {i}:", str(i)) for i in range(items))
    trainee = _trainee("oppu", history, share, 5)
    assert (trainee.name, trainee.seed) == ("oppu", 5)
    assert trainee.samples + trainee.held == history
    assert len(trainee.held) == held
    assert trainee.samples


def test_a_method_may_stop_early_by_held_out_history(base: BaseModel, release: Release) -> None:
    same, other = Sample((70, 71, 72), (80,)), Sample((70, 71, 72), (90,))
    config = CONFIG.model_copy(update={"epochs": 6, "learning_rate": 3e-2, "holdout": 0.3})
    contrary = (same,) * 4 + (other,) * 2
    trained = begin_personalising(
        base, release, METHODS["oppu"], ROUTING, contrary, config, seed=3
    )()
    assert 0 < len(trained.curve) < 6 * 2


def test_private_training_starts_from_the_shared_parts(base: BaseModel, release: Release) -> None:
    sample = encode(base, "post: a\ntag:", "gear")
    method = METHODS["meso"]
    trained = begin_personalising(base, release, method, ROUTING, (sample,), CONFIG, seed=3)()
    stack, _ = compose(release, method, ROUTING)
    weighted = list(zip(stack.shared, stack.weights.tolist(), strict=True))
    ids = torch.tensor([[*sample.prompt, *sample.answer]])
    logits = with_delta(base, weighted, ids)[0, len(sample.prompt) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.answer))
    ((step, first),) = trained.curve
    assert (step, first) == (0, pytest.approx(float(loss), rel=1e-4))


def test_a_person_is_routed_by_hand(release: Release, base: BaseModel) -> None:
    # The space keeps the first two coordinates: (3, 4) lies at (0.6, 0.8) on the circle.
    embedding = torch.zeros(base.width)
    embedding[:2] = torch.tensor([3.0, 4.0])
    routing = route(release, embedding)
    # Router logits: 0.6 * 1 + 0.8 * 0 + 0.5 = 1.1 and 0.6 * -1 + 0.8 * 2 + 0 = 1.0.
    first = math.exp(1.1) / (math.exp(1.1) + math.exp(1.0))
    assert routing.experts.tolist() == pytest.approx([first, 1 - first], abs=1e-6)
    # Cosines with the anchors (0,1), (-1,0), (1,0): 0.8, -0.6, 0.6. The two nearest, at 0.2.
    nearer = 1 / (1 + math.exp(-(0.8 - 0.6) / 0.2))
    assert routing.retrieval.anchors == (0, 2)
    assert routing.retrieval.similarities == pytest.approx((0.8, 0.6), abs=1e-6)
    assert routing.retrieval.weights == pytest.approx((nearer, 1 - nearer), abs=1e-5)
    assert nearer > 0.5


# Several people at once

PEOPLE = (
    ROUTING,
    Routing(torch.tensor([0.1, 0.9]), Retrieval((0, 1), (0.8, 0.2), (0.7, 0.1))),
    Routing(torch.tensor([0.5, 0.5]), Retrieval((1, 2), (0.5, 0.5), (0.2, 0.2))),
)


def stacks_of(release: Release, base: BaseModel, method: str) -> list[Personalised]:
    """Return what three people could have learned; tuned weights may be of any size and sign."""
    rank = EXPECTED[method][2]
    generator = torch.Generator().manual_seed(7)
    stacks = []
    for user, routing in enumerate(PEOPLE):
        stack, tuned = compose(release, METHODS[method], routing)
        if tuned.any():
            learned = stack.weights + torch.randn(len(tuned), generator=generator)
            stack = replace(stack, weights=torch.where(tuned, learned, stack.weights))
        if rank:
            stack = replace(stack, private=random_lora(base, rank, 40 + user))
        stacks.append(stack)
    return stacks


@pytest.mark.parametrize("method", list(EXPECTED))
def test_everyone_in_a_batch_gets_the_own_stack(
    method: str, release: Release, base: BaseModel
) -> None:
    stacks = stacks_of(release, base, method)
    # Everyone is asked the same, so a stack in another's place cannot pass.
    ids = ids_of(base)
    together = with_parts(base, stacks, ids.repeat(len(stacks), 1)).unflatten(0, (3, -1))
    for own, stack in zip(together, stacks, strict=True):
        folded = stack.folded()
        expected = with_delta(base, [(folded, 1.0)] if folded is not None else [], ids)
        torch.testing.assert_close(own, expected, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(own, with_parts(base, [stack], ids), atol=2e-4, rtol=1e-4)
    if method not in ("base", "population", "population-prior"):
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert float((together[one] - together[other]).abs().max()) > 0.05


def test_shared_parts_are_laid_in_once_in_the_format_of_the_base_model(
    release: Release, base: BaseModel
) -> None:
    stacks = stacks_of(release, base, "meso")
    parts = parts_of(replace(base, dtype=torch.bfloat16), stacks)
    assert parts.shared is not None
    assert parts.private is not None
    # Population 4, two experts of 2, and all three anchors of 1, of which each person uses two.
    assert parts.shared.rank == 4 + 2 * 2 + 3 * 1
    assert parts.weights is not None
    assert (parts.weights == 0).sum(1).tolist() == [1, 1, 1]
    for factors in (*parts.shared.factors.values(), *parts.private.values()):
        assert factors.a.dtype == factors.b.dtype == torch.bfloat16
