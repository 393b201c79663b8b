"""The cohort trainer: a batch of users is each user alone, and each alone is plain PyTorch."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from shared import cohort, tiny
from shared.base_model import BaseModel, load_base
from shared.cohort import BACKWARD, Cohort, FusionWeights, Member, Trained, train_cohort
from shared.config import BaseConfig, TrainingConfig
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.samples import Sample, collate, encode
from shared.training import Trainee, answer_losses, batches_of, learning_rate, mean_per_user

CONFIG = TrainingConfig(
    rank=2, epochs=2, batch_size=2, learning_rate=5e-3, weight_decay=0.1, warmup=0.3, clip_norm=0.2
)
CPU = torch.device("cpu")

Weights = dict[str, Tensor]


@pytest.fixture(scope="module", params=[0, 2], ids=["all layers", "top layers"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    """Return ``tiny`` with LoRAs in all layers, or over a frozen prefix."""
    config = BaseConfig(name="tiny", format="fp32", max_tokens=64, top_layers=request.param)
    return load_base(config, ("q_proj", "v_proj"))


def random_lora(base: BaseModel, rank: int, seed: int) -> Lora:
    """Return a LoRA with no zero factor, so that every gradient is there from the first step."""
    generator = torch.Generator().manual_seed(seed)
    return Lora(
        {
            m.name: Factors(
                torch.randn(m.in_features, rank, generator=generator) * 0.1,
                torch.randn(rank, m.out_features, generator=generator) * 0.1,
            )
            for m in base.maps
        }
    )


def trainee(base: BaseModel, name: str, samples: int, length: int = 12) -> Trainee:
    """Return a user whose samples have different lengths."""
    return Trainee(
        name,
        tuple(
            encode(base, f"{name} {i}".ljust(length + 2 * i, "."), f"{name}{'!' * i}")
            for i in range(samples)
        ),
        seed=len(name) + samples,
    )


@pytest.fixture(scope="module")
def people(base: BaseModel) -> list[Trainee]:
    """Return three users with 6, 4 and 2 steps of training."""
    return [trainee(base, "ada", 3, 9), trainee(base, "bob", 5, 20), trainee(base, "eve", 2, 14)]


@pytest.fixture(scope="module")
def start(base: BaseModel) -> Slab:
    return Slab.of(base.maps, [random_lora(base, 2, seed) for seed in (1, 2, 3)])


def alone(
    base: BaseModel,
    people: Sequence[Trainee],
    start: Slab,
    user: int,
    fusion: FusionWeights | None = None,
) -> Trained:
    own = replace(start, rows=start.rows[[user]])
    if fusion is not None and fusion.values is not None:
        fusion = replace(fusion, values=fusion.values[[user]])
    return train_cohort(base, [people[user]], own, CONFIG, fusion)


def assert_moved_alike(came: Tensor, expected: Tensor, before: Tensor) -> None:
    """Compare what training changed: sums in another order may differ by 1e-3 of the change.

    In a batch matrices have other sizes, and Adam amplifies the rounding of tiny gradients.
    Measured are 3e-5 against training alone and 2e-4 against plain PyTorch; a shared clipping
    norm, schedule or step count gives more than 1e-2.
    """
    change = (expected - before).norm()
    assert change > 1e-3
    assert (came - expected).norm() <= 1e-3 * change


# The loss


def plain_losses(model: LlamaForCausalLM, samples: Sequence[Sample], weights: Weights) -> Tensor:
    """Return the mean loss by transformers itself, one unpadded sample at a time."""
    total = torch.zeros(())
    for sample in samples:
        ids = torch.tensor([sample.prompt + sample.answer])
        labels = ids.clone()
        labels[0, : len(sample.prompt)] = -100
        output = torch.func.functional_call(
            model, weights, kwargs={"input_ids": ids, "labels": labels}
        )
        total = total + output.loss
    return total / len(samples)


def test_losses_and_their_gradient_are_those_of_transformers(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    samples = people[1].samples
    leaves = start.leaves(1)
    with base.stack.using(Parts(private=leaves)):
        batch = collate([samples], base.pad_token, base.device)
        loss = mean_per_user(answer_losses(base, batch), batch)[0]
        learned = [t for f in leaves.values() for t in (f.a, f.b)]
        gradient = Slab.to_rows(torch.autograd.grad(loss, learned))

    model = tiny.build_model()
    row = start.rows[:1].clone().requires_grad_()
    expected = plain_losses(model, samples, adapted_weights(base, model, [start.views(row)]))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected, row)
    assert wanted.norm() > 0.1
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def adapted_weights(
    base: BaseModel,
    model: LlamaForCausalLM,
    views: Sequence[dict[str, Factors]],
    shared: Sequence[Lora] = (),
    shares: Tensor | None = None,
) -> Weights:
    """Return the dense weights W + sum_p g_p B_p A_p + b a of the first user."""
    weights = {}
    for linear in base.maps:
        weight = model.get_submodule(linear.name).weight.detach()
        for part, lora in enumerate(shared):
            assert shares is not None
            factors = lora.factors[linear.name]
            weight = weight + shares[part] * (factors.a @ factors.b).T
        for view in views:
            weight = weight + (view[linear.name].a[0] @ view[linear.name].b[0]).T
        weights[f"{linear.name}.weight"] = weight
    return weights


# Mini-batches


def test_every_epoch_sees_every_sample_once_in_an_order_of_the_seed(people: list[Trainee]) -> None:
    bob = people[1]
    batches = batches_of(bob, CONFIG)
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1]
    epochs = [[*a, *b, *c] for a, b, c in (batches[:3], batches[3:])]
    assert all(sorted(e, key=len) == sorted(bob.samples, key=len) for e in epochs)
    assert epochs[0] != epochs[1]
    assert batches_of(bob, CONFIG) == batches
    assert batches_of(replace(bob, seed=bob.seed + 1), CONFIG) != batches


# Training


def train_plainly(
    base: BaseModel,
    person: Trainee,
    row: Tensor,
    maps_view: Slab,
    fusion: FusionWeights | None = None,
) -> tuple[Tensor, Tensor | None, list[float], list[float]]:
    """Train one user with torch.optim.AdamW on dense weights: row, weights, losses, norms."""
    model = tiny.build_model()
    row = row.clone().requires_grad_()  # (1, parameters)
    optimiser = torch.optim.AdamW([row], weight_decay=CONFIG.weight_decay)
    shares, shared = None, fusion.loras if fusion else ()
    if fusion is not None and fusion.values is not None:
        shares = fusion.values[0].clone().requires_grad_()
        shares_optimiser = torch.optim.AdamW([shares], weight_decay=0.0)
    batches = batches_of(person, CONFIG)
    losses, norms = [], []
    for step, samples in enumerate(batches):
        weights = adapted_weights(base, model, [maps_view.views(row)], shared, shares)
        loss = plain_losses(model, samples, weights)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_([row], CONFIG.clip_norm).item())
        rate = learning_rate(CONFIG, step, len(batches))
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        if fusion is not None and shares is not None:
            assert shares.grad is not None
            assert fusion.tuned is not None
            shares.grad *= fusion.tuned
            share = fusion.learning_rate / CONFIG.learning_rate
            shares_optimiser.param_groups[0]["lr"] = rate * share
            shares_optimiser.step()
            shares.grad = None
        row.grad = None
        losses.append(loss.item())
    return row.detach(), None if shares is None else shares.detach(), losses, norms


@pytest.fixture(scope="module")
def fusion(base: BaseModel) -> FusionWeights:
    """Return three shared parts, two of which are tuned."""
    return FusionWeights(
        tuple(random_lora(base, rank, 20 + rank) for rank in (3, 1, 2)),
        torch.tensor([[1.0, 0.5, -0.5], [1.0, 0.1, 0.9], [1.0, 0.3, 0.2]]),
        torch.tensor([False, True, True]),
        learning_rate=0.03,
    )


@pytest.mark.parametrize("user", range(3))
def test_a_cohort_trains_each_user_as_plain_pytorch_does(
    base: BaseModel, people: list[Trainee], start: Slab, fusion: FusionWeights, user: int
) -> None:
    trained = train_cohort(base, people, start, CONFIG, fusion)
    assert fusion.values is not None
    own = replace(fusion, values=fusion.values[[user]])
    row, shares, losses, norms = train_plainly(base, people[user], start.rows[[user]], start, own)
    assert max(norms) > 1.2 * CONFIG.clip_norm  # or clipping would not be tested
    assert_moved_alike(trained.slab.rows[user], row[0], start.rows[user])
    assert trained.weights is not None
    assert shares is not None
    assert_moved_alike(trained.weights[user], shares, fusion.values[user])
    curve = trained.curves[people[user].name]
    assert [step for step, _ in curve] == list(range(len(losses)))
    assert [loss for _, loss in curve] == pytest.approx(losses, rel=1e-4)


def test_a_cohort_trains_each_user_as_if_alone(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    before = start.rows.clone()
    trained = train_cohort(base, people, start, CONFIG)
    assert torch.equal(start.rows, before)
    assert [len(trained.curves[p.name]) for p in people] == [4, 6, 2]
    assert trained.weights is None
    for user in range(3):
        own = alone(base, people, start, user)
        assert_moved_alike(trained.slab.rows[user], own.slab.rows[0], before[user])
    assert trained.tokens == CONFIG.epochs * sum(len(s) for p in people for s in p.samples)


@pytest.mark.parametrize("budget", [1, 1 << 30], ids=["one at a time", "all at once"])
def test_company_order_and_memory_do_not_change_a_bit(
    base: BaseModel, people: list[Trainee], start: Slab, fusion: FusionWeights, budget: int
) -> None:
    assert fusion.values is not None
    # Ada's twin has batches of her shapes, so that there is somebody to share a batch with.
    twin = replace(people[0], name="twin", seed=77)
    everyone = [*people[::-1], twin]
    trained = train_cohort(
        replace(base, memory=budget),
        everyone,
        replace(start, rows=start.rows[[2, 1, 0, 0]]),
        CONFIG,
        replace(fusion, values=fusion.values[[2, 1, 0, 0]]),
    )
    assert trained.weights is not None
    for user, person in enumerate(people):
        own = alone(base, people, start, user, fusion)
        assert own.weights is not None
        assert torch.equal(trained.slab.rows[2 - user], own.slab.rows[0])
        assert torch.equal(trained.weights[2 - user], own.weights[0])
        assert trained.curves[person.name] == own.curves[person.name]


def test_training_again_gives_the_same_bits(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    torch.manual_seed(1)
    first = train_cohort(base, people, start, CONFIG)
    torch.manual_seed(2)
    again = train_cohort(base, people, start, CONFIG)
    assert torch.equal(first.slab.rows, again.slab.rows)
    assert first.curves == again.curves


Groups = list[tuple[list[str], tuple[bool, int, int]]]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Return who took each step, in which shape; filled as training goes on."""
    taken: Groups = []
    train = Cohort._train

    def watched(self: Cohort, group: Sequence[Member]) -> None:
        taken.append(([m.trainee.name for m in group], group[0].shape))
        assert len({member.shape for member in group}) == 1
        train(self, group)

    monkeypatch.setattr(Cohort, "_train", watched)
    return taken


