"""What rounds cost in privacy, in words."""

from typing import Any

from shared.privacy_cost import cost_sentences


def privacy(of_round: float, in_total: float) -> dict[str, Any]:
    return {
        "mode": "central",
        "delta": 1e-5,
        "epsilon_of_round": of_round,
        "epsilon_in_total": in_total,
        "epsilon_of_budget": 8.0,
    }


def test_each_round_is_told_and_the_total_once() -> None:
    records = [
        (1, {"privacy": privacy(2.5, 2.5), "sum": "taken"}),
        (2, {"privacy": privacy(2.5, 3.75), "sum": "lost"}),
        (3, {"privacy": privacy(2.5, 4.875), "sum": "implausible"}),
    ]
    first, second, third, total = cost_sentences(records)
    assert first == "Privacy of round 1, mode central: epsilon 2.5 at delta 1e-05."
    assert "its secure sum was lost" in second
    assert "its secure sum was implausible and thrown away" in third
    assert total == (
        "Privacy in total, one person over all rounds: epsilon 4.88 of 8 at delta 1e-05."
    )


def test_without_noise_no_epsilon_is_claimed() -> None:
    (line,) = cost_sentences([(1, {}), (2, {})])
    assert "no epsilon holds" in line
