"""Membership and attribute inference: what the server, or anyone with a release, can infer.

from router statistics   whose history it is; which group. In mode central none reach the server
from a release           what an anchor's meta-LoRA and the population LoRA were trained on; which
                         group an anchor is of, by the meta-LoRA and by the place
from fedavg-lora          what the uploaded LoRAs were trained on; which group. No device of Mesofed
                         uploads one
"""

from collections.abc import Sequence
from functools import partial

from server.training import release_folder
from shared.base_model import BaseModel
from shared.compute import compute
from shared.embedding import embed_user
from shared.progress import stage
from shared.release import Release, unpack_release
from shared.release_files import read_release_files
from simulations.audit.attack import (
    GROUP,
    TRAINED_ON,
    WHOSE,
    WHOSE_UNSEEN,
    Attack,
    Scored,
    Scores,
    judge,
)
from simulations.audit.bank_price import BANK, KNOWN_ANCHOR, anchors_of
from simulations.audit.federations import Ground, PeopleRun
from simulations.audit.groups import can_ask, group_of, groups_by_centres, groups_by_likelihood
from simulations.audit.likelihood import gains, membership_by_likelihood, samples_of
from simulations.audit.people import Halved
from simulations.audit.seen_statistics import expected_statistics, linkage
from simulations.audit.sent_statistics import sent_vectors
from simulations.audit.uploads import attack_uploads

STATISTICS, POPULATION, PLACES = "router statistics", "population LoRA", "anchors' places"


def release_of(ground: Ground) -> Release:
    """Return the release that the audit is about."""
    return unpack_release(read_release_files(release_folder(ground.server_run, 1)), ground.base)


def measure_inference(ground: Ground, ran: PeopleRun) -> tuple[Attack, ...]:
    """Attack all there is to attack, in what the server of a federation of all people has got."""
    release = release_of(ground)
    parts = (
        partial(_on_statistics, ground, ran, release),
        partial(_on_release, ground, release),
        partial(attack_uploads, ground, release),
    )
    found: list[Attack] = []
    with stage("inference attacks", len(parts), "targets") as progress:
        for part in parts:
            found += compute(part)
            progress.advance(1)
    return tuple(found)


def _on_statistics(ground: Ground, ran: PeopleRun, release: Release) -> list[Attack]:
    if ground.config.privacy.mode == "central":
        return []  # there is the sum alone, and of a single device nothing to attack
    seed, people = ground.config.seed, ground.devices
    seen = sent_vectors(ran)
    whole, other = (
        [expected_statistics(ground.base, release, items) for items in histories]
        for histories in ([p.given.history for p in people], [p.kept for p in people])
    )
    found = [
        judge(
            STATISTICS,
            WHOSE,
            "base model, release, the very histories of all device users",
            linkage(seen, whole, seed),
            seed,
        ),
        judge(
            STATISTICS,
            WHOSE_UNSEEN,
            "base model, release, as many other items of each device user, none that a device has",
            linkage(seen, other, seed),
            seed,
        ),
    ]
    if can_ask(people, ground.server):
        known = [
            (expected_statistics(ground.base, release, p.given.history), group_of(p))
            for p in ground.server
        ]
        found.append(
            judge(
                STATISTICS,
                GROUP,
                "base model, release, histories and groups of the server's users",
                groups_by_centres(seen, [group_of(p) for p in people], known, seed),
                seed,
            )
        )
    return found


def _on_release(ground: Ground, release: Release) -> list[Attack]:
    base, seed = ground.base, ground.config.seed
    population = [release.population]
    anchors = anchors_of(ground)
    found = [
        judge(
            BANK,
            TRAINED_ON,
            KNOWN_ANCHOR,
            membership_by_likelihood(base, population, release.bank, anchors, release.examples),
            seed,
        ),
        judge(
            POPULATION,
            TRAINED_ON,
            "the release and the item",
            _by_population(ground, release),
            seed,
        ),
    ]
    strangers = _strangers(ground, anchors)
    if can_ask(anchors, strangers):
        own = [group_of(anchor) for anchor in anchors]
        found += [
            judge(
                BANK,
                GROUP,
                "the release, items and groups of people who are no anchors",
                groups_by_likelihood(
                    base, population, release.bank, own, strangers, release.examples, seed
                ),
                seed,
            ),
            judge(
                PLACES,
                GROUP,
                "base model, release, histories and groups of people who are no anchors",
                groups_by_centres(
                    [place.double().numpy() for place in release.anchors],
                    own,
                    [(_place(base, release, p), group_of(p)) for p in strangers],
                    seed,
                ),
                seed,
            ),
        ]
    return found


def _strangers(ground: Ground, anchors: Sequence[Halved]) -> list[Halved]:
    """Return all people but the anchors, of whom the attacker has the release alone."""
    ids = {anchor.given.user_id for anchor in anchors}
    return [p for p in (*ground.server, *ground.devices) if p.given.user_id not in ids]


def _place(base: BaseModel, release: Release, person: Halved) -> Scores:
    """Return where an anchor with a person's given history would stand in a release, (k,)."""
    with base.lock:
        place = release.space.place(embed_user(base, person.given.history))
    found: Scores = place.double().numpy()
    return found


def _by_population(ground: Ground, release: Release) -> list[Scored]:
    """Score items by how much likelier the population LoRA makes them; the base is the reference.

    Nobody else has trained a population LoRA, so there is none to compare with.
    """
    base = ground.base
    return [
        Scored(
            *(
                gains(base, [], release.population, samples_of(base, items, release.examples))
                for items in (person.given.history, person.kept)
            )
        )
        for person in ground.server
    ]