def samples_of(count: int, length: int) -> tuple[Sample, ...]:
    return tuple(Sample(tuple(range(5, 3 + length)), (i, i + 1)) for i in range(count))


def test_a_batch_holds_users_of_one_shape_and_those_ahead_do_not_wait(
    base: BaseModel, groups: Groups
) -> None:
    people = [
        Trainee("long", samples_of(2, 48), 1),
        Trainee("short", samples_of(2, 16), 2),
        Trainee("too", samples_of(2, 12), 3),
        Trainee("all", samples_of(4, 15), 4),
    ]
    config = TrainingConfig(rank=1, epochs=1, batch_size=2)
    roomy = replace(base, memory=1 << 40)
    train_cohort(roomy, people, Slab.initial(base.maps, 1, [1, 2, 3, 4]), config)
    # Two rows of 48 tokens weigh as much as three users' two rows of 16, and go first as longer.
    assert groups == [
        (["long"], (False, 2, 48)),
        (["short", "too", "all"], (False, 2, 16)),
        (["all"], (False, 2, 16)),
    ]


def test_a_batch_keeps_to_the_memory_it_is_given(base: BaseModel, groups: Groups) -> None:
    people = [Trainee(str(i), samples_of(4, 48), i) for i in range(12)]
    config = TrainingConfig(rank=1, epochs=1, batch_size=2)
    start = Slab.initial(base.maps, 1, range(12))

    cohort = Cohort(replace(base, memory=1 << 40), 1, config)
    member = cohort.join(people[0], start.rows[0])
    cohort.step()
    (measured,) = cohort._bytes.values()
    # At least the hidden states of every layer that carries LoRAs are kept for the way back.
    layers = len({linear.name.rsplit(".", 2)[0] for linear in base.maps})
    assert measured > layers * 2 * 48 * base.width * 4
    assert member.shape == (False, 2, 48)

    groups.clear()
    room = int(BACKWARD * measured * 5.5)
    train_cohort(replace(base, memory=room), people, start, config)
    assert max(len(names) for names, _ in groups) == 5
    groups.clear()
    train_cohort(replace(base, memory=1), people, start, config)
    assert {len(names) for names, _ in groups} == {1}


