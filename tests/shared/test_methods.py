"""The methods, as declared."""

from dataclasses import replace
from typing import get_args

import pytest

from shared.config import RunConfig
from shared.methods import METHODS, Method, Private, Weights


def test_the_papers_methods_and_ours() -> None:
    parts = {m.name: (m.population, m.experts, m.anchors, m.private) for m in METHODS.values()}
    assert parts["base"] == (False, "off", "off", "none")
    assert parts["population"] == (True, "off", "off", "none")
    assert parts["oppu"] == (True, "off", "off", "user_lora")
    assert parts["proper-folded"] == (True, "routed", "off", "user_lora")
    assert parts["mta-exact"] == (True, "off", "routed", "stack")
    assert parts["meso"] == (True, "routed", "routed", "stack")


@pytest.mark.parametrize("name", list(METHODS))
def test_each_is_declared_under_its_name_with_known_parts(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.experts in get_args(Weights)
    assert method.anchors in get_args(Weights)
    assert method.private in get_args(Private)


def test_no_two_methods_are_the_same() -> None:
    parts = [replace(m, name="", summary="") for m in METHODS.values()]
    assert len(set(parts)) == len(parts)


def test_a_method_trains_if_something_is_private_or_tuned() -> None:
    assert not Method("x", "").trains
    assert not Method("x", "", experts="routed", anchors="routed").trains
    assert Method("x", "", experts="tuned").trains
    assert Method("x", "", anchors="tuned").trains
    assert Method("x", "", anchors="tuned-all").trains
    assert Method("x", "", private="stack").trains
    assert Method("x", "", private="user_lora").trains


def test_the_default_run_compares_declared_methods_with_the_base() -> None:
    assert set(RunConfig().methods) <= set(METHODS)
    assert {"base", "population", "oppu", "proper-folded", "mta-exact", "meso"} <= set(
        RunConfig().methods
    )
