"""Retrieval as a method of its own: whose items stand in the prompts, and what it costs."""

import pytest
import torch

from shared.retrieval import Examples, query_prompt
from simulations.baselines.retrieval import RETRIEVALS
from simulations.comparison.contender import of_devices
from simulations.comparison.scene import Scene


def test_nobody_elses_items_and_no_later_task_are_in_a_prompt(scene: Scene) -> None:
    others = {i.text for user in scene.server for i in user.history}
    for user in scene.people:
        own = {i.text for i in user.history}
        for query in user.queries:
            prompt = query_prompt(scene.base, user, query, Examples(4, 1000))
            shown = prompt.split("\n\n")[:-1]
            assert len(shown) == min(4, sum(i.task == query.task for i in user.history))
            for text in own - others:
                if any(text in part for part in shown):
                    assert text in own
            assert not [t for t in others - own if any(t in part for part in shown)]


@pytest.mark.parametrize("contender", RETRIEVALS, ids=lambda c: c.name)
def test_every_form_answers_everybody_with_longer_prompts(contender: object, scene: Scene) -> None:
    answered = contender.answer(scene)  # type: ignore[attr-defined]
    assert [len(o["queries"]) for o in answered.outcomes] == [len(u.queries) for u in scene.people]
    asked = {query.task for user in scene.people for query in user.queries}
    assert set(answered.prompt_tokens) == asked
    assert min(answered.prompt_tokens.values()) > 5
    assert all(o["private_bytes"] == 0 for o in answered.outcomes)


def test_a_method_with_examples_has_a_release_of_its_own_trained_with_them(scene: Scene) -> None:
    own = scene.retrieving(1)
    assert own is scene.retrieving(1)
    asked = ("tagging", "rating", "headline")
    assert own.release.examples == Examples(1, scene.config.retrieval.item_tokens, asked)
    free = scene.retrieving(1, ("headline",))
    assert (free.examples.tasks, free.folder != own.folder) == (("headline",), True)
    assert scene.release.examples.count == 0
    longer, plain = own.server_samples[0], scene.server_samples[0]
    assert [s.answer for s in longer] == [s.answer for s in plain]
    # The first item of a history has none before it.
    assert longer[0] == plain[0]
    assert len(longer[-1].prompt) > len(plain[-1].prompt)
    # Who a person is among others has nothing to do with how they are asked.
    assert torch.allclose(own.embeddings, scene.embeddings, atol=1e-5)


def test_a_private_part_learns_from_prompts_with_examples(scene: Scene) -> None:
    with_items = of_devices("oppu", 1, "oppu-rag-1", ("tagging",))
    without = of_devices("oppu")
    assert with_items.name == "oppu-rag-1"
    longer, plain = with_items.answer(scene), without.answer(scene)
    assert longer.prompt_tokens["tagging"] > 5
    assert longer.prompt_tokens["headline"] == 0
    assert plain.prompt_tokens == {}
    # Somebody's first item of a task has none before it.
    more, less = ([o["tokens"] for o in answered.outcomes] for answered in (longer, plain))
    assert all(a >= b for a, b in zip(more, less, strict=True))
    assert sum(more) > sum(less)
    assert with_items.traffic(scene) == without.traffic(scene)


def test_a_method_is_left_out_where_it_would_be_another_under_a_second_name(scene: Scene) -> None:
    assert not of_devices("meso", 1, "meso-rag-1", ("tweet_paraphrase",)).differs(scene)
    assert of_devices("meso", 1, "meso-rag-1", ("headline",)).differs(scene)
    assert of_devices("meso").differs(scene)