def test_who_joins_late_learns_the_same(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    cohort = Cohort(base, 2, CONFIG)
    ada = cohort.join(people[0], start.rows[0])
    cohort.step()
    cohort.step()
    eve = cohort.join(people[2], start.rows[2])
    left = []
    while cohort.members:
        left += cohort.step()
    assert {id(member) for member in left} == {id(ada), id(eve)}
    for user, member in ((0, ada), (2, eve)):
        assert torch.equal(member.row, alone(base, people, start, user).slab.rows[0])


def test_a_user_that_fails_costs_nobody_in_its_batch_anything(
    base: BaseModel, people: list[Trainee], start: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort(base, 2, CONFIG)
    twins = [replace(people[0], name=name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    members = [cohort.join(person, start.rows[0]) for person in (*twins, people[1])]
    losses = Cohort._losses

    def fail_with_b(self: Cohort, group: Sequence[Member]) -> tuple[Tensor, list[Tensor]]:
        if any(member.trainee.name == "b" and len(member.curve) == 1 for member in group):
            raise ArithmeticError("not for b")
        return losses(self, group)

    monkeypatch.setattr(Cohort, "_losses", fail_with_b)
    left = []
    while cohort.members:
        left += cohort.step()
    assert {id(member) for member in left} == {id(member) for member in members}
    assert isinstance(members[1].error, ArithmeticError)
    assert len(members[1].curve) == 1
    monkeypatch.undo()
    for member, person, row in ((members[0], twins[0], 0), (members[2], people[1], 0)):
        own = train_cohort(base, [person], replace(start, rows=start.rows[[row]]), CONFIG)
        assert member.error is None
        assert torch.equal(member.row, own.slab.rows[0])


def test_training_that_fails_raises_what_went_wrong(
    base: BaseModel, people: list[Trainee], start: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "answer_losses", lambda *_: torch.zeros(()).sqrt()[5])
    with pytest.raises(IndexError):
        train_cohort(base, people, start, CONFIG)


def test_who_is_done_keeps_no_optimiser(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    cohort = Cohort(base, 2, CONFIG)
    member = cohort.join(people[0], start.rows[0])
    while cohort.members:
        cohort.step()
    assert member.row.grad is None
    assert not member.optimiser.state


def test_only_tuned_weights_move(
    base: BaseModel, people: list[Trainee], start: Slab, fusion: FusionWeights
) -> None:
    assert fusion.values is not None
    before = fusion.values.clone()
    tuned = train_cohort(base, people, start, CONFIG, fusion)
    assert tuned.weights is not None
    assert torch.equal(fusion.values, before)
    assert torch.equal(tuned.weights[:, 0], before[:, 0])
    assert ((tuned.weights - before)[:, 1:].abs() > 1e-4).all()
    frozen = train_cohort(base, people, start, CONFIG, replace(fusion, tuned=None))
    assert frozen.weights is not None
    assert torch.equal(frozen.weights, before)
    assert not torch.equal(frozen.slab.rows, tuned.slab.rows)


def test_weights_may_be_tuned_without_a_private_lora(
    base: BaseModel, people: list[Trainee], fusion: FusionWeights
) -> None:
    assert fusion.values is not None
    trained = train_cohort(base, people, Slab.initial(base.maps, 0, [1, 2, 3]), CONFIG, fusion)
    assert trained.slab.rows.shape == (3, 0)
    assert trained.weights is not None
    assert ((trained.weights - fusion.values)[:, 1:].abs() > 1e-4).all()


def test_training_leaves_the_base_model_alone(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    train_cohort(base, people, start, CONFIG)
    assert all(torch.equal(before[name], value) for name, value in base.model.state_dict().items())
    assert base.stack.parts == Parts()
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_an_easy_task_is_learned(base: BaseModel) -> None:
    config = TrainingConfig(rank=4, epochs=30, batch_size=4, learning_rate=3e-2, warmup=0.1)
    samples = tuple(encode(base, f"say {word}:", "yes") for word in ("a", "bb", "ccc", "dd"))
    curve = train_cohort(
        base, [Trainee("easy", samples, 1)], Slab.initial(base.maps, 4, [2]), config
    ).curves["easy"]
    first, last = curve[0][1], curve[-1][1]
    assert first > 3  # nats a token: the model knows nothing
    assert last < 0.5 * first


# Early stopping


def test_what_helps_the_held_out_is_trained_to_the_end(base: BaseModel) -> None:
    config = TrainingConfig(rank=2, epochs=4, batch_size=2, learning_rate=3e-3)
    words = ("a", "bb", "ccc", "dd", "e", "ff")
    samples = tuple(encode(base, f"say {word}:", "yes") for word in words)
    start = Slab.initial(base.maps, 2, [2])
    person = Trainee("easy", samples[:4], 1)
    # What the others teach holds for the held-out ones, so nothing else changes.
    trained = train_cohort(base, [replace(person, held=samples[4:])], start, config)
    without = train_cohort(base, [person], start, config)
    assert len(trained.curves["easy"]) == 8
    assert torch.equal(trained.slab.rows, without.slab.rows)
    assert trained.tokens == without.tokens


@pytest.mark.parametrize("company", [False, True])
def test_what_harms_the_held_out_ends_training_and_is_undone(
    base: BaseModel, company: bool
) -> None:
    config = TrainingConfig(rank=2, epochs=5, batch_size=2, learning_rate=2e-2)
    # The held-out answer is one that the others teach the model to avoid.
    same, other = Sample((70, 71, 72), (80,)), Sample((70, 71, 72), (90,))
    contrary = Trainee("contrary", (same,) * 6, 1, held=(other,) * 2)
    steady = Trainee("steady", (same,) * 6, 2, held=(same,) * 2)
    people = [contrary, steady] if company else [contrary]
    start = Slab.initial(base.maps, 2, range(len(people)))
    cohort = Cohort(base, 2, config)
    members = [cohort.join(p, start.rows[i]) for i, p in enumerate(people)]
    while cohort.members:
        cohort.step()
    first = members[0]
    assert first.checks[-1] >= min(first.checks[:-1])
    best = min(range(len(first.checks)), key=lambda i: first.checks[i])
    assert best == len(first.checks) - 2  # it stops at the first rise
    assert len(first.curve) == 3 * (best + 1) < 15
    # The row kept is the one whose loss was lowest, by a measurement of its own.
    with base.stack.using(Parts(private=Slab(base.maps, 2, first.row[None]).leaves(1))):
        batch = collate([[other, other]], base.pad_token, base.device)
        loss = mean_per_user(answer_losses(base, batch), batch)[0]
    assert loss.item() == pytest.approx(first.checks[best], rel=1e-6)
    if company:
        assert len(members[1].curve) == 15


# Dropout


def test_dropout_comes_from_the_users_own_seed_and_company_changes_no_bit(
    base: BaseModel, people: list[Trainee], start: Slab
) -> None:
    def trained(trainees: Sequence[Trainee], rows: Sequence[int], share: float) -> list[Tensor]:
        cohort = Cohort(base, 2, CONFIG, dropout=share)
        members = [
            cohort.join(one, start.rows[row]) for one, row in zip(trainees, rows, strict=True)
        ]
        while cohort.members:
            assert not [member.error for member in cohort.step() if member.error]
        return [member.row.detach().clone() for member in members]

    twin = replace(people[0], name="twin", seed=77)
    together = trained([twin, *people], (0, 0, 1, 2), 0.3)
    for place, (one, row) in enumerate(zip([twin, *people], (0, 0, 1, 2), strict=True)):
        (own,) = trained([one], [row], 0.3)
        assert torch.equal(own, together[place])
    assert not torch.equal(together[1], trained([people[0]], [0], 0.0)[0])
    assert torch.equal(
        trained([people[0]], [0], 0.0)[0], train_cohort(base, people, start, CONFIG).slab.rows[0]
    )


def test_held_out_samples_are_scored_without_dropout(base: BaseModel) -> None:
    words = ("a", "bb", "ccc", "dd")
    samples = tuple(encode(base, f"say {word}:", "yes") for word in words)
    one = Trainee("held", samples[:3], 4, samples[3:])
    start = Slab.of(base.maps, [random_lora(base, 2, 5)])
    first = []
    for share in (0.0, 0.5):
        cohort = Cohort(base, 2, CONFIG, dropout=share)
        member = cohort.join(one, start.rows[0])
        cohort.step()
        first.append(member.checks[0])
        cohort.step()
        first.append(member.curve[0][1])
    assert first[0] == first[2]  # the check
    assert first[1] != first[3]  # the step
