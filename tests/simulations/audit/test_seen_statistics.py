"""What an attacker expects of a history is what a device with that history sends."""

from collections.abc import Callable

import numpy as np
import pytest

from simulations.audit.attack import area
from simulations.audit.federations import Ground, PeopleRun
from simulations.audit.inference import release_of
from simulations.audit.seen_statistics import (
    derangement,
    expected_statistics,
    linkage,
)
from simulations.audit.sent_statistics import sent_vectors


def test_expected_statistics_are_those_that_are_sent(
    ground: Ground, people_runs: Callable[[str], PeopleRun]
) -> None:
    release = release_of(ground)
    seen = sent_vectors(people_runs("off"))
    for sent, person in zip(seen, ground.devices, strict=True):
        expected = expected_statistics(ground.base, release, person.given.history)
        assert sent == pytest.approx(expected, abs=1e-4)
    assert any(not np.allclose(seen[0], other) for other in seen[1:])


@pytest.mark.parametrize("count", [2, 3, 10])
def test_nobody_is_compared_with_themselves(count: int) -> None:
    for seed in range(20):
        order = derangement(count, seed)
        assert sorted(order) == list(range(count))
        assert all(place != other for place, other in enumerate(order))


def test_linkage_scores_by_how_much_farther_a_candidate_is_than_the_nearest() -> None:
    seen = [np.array([float(i), 0.0]) for i in range(5)]
    # Every candidate is off by one in the second number, device 4's by a half in the first too.
    expected = [vector + np.array([0.5 * (i == 4), 1.0]) for i, vector in enumerate(seen)]
    scored = linkage(seen, expected, seed=1)
    assert [person.members[0] for person in scored] == pytest.approx([0, 0, 0, 0, 0])
    others = [
        -((i - other - 0.5 * (other == 4)) ** 2) + (0.25 if i == 4 else 0)
        for i, other in enumerate(derangement(5, 1))
    ]
    assert [person.others[0] for person in scored] == pytest.approx(others)
    nothing = linkage(seen, [np.zeros(2)] * 5, seed=1)
    assert all(person.members[0] == person.others[0] for person in nothing)


def test_noise_that_all_candidates_share_does_not_blind_the_attack() -> None:
    rng = np.random.default_rng(0)
    expected = [np.array([0.1 * i, *[0.0] * 12]) for i in range(12)]
    # Noise of every size falls where the candidates do not differ.
    seen = [e + np.array([0.0, *rng.normal(0, 5.0, size=12)]) for e in expected]
    scored = linkage(seen, expected, seed=2)
    members = np.concatenate([person.members for person in scored])
    others = np.concatenate([person.others for person in scored])
    assert area(members, others) == 1.0
