"""Groups are told where they show and not where they do not; chance is a coin's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from server.bank import train_bank
from shared.base_model import BaseModel
from shared.config import BankConfig
from shared.corpus.user import ProfileItem, User
from shared.embedding import embed_user
from shared.lora.lora import Factors, Lora
from shared.retrieval import NO_EXAMPLES
from simulations.audit.attack import Attack, Scored, area, judge
from simulations.audit.bank_price import anchors_of
from simulations.audit.federations import Ground
from simulations.audit.groups import (
    can_ask,
    group_of,
    groups_by_centres,
    groups_by_likelihood,
    other_groups,
    own_and_other,
)
from simulations.audit.inference import _on_release, _strangers, release_of
from simulations.audit.likelihood import samples_of
from simulations.audit.people import Halved

SIDES = ("members", "others")


def judged(scored: list[Scored]) -> Attack:
    return judge("", "", "", scored, 1)


def auc(scored: list[Scored]) -> float:
    return area(*(np.concatenate([getattr(s, side) for s in scored]) for side in SIDES))


def test_a_score_is_what_is_left_of_a_fit_without_row_and_column() -> None:
    # Worked by hand: rows have means 2, 4, 6; columns 3, 5; all together 4.
    fits = np.array([[1.0, 3.0], [2.0, 6.0], [6.0, 6.0]])
    scored = own_and_other(fits, [7, 9], [7, 9, 7], seed=1)
    assert [one.members[0] for one in scored] == pytest.approx([0.0, 1.0, 1.0])
    assert [one.others[0] for one in scored] == pytest.approx([0.0, -1.0, -1.0])


def test_chance_is_a_coin_s_whatever_the_sizes_of_the_groups() -> None:
    mostly = [0] * 9 + [1, 2, 2]
    always = np.tile([0.3, 0.1, 0.07], (12, 1))
    # Who always names the largest group is right for nine of twelve people, and knows nothing.
    assert auc(own_and_other(always, [0, 1, 2], mostly, 1)) == 0.5
    stronger = always + 0.1 * np.arange(12)[:, None]
    assert auc(own_and_other(stronger, [0, 1, 2], mostly, 1)) == 0.5
    rng = np.random.default_rng(2)
    areas = [
        auc(own_and_other(always + rng.normal(size=(12, 3)), [0, 1, 2], mostly, seed))
        for seed in range(400)
    ]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)
    told = always + 4 * np.eye(3)[mostly]
    assert auc(own_and_other(told, [0, 1, 2], mostly, 1)) == 1.0


def test_people_of_a_group_that_nobody_knows_are_left_out() -> None:
    fits = np.array([[1.0, 0.0], [50.0, 9.0], [0.0, 1.0]])
    scored = own_and_other(fits, [0, 1], [0, 5, 1], seed=1)
    assert [one.members[0] for one in scored] == pytest.approx([0.5, 0.5])


def test_groups_are_known_by_the_nearest_centre() -> None:
    known = [(np.array([1.0, 0.1]), 0), (np.array([0.9, 0.0]), 0), (np.array([0.0, 1.0]), 1)]
    seen = [np.array([0.8, 0.2]), np.array([0.1, 0.7])]
    assert judged(groups_by_centres(seen, [0, 1], known, seed=1)).auc == 1.0
    assert judged(groups_by_centres(seen[:1] * 6, [0, 0, 1] * 2, known, seed=1)).auc == 0.5
    others = other_groups([0, 1, 2] * 10, [0, 1, 2], seed=1)
    assert all(own != other for own, other in zip([0, 1, 2] * 10, others, strict=True))
    assert set(others) == {0, 1, 2}


def test_places_that_have_nothing_to_do_with_groups_tell_none() -> None:
    rng, areas = np.random.default_rng(3), []
    for seed in range(400):
        own, groups = rng.integers(2, size=6).tolist(), [0] * 6 + [1] * 4
        known = [(rng.normal(size=3), group) for group in groups]
        areas.append(auc(groups_by_centres(list(rng.normal(size=(6, 3))), own, known, seed)))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


WORDS = ("the sea is calm", "seven dry stones")


def person(name: int, group: int, told: bool) -> Halved:
    """A person with the group's answer to everything or, if not told, both answers by turns."""
    history = tuple(
        ProfileItem(
            f"{name}-{i}",
            "headline",
            f"text {name} {i}",
            WORDS[group if told else i % 2],
        )
        for i in range(4)
    )
    return Halved(User(f"u{name}", history, (), group), ())


