"""Epsilon and delta of each round and of all, in words."""

from typing import Any

import pytest

from shared.privacy_cost import cost_sentences


def record(of_round: float, total: float, **more: Any) -> dict[str, Any]:
    privacy = {
        "mode": "central",
        "delta": 1e-5,
        "epsilon_of_round": of_round,
        "epsilon_in_total": total,
        "epsilon_of_budget": 8.0,
    }
    return {"privacy": privacy, **more}


def test_each_round_and_all_together() -> None:
    assert cost_sentences([(1, record(2.0, 2.0)), (2, record(2.0, 3.1234, sum="taken"))]) == [
        "Privacy of round 1, mode central: epsilon 2 at delta 1e-05.",
        "Privacy of round 2, mode central: epsilon 2 at delta 1e-05.",
        ("Privacy in total, one person over all rounds: epsilon 3.12 of 8 at delta 1e-05."),
    ]


@pytest.mark.parametrize("said", ["lost", "implausible"])
def test_a_sum_that_came_to_nothing_cost_as_much(said: str) -> None:
    line, total = cost_sentences([(1, record(2.0, 2.0, sum=said))])
    assert line.startswith("Privacy of round 1, mode central: epsilon 2 at delta 1e-05; its secure")
    assert f"secure sum was {said}" in line
    assert "epsilon 2 of 8" in total


def test_without_noise_no_epsilon_is_claimed() -> None:
    assert cost_sentences([(1, {})]) == [
        "Privacy: no noise was added (mode off), so no epsilon holds."
    ]
