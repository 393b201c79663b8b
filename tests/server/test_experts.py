"""Experts and router: one sum, one gradient, and groups that stay apart."""

import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from server.experts import TrainedExperts, load_balance, side_by_side, train_experts
from shared.base_model import BaseModel
from shared.config import ExpertsConfig
from shared.lora.algebra import base_weights
from shared.lora.lora import Factors, Lora
from shared.routing import Router
from shared.samples import Sample, encode


def random_lora(base: BaseModel, rank: int, seed: int, size: float = 0.2) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    return Lora(
        {m.name: Factors(draw(m.in_features, rank), draw(rank, m.out_features)) for m in base.maps}
    )


# Load balance


def test_load_balance_worked_by_hand() -> None:
    # Mean gates (1/2, 1/4, 1/4): 3 * (1/4 + 1/16 + 1/16) - 1 = 1/8.
    gates = torch.tensor([[0.75, 0.0, 0.25], [0.25, 0.5, 0.25]])
    assert load_balance(gates).item() == pytest.approx(1 / 8)


def test_load_balance_is_least_when_experts_share_the_users() -> None:
    decided = torch.eye(4).repeat(3, 1)  # each user has one expert, each expert three users
    assert load_balance(decided).item() == pytest.approx(0.0, abs=1e-6)
    assert load_balance(torch.full((12, 4), 0.25)).item() == pytest.approx(0.0, abs=1e-6)
    collapsed = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(12, 1)
    assert load_balance(collapsed).item() == pytest.approx(3.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gates = torch.softmax(2 * torch.randn(7, 4, generator=generator), dim=1)
        assert load_balance(gates).item() > 1e-6


def test_load_balance_has_the_gradient_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    places = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    leaf = weight.clone().requires_grad_()
    load_balance(Router(leaf, torch.zeros(4, dtype=torch.float64))(places)).backward()

    def at(changed: Tensor) -> float:
        return load_balance(Router(changed, torch.zeros(4, dtype=torch.float64))(places)).item()

    assert leaf.grad is not None
    for i in range(3):
        for j in range(4):
            step = torch.zeros_like(weight)
            step[i, j] = 1e-5
            slope = (at(weight + step) - at(weight - step)) / 2e-5
            assert leaf.grad[i, j].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
            assert abs(slope) > 1e-6


def test_descending_the_load_balance_spreads_users_over_the_experts() -> None:
    places = torch.nn.functional.normalize(torch.eye(4).repeat(2, 1) + 0.1, dim=1)
    weight = torch.zeros(4, 4)
    weight[:, 0] = 2.0  # everyone prefers expert 0
    leaf = weight.requires_grad_()
    before = load_balance(Router(leaf, torch.zeros(4))(places)).item()
    optimiser = torch.optim.SGD([leaf], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        load_balance(Router(leaf, torch.zeros(4))(places)).backward()
        optimiser.step()
    after = Router(leaf.detach(), torch.zeros(4))(places)
    assert load_balance(after).item() < 1e-3 < before
    torch.testing.assert_close(after.mean(0), torch.full((4,), 0.25), atol=0.02, rtol=0)


# Side by side


def test_experts_side_by_side_are_the_sum_over_experts_weighted_by_gates() -> None:
    generator = torch.Generator().manual_seed(2)
    experts, rank, users = 3, 2, 4
    a = torch.randn(experts, 5, rank, generator=generator)
    b = torch.randn(experts, rank, 7, generator=generator)
    gates = torch.softmax(torch.randn(users, experts, generator=generator), dim=1)
    x = torch.randn(users, 6, 5, generator=generator)
    flat = side_by_side({"map": Factors(a, b)}).factors["map"]
    weights = gates.repeat_interleave(rank, dim=1)[:, None]  # (users, 1, R), as in training
    came = ((x @ flat.a) * weights) @ flat.b
    dense = torch.einsum("uti,eir,ero,ue->uto", x, a, b, gates)
    torch.testing.assert_close(came, dense, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(came, torch.einsum("uti,eir,ero->uto", x, a, b) / 3, atol=0.1)


# Joint training, one step against the dense formula

ONE_STEP = ExpertsConfig(
    rank=2,
    count=2,
    epochs=1,
    batch_size=64,
    warmup=0.0,
    weight_decay=0.0,
    learning_rate=1e-3,
    router_learning_rate=1e-2,
    clip_norm=1e9,
    balance=0.3,
)


def pairs(base: BaseModel) -> list[list[Sample]]:
    return [
        [encode(base, f"post: {who} {i}\ntag:", f"{who}{who}") for i in range(2)]
        for who in ("ann", "bo", "cyd")
    ]


def dense_objective(
    base: BaseModel,
    population: Lora,
    experts: list[Lora],
    router: Router,
    places: Tensor,
    samples: list[list[Sample]],
    balance: float,
) -> float:
    """The objective with all LoRAs as dense updates of the weights and transformers' own loss."""
    weights = base_weights(base.model, [m.name for m in base.maps])
    gates = router(places)
    losses = []
    for user, own in enumerate(samples):
        kept = {name: w.detach().clone() for name, w in weights.items()}
        for name, weight in weights.items():
            weight.data += population.factors[name].delta()
            for expert, gate in zip(experts, gates[user], strict=True):
                weight.data += gate * expert.factors[name].delta()
        total, tokens = 0.0, 0
        with torch.no_grad():
            for sample in own:
                ids = torch.tensor([[*sample.prompt, *sample.answer]])
                labels = torch.tensor([[-100] * len(sample.prompt) + list(sample.answer)])
                count = len(sample.answer)
                total += base.model(input_ids=ids, labels=labels).loss.double().item() * count
                tokens += count
        losses.append(total / tokens)
        for name, weight in weights.items():
            weight.data.copy_(kept[name])
    mean = gates.double().mean(0)
    spread = len(mean) * float((mean**2).sum()) - 1
    return sum(losses) / len(losses) + balance * spread


def test_one_joint_step_moves_router_and_experts_down_the_true_objective(base: BaseModel) -> None:
    population = random_lora(base, 2, 1)
    experts = [random_lora(base, 2, 2, 0.5), random_lora(base, 2, 3, 0.5)]
    places = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [-1, 0.5]]), dim=1)
    router = Router(torch.tensor([[0.5, -0.5], [0.2, 0.1]]), torch.tensor([0.3, -0.1]))
    samples = pairs(base)
    trained = train_experts(base, population, places, samples, ONE_STEP, 5, (experts, router))

    def objective(experts: list[Lora], router: Router) -> float:
        return dense_objective(base, population, experts, router, places, samples, 0.3)

    assert len(trained.steps) == 1
    before = objective(experts, router)
    (step,) = trained.steps
    assert step.loss + 0.3 * step.balance == pytest.approx(before, rel=1e-4)
    # The first step of Adam is the rate times the sign of the gradient.
    for name in ("weight", "bias"):
        start, end = getattr(router, name), getattr(trained.router, name)
        for place in range(start.numel()):
            slopes = []
            for sign in (1, -1):
                moved = start.clone().flatten()
                moved[place] += sign * 0.05
                parts = {"weight": router.weight, "bias": router.bias}
                parts[name] = moved.reshape(start.shape)
                slopes.append(objective(experts, Router(**parts)))
            slope = (slopes[0] - slopes[1]) / 0.1
            change = (end - start).flatten()[place].item()
            assert abs(slope) > 1e-4, "the test needs a slope that can be told from rounding"
            assert change == pytest.approx(-math.copysign(1e-2, slope), rel=1e-2)
    # Each expert got a gradient in every map, and its step alone goes downhill.
    after = trained.slab.loras()
    for index, expert in enumerate(experts):
        for linear in base.maps:
            old, new = expert.factors[linear.name], after[index].factors[linear.name]
            assert (old.a - new.a).abs().median().item() == pytest.approx(1e-3, rel=0.05)
            assert (old.b - new.b).abs().median().item() == pytest.approx(1e-3, rel=0.05)
        one = [*experts]
        one[index] = after[index]
        assert objective(one, router) < before - 1e-5


