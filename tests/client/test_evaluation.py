"""Several people evaluated in one batch: each gets what the person gets alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from client.answers import choose_labels
from client.device import Device
from client.evaluation import evaluate_stacks
from client.personalize import Personalised
from client.vault import Vault
from shared.base_model import BaseModel
from shared.corpus.user import Query, User
from shared.lora.lora import Factors, Lora
from shared.tasks import TASKS


def strong(base: BaseModel, rank: int, seed: int) -> Lora:
    """Return a private part that says more than one epoch on a tiny model can teach."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    return Lora(
        {m.name: Factors(draw(m.in_features, rank), draw(rank, m.out_features)) for m in base.maps}
    )


def stacks_of(federation: Any, base: BaseModel, method: str) -> list[Personalised]:
    config, release = federation.config, federation.release(2, base)
    stacks = []
    for index in (0, 1, 2, 1):
        vault = Vault(federation.run_dir / "vaults" / f"{index:04d}")
        device = Device(base, vault, config.methods, config.private, config.seed)
        stack = device.personalised(method, release)
        if stack.private is not None:
            stack = replace(stack, private=strong(base, stack.private.rank, 50 + index))
        stacks.append(stack)
    return stacks


@pytest.fixture
def people(federation: Any) -> list[User]:
    """Four people: all queries there are, a single one, one task left out, none at all."""
    users = federation.people.device
    asked = [
        replace(query, query_id=f"{user.user_id}/{query.query_id}")
        for user in users
        for query in user.queries
    ]
    tagging: list[Query] = [query for query in asked if query.task == "tagging"]
    others = tuple(query for query in asked if query.task != "tagging")
    assert len(tagging) > 1
    assert {query.task for query in others} == {"rating", "headline"}
    return [
        replace(users[0], queries=tuple(asked)),
        replace(users[1], queries=tuple(tagging[:1])),
        replace(users[2], queries=others[::-1]),
        replace(users[1], queries=()),
    ]


@pytest.mark.parametrize("method", ["population", "oppu", "meso-tuned"])
def test_a_batch_of_people_answers_as_each_alone(
    method: str, federation: Any, base: BaseModel, people: list[User]
) -> None:
    stacks = stacks_of(federation, base, method)
    together = evaluate_stacks(base, people, stacks)
    assert len(together) == len(people)
    for person, stack, came in zip(people, stacks, together, strict=True):
        (alone,) = evaluate_stacks(base, [person], [stack])
        losses = [answer.pop("nll") for answer in came["queries"]]
        assert losses == pytest.approx([a.pop("nll") for a in alone["queries"]], abs=1e-5)
        assert came == alone
        golds = {query.query_id: (query.task, query.gold) for query in person.queries}
        answered = {a["query_id"]: (a["task"], a["gold"]) for a in came["queries"]}
        assert answered == golds
        assert len(came["queries"]) == len(person.queries)
        assert set(came["scores"]) == {query.task for query in person.queries}


def test_the_same_question_is_answered_by_everyone_s_own_stack(
    federation: Any, base: BaseModel, people: list[User]
) -> None:
    stacks = stacks_of(federation, base, "oppu")
    asking = [replace(person, queries=people[0].queries) for person in people[:3]]
    first, second, third = (
        [answer["nll"] for answer in result["queries"]]
        for result in evaluate_stacks(base, asking, stacks[:3])
    )
    for one, other in ((first, second), (first, third), (second, third)):
        assert min(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-4


def test_scores_alone_are_chosen_in_their_order(
    federation: Any, base: BaseModel, people: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered = {}

    def choosing(base: BaseModel, *given: Any) -> list[list[str]]:
        _, _, labels, _, by_order = given
        ordered[labels] = by_order
        return choose_labels(base, *given)

    monkeypatch.setattr("client.evaluation.choose_labels", choosing)
    evaluate_stacks(base, people[:1], stacks_of(federation, base, "population")[:1])
    assert ordered == {TASKS["rating"].labels: True, TASKS["tagging"].labels: False}
    assert TASKS["rating"].labels == tuple(sorted(TASKS["rating"].labels or (), key=float))