@pytest.mark.parametrize("told", [True, False])
def test_meta_loras_tell_groups_whose_answers_differ_and_no_others(
    ground: Ground, told: bool
) -> None:
    base = ground.base
    anchors = [person(name, name % 2, told) for name in range(8)]
    # The attacker has never seen the anchors' items; these people's answers always differ.
    known = [person(name, name % 2, told=True) for name in range(20, 26)]
    below = [release_of(ground).population]
    loras = _bank(base, below[0], anchors)
    own = [group_of(anchor) for anchor in anchors]
    found = judged(groups_by_likelihood(base, below, loras, own, known, NO_EXAMPLES, 1))
    assert (found.people, found.members, found.others) == (8, 8, 8)
    if told:
        assert found.auc > 0.95
        assert found.above_chance
    else:
        assert not found.above_chance
        assert found.auc < 0.8
    nothing = [_zero(lora) for lora in loras]
    blind = judged(groups_by_likelihood(base, below, nothing, own, known, NO_EXAMPLES, 1))
    assert (blind.low, blind.auc, blind.high) == (0.5, 0.5, 0.5)


def _bank(base: BaseModel, below: Lora, people: list[Halved]) -> tuple[Lora, ...]:
    config = BankConfig(rank=4, epochs=4, learning_rate=1e-2)
    members = [(p.given.user_id, samples_of(base, p.given.history, NO_EXAMPLES)) for p in people]
    with base.lock:
        return train_bank(base, below, members, config, seed=1).slab.loras()


def _zero(lora: Lora) -> Lora:
    return Lora({name: Factors(f.a, 0 * f.b) for name, f in lora})


def test_an_anchor_s_place_tells_the_group_where_places_differ(ground: Ground) -> None:
    release, anchors = release_of(ground), anchors_of(ground)
    strangers = _strangers(ground, anchors)
    assert len(strangers) == len(ground.server) + len(ground.devices) - len(anchors)
    assert not {p.given.user_id for p in strangers} & {p.given.user_id for p in anchors}

    def row(places: Tensor) -> Attack:
        rows = _on_release(ground, replace(release, anchors=places))
        (found,) = [attack for attack in rows if attack.target == "anchors' places"]
        assert found.question == "which group?"
        assert found.people == len(anchors)
        return found

    # Every anchor stands where an outsider of the same group does, or all stand in one place.
    with ground.base.lock:
        told = release.space.place(
            torch.stack(
                [
                    embed_user(
                        ground.base,
                        next(p for p in strangers if group_of(p) == group_of(a)).given.history,
                    )
                    for a in anchors
                ]
            )
        )
    assert row(told).auc == 1.0
    alike = row(told[:1].repeat(len(anchors), 1))
    assert (alike.low, alike.auc, alike.high) == (0.5, 0.5, 0.5)


def test_a_bank_that_has_learned_nothing_tells_no_group(ground: Ground) -> None:
    release = release_of(ground)
    empty = replace(release, bank=tuple(_zero(lora) for lora in release.bank))
    (found,) = [
        attack
        for attack in _on_release(ground, empty)
        if (attack.target, attack.question) == ("meta-LoRA bank", "which group?")
    ]
    assert (found.low, found.auc, found.high) == (0.5, 0.5, 0.5)
    assert not found.contrast


def test_groups_are_asked_for_only_where_they_are_known(ground: Ground) -> None:
    devices = ground.devices
    assert can_ask(devices, ground.server)
    unknown = replace(devices[0], given=replace(devices[0].given, group=None))
    assert not can_ask([*devices, unknown], ground.server)
    assert not can_ask(devices, [*ground.server, unknown])
    one = [person for person in ground.server if group_of(person) == 0]
    assert not can_ask(devices, one), "one group alone cannot be told from another"