# Groups

GROUPS = ("gear", "dream", "drama")


def toy_corpus(base: BaseModel) -> tuple[Tensor, list[list[Sample]], list[int]]:
    """Twelve users in three groups: the group shows in the place, and alone decides the answer."""
    generator = torch.Generator().manual_seed(6)
    group = [user % 3 for user in range(12)]
    places = torch.eye(3)[group] + 0.15 * torch.randn(12, 3, generator=generator)
    samples = [[encode(base, f"post: day {i}\ntag:", GROUPS[g]) for i in range(4)] for g in group]
    return torch.nn.functional.normalize(places, dim=1), samples, group


@pytest.fixture(scope="module")
def toy(base: BaseModel) -> tuple[TrainedExperts, Tensor, list[list[Sample]], list[int]]:
    places, samples, group = toy_corpus(base)
    config = ExpertsConfig(rank=2, count=3, epochs=3, batch_size=12, learning_rate=5e-3)
    nothing = random_lora(base, 1, 0, size=0.0)
    return train_experts(base, nothing, places, samples, config, seed=8), places, samples, group


Toy = tuple[TrainedExperts, Tensor, list[list[Sample]], list[int]]


def test_each_group_keeps_an_expert_of_its_own(toy: Toy) -> None:
    trained, places, _, group = toy
    gates = trained.router(places)
    assert adjusted_rand_score(group, gates.argmax(1).tolist()) == 1.0
    assert gates.max(1).values.min() > 0.6
    assert trained.steps[-1].balance < 0.1
    assert trained.steps[-1].mean_gates == pytest.approx(gates.mean(0).tolist(), abs=0.05)


def test_a_group_is_served_best_by_its_own_expert(base: BaseModel, toy: Toy) -> None:
    trained, places, samples, group = toy
    nothing = random_lora(base, 1, 0, size=0.0)
    own_expert = trained.router(places).argmax(1).tolist()
    experts = list(trained.slab.loras())
    one = torch.ones(1, 1)
    for user in range(3):
        losses = [
            dense_objective(
                base, nothing, [e], Router(torch.zeros(3, 1), one[0]), places, [samples[user]], 0.0
            )
            for e in experts
        ]
        assert losses.index(min(losses)) == own_expert[user], (group[user], losses)


def test_the_start_on_clusters_gives_each_expert_a_curve_and_all_one_together(toy: Toy) -> None:
    trained, _, samples, _ = toy
    assert set(trained.curves) == {"expert 0", "expert 1", "expert 2", "joint"}
    once = sum(len(sample) for own in samples for sample in own)
    assert trained.tokens == once * (1 + 3)
    assert [step for step, _ in trained.curves["joint"]] == [s.step for s in trained.steps]
    assert trained.curves["joint"][-1][1] < trained.curves["expert 0"][0][1]


def test_fewer_users_than_experts_get_one_expert_each(base: BaseModel) -> None:
    places, samples, _ = toy_corpus(base)
    config = ExpertsConfig(rank=1, count=5, epochs=1)
    nothing = random_lora(base, 1, 0, size=0.0)
    trained = train_experts(base, nothing, places[:2], samples[:2], config, seed=8)
    assert len(trained.slab.loras()) == 2
    assert trained.router(places[:2]).shape == (2, 2)
