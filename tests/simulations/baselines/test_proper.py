"""PROPER's three stages: what each trains, what it leaves, and who has an embedding."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from shared.lora.layer import Parts
from shared.lora.lora import Factors
from shared.lora.slab import Slab
from shared.samples import collate
from shared.training import Trainee, answer_losses, mean_per_user
from simulations.baselines.gated_layer import adding
from simulations.baselines.proper import PROPERS, Stages, _batches
from simulations.baselines.proper_layer import group_updates, with_lora_router
from simulations.baselines.proper_training import (
    Trained,
    content_embeddings,
    inference,
    on_feed_forward,
    standardised,
    train_groups,
    train_lora_router,
    train_user_loras,
)
from simulations.comparison import contender
from simulations.comparison.scene import Scene


@pytest.fixture(scope="module")
def stages(scene: Scene) -> Stages:
    return Stages(scene, "proper")


@pytest.fixture(scope="module")
def groups(stages: Stages) -> Trained:
    return stages.groups()


def test_everything_is_on_feed_forward_maps(scene: Scene, groups: Trained) -> None:
    names = {m.name.rpartition(".")[2] for m in on_feed_forward(scene.base).maps}
    assert names == {"gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in groups.gates} == names
    assert {m.name.rpartition(".")[2] for m in groups.experts.maps} == names


def test_a_content_embedding_is_the_mean_input_of_each_map(scene: Scene) -> None:
    base, population = on_feed_forward(scene.base), scene.release.population
    found = content_embeddings(base, population, [scene.histories[1]])
    linear = base.maps[1]
    tokens: list[list[torch.Tensor]] = []
    for sample in scene.histories[1]:  # one text at a time, so without any padding
        batch = collate([[sample]], base.pad_token, base.device)
        seen: list[torch.Tensor] = []
        with (
            torch.no_grad(),
            base.stack.using(Parts(1, population)),
            adding(base, {linear.name: lambda x, seen=seen: seen.append(x)}),  # type: ignore[misc]
        ):
            base.hidden_states(batch.ids, batch.lengths)
        tokens.append([seen[0][0, : batch.lengths[0]].mean(0)])
    expected = torch.stack([own[0] for own in tokens]).mean(0)
    torch.testing.assert_close(found[linear.name][0], expected, atol=1e-4, rtol=1e-4)


def test_the_servers_embeddings_are_centred_and_of_unit_spread(stages: Stages) -> None:
    server = stages.server_embeddings()
    for own in standardised(server, server).values():
        torch.testing.assert_close(own.mean(0), torch.zeros(own.shape[1]), atol=1e-5, rtol=0)
        assert own.std().item() == pytest.approx(1, abs=1e-3)


def test_stage_two_trains_experts_and_both_routers_but_not_the_lora_router(
    scene: Scene, stages: Stages, groups: Trained
) -> None:
    base, config = stages.base, scene.config.proper
    known = standardised(stages.server_embeddings(), stages.server_embeddings())
    still = config.model_copy(update={"learning_rate": 1e-12, "router_learning_rate": 1e-12})
    before = train_groups(
        base, scene.release.population, scene.server_samples[:1], known, still, scene.seed
    )
    assert not groups.table
    for name, own in groups.gates.items():
        start = before.gates[name]
        assert not torch.allclose(own.input, start.input, atol=1e-4)
        assert not torch.allclose(own.user, start.user, atol=1e-4)
        assert torch.equal(own.lora, start.lora)
    for f in groups.experts.views().values():
        assert float(f.b.abs().amax((1, 2)).min()) > 0  # every expert has learnt


def test_the_constraint_makes_gates_more_decided(scene: Scene, stages: Stages) -> None:
    base, population = stages.base, scene.release.population
    known = standardised(stages.server_embeddings(), stages.server_embeddings())
    values = {}
    for weight in (0.0, 50.0):
        config = scene.config.proper.model_copy(update={"constraint": weight, "epochs": 2})
        trained = train_groups(base, population, scene.server_samples, known, config, scene.seed)
        sample = scene.server_samples[0][0]
        batch = collate([[sample]], base.pad_token, base.device)
        own = {name: table[:1] for name, table in known.items()}
        heard: list[torch.Tensor] = []
        updates = group_updates(
            trained.experts.views(),
            trained.gates,
            own,
            lambda _, w, heard=heard: heard.append((w.mean(1) ** 2).sum()),  # type: ignore[misc]
        )
        with torch.no_grad(), base.stack.using(Parts(1, population)), adding(base, updates):
            base.hidden_states(batch.ids, batch.lengths)
        values[weight] = torch.stack(heard).mean().item()
    assert values[50.0] > values[0.0]


def test_stage_three_trains_one_lora_alone_and_lowers_its_loss(
    scene: Scene, stages: Stages, groups: Trained
) -> None:
    base, population = stages.base, scene.release.population
    embeddings = stages.people_embeddings(groups)
    config = scene.config.proper.model_copy(update={"user_epochs": 4, "user_learning_rate": 1e-2})
    people = [
        Trainee(user.user_id, history, scene.private_seed(user))
        for user, history in zip(scene.people, scene.histories, strict=True)
    ]
    rows = groups.experts.rows.clone()
    slab, _ = train_user_loras(base, population, groups, embeddings, people[:2], config)
    assert torch.equal(groups.experts.rows, rows)
    # Who else is trained changes nothing.
    own = {name: table[1:2] for name, table in embeddings.items()}
    alone, _ = train_user_loras(base, population, groups, own, people[1:2], config)
    assert torch.equal(slab.rows[1], alone.rows[0])

    batch = collate([people[1].samples], base.pad_token, base.device)

    def loss(private: dict[str, Factors] | None) -> float:
        experts = groups.experts.views()
        updates = group_updates(experts, groups.gates, own)
        with (
            torch.no_grad(),
            base.stack.using(Parts(1, population, None, private)),
            adding(base, updates),
        ):
            return mean_per_user(answer_losses(base, batch), batch).item()

    assert loss(alone.views()) < loss(None)


def test_stage_three_two_moves_the_lora_router_alone_and_inference_uses_it(
    scene: Scene, stages: Stages, groups: Trained
) -> None:
    base = stages.base
    users = stages.server_loras(groups)
    routers = train_lora_router(
        base,
        scene.release.population,
        groups,
        users,
        scene.server_samples,
        scene.config.proper,
        scene.seed,
    )
    for name, own in routers.items():
        assert not torch.allclose(own, groups.gates[name].lora, atol=1e-4)
    one = Slab(users.maps, users.rank, users.rows[:1])
    x = torch.randn(1, 2, base.maps[0].in_features)
    name = base.maps[0].name
    final = replace(groups, gates=with_lora_router(groups.gates, routers))
    with_new = inference(base, final, one)[name](x)
    with_old = inference(base, groups, one)[name](x)
    assert with_new is not None
    assert with_old is not None
    assert not torch.allclose(with_new, with_old)


@pytest.mark.parametrize("form", PROPERS, ids=lambda c: c.name)
def test_every_form_answers_and_counts_the_user_lora(
    form: contender.Contender, scene_of: Callable[[str], Scene]
) -> None:
    scene = scene_of(form.settings[0])
    answered = form.answer(scene)
    maps = on_feed_forward(scene.base).maps
    size = 4 * scene.config.proper.rank * sum(m.in_features + m.out_features for m in maps)
    assert [o["private_bytes"] for o in answered.outcomes] == [size] * len(scene.people)
    assert answered.added_ms is not None
    again = form.answer(scene)
    assert [o["queries"] for o in again.outcomes] == [o["queries"] for o in answered.outcomes]


def test_who_else_is_asked_does_not_change_an_answer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = {query.task: query for user in scene.people for query in user.queries}
    people = tuple(  # all of the same tasks, and one more of the first for each person
        replace(user, queries=(*queries.values(), *[next(iter(queries.values()))] * index))
        for index, user in enumerate(scene.people)
    )
    scene = replace(scene, people=people, _retrieving={})
    assert _batches(people, contender.PEOPLE_AT_ONCE) == [[0, 1, 2]]
    together = PROPERS[0].answer(scene)
    monkeypatch.setattr(contender, "PEOPLE_AT_ONCE", 1)
    alone = PROPERS[0].answer(scene)
    for one, other in zip(together.outcomes, alone.outcomes, strict=True):
        assert len(one["queries"]) == len(other["queries"])
        for asked, again in zip(one["queries"], other["queries"], strict=True):
            assert asked["nll"] == pytest.approx(again["nll"], rel=1e-4)
            assert asked["prediction"] == again["prediction"]


def test_people_are_asked_at_once_only_if_their_queries_are_of_the_same_tasks(
    scene: Scene,
) -> None:
    query = scene.people[0].queries[0]
    other = next(q for u in scene.people for q in u.queries if q.task != query.task)
    people = [
        replace(scene.people[0], queries=queries)
        for queries in [(query,), (query, other), (query, query), (other, query), (query,)]
    ]
    assert _batches(people, 2) == [[0, 2], [4], [1, 3]]


def test_only_people_whom_the_server_trained_on_have_a_trained_id(
    scene_of: Callable[[str], Scene],
) -> None:
    by_name = {form.name: form for form in PROPERS}
    assert by_name["proper-ids"].settings == ("centralized",)
    assert by_name["proper"].settings == ("federated", "centralized")
    stages = Stages(scene_of("federated"), "proper-ids")
    groups = stages.groups()
    with pytest.raises(KeyError):
        stages.people_embeddings(groups)
