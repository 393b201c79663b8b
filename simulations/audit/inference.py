"""Membership and attribute inference: what the server, or anyone with a release, can infer.

from router statistics   whose history it is; which group. In mode central none reach the server
from a release           what an anchor's meta-LoRA and the population LoRA were trained on
from uploaded user LoRAs what they were trained on; which group. No device of Mesofed uploads one
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from client.vault import Vault
from server.training import release_folder
from shared.compute import compute
from shared.lora.lora import Lora
from shared.progress import stage
from shared.release import Release, unpack_release
from shared.release_files import read_release_files
from simulations.audit.attack import Attack, Scored, judge
from simulations.audit.bank_price import BANK, KNOWN_ANCHOR, TRAINED_ON, anchors_of
from simulations.audit.federations import UPLOADED, Ground, PeopleRun, vault_folder_of
from simulations.audit.likelihood import gains, membership_by_likelihood, samples_of
from simulations.audit.people import Halved
from simulations.audit.seen_statistics import (
    expected_statistics,
    group_by_statistics,
    linkage,
    other_groups,
    with_groups,
)
from simulations.audit.sent_statistics import sent_vectors

SAMPLES_OF_A_GROUP = 8
"""Items by which a group is known to the attacker on uploaded LoRAs."""
STATISTICS, POPULATION, UPLOADS = "router statistics", "population LoRA", "uploaded user LoRA"
WHOSE, GROUP = "whose history is it?", "which group?"


def release_of(ground: Ground) -> Release:
    """Return the release that the audit is about."""
    return unpack_release(read_release_files(release_folder(ground.server_run, 1)), ground.base)


def measure_inference(ground: Ground, ran: PeopleRun) -> tuple[Attack, ...]:
    """Attack all there is to attack, in what the server of a federation of all people has got."""
    release = release_of(ground)
    parts = (_on_statistics, _on_release, _on_uploads)
    found: list[Attack] = []
    with stage("inference attacks", len(parts), "targets") as progress:
        for part in parts:
            found += compute(partial(part, ground, ran, release))
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
            WHOSE,
            "base model, release, as many other items of each device user, none that a device has",
            linkage(seen, other, seed),
            seed,
        ),
    ]
    if with_groups([*people, *ground.server]):
        known = [
            (expected_statistics(ground.base, release, p.given.history), _group(p))
            for p in ground.server
        ]
        groups = [_group(person) for person in people]
        found.append(
            judge(
                STATISTICS,
                GROUP,
                "base model, release, histories and groups of the server's users",
                group_by_statistics(seen, groups, known, seed),
                seed,
            )
        )
    return found


def _on_release(ground: Ground, ran: PeopleRun, release: Release) -> list[Attack]:
    base, seed = ground.base, ground.config.seed
    population = [release.population]
    anchors = anchors_of(ground)
    return [
        judge(
            BANK,
            TRAINED_ON,
            KNOWN_ANCHOR,
            membership_by_likelihood(base, population, release.bank, anchors),
            seed,
        ),
        judge(
            POPULATION,
            TRAINED_ON,
            "the release and the item",
            _by_population(ground, release.population),
            seed,
        ),
    ]


def _by_population(ground: Ground, population: Lora) -> list[Scored]:
    """Score items by how much likelier the population LoRA makes them; the base is the reference.

    Nobody else has trained a population LoRA, so there is none to compare with.
    """
    base = ground.base
    return [
        Scored(
            *(
                gains(base, [], population, samples_of(base, items))
                for items in (person.given.history, person.kept)
            )
        )
        for person in ground.server
    ]


def _on_uploads(ground: Ground, ran: PeopleRun, release: Release) -> list[Attack]:
    base, seed, people = ground.base, ground.config.seed, ground.devices
    loras = [_user_lora(ran, device) for device in range(len(people))]
    below = [release.population]
    found = [
        judge(
            UPLOADS,
            TRAINED_ON,
            "the release, the item, and the user LoRAs of all devices",
            membership_by_likelihood(base, below, loras, people),
            seed,
            contrast=True,
        )
    ]
    if with_groups([*people, *ground.server]):
        found.append(
            judge(
                UPLOADS,
                GROUP,
                "the release, the device's user LoRA, items and groups of the server's users",
                _groups_by_uploads(ground, below, loras),
                seed,
                contrast=True,
            )
        )
    return found


def _groups_by_uploads(
    ground: Ground, below: Sequence[Lora], loras: Sequence[Lora]
) -> list[Scored]:
    """Score a device's own group and one other by how much likelier its LoRA makes their items."""
    items = {
        group: [item for p in ground.server if _group(p) == group for item in p.given.history][
            :SAMPLES_OF_A_GROUP
        ]
        for group in sorted({_group(person) for person in ground.server})
    }
    own = [_group(person) for person in ground.devices]
    others = other_groups(own, sorted(items), ground.config.seed)

    def score(lora: Lora, group: int) -> float:
        samples = samples_of(ground.base, items[group])
        return float(gains(ground.base, below, lora, samples).mean())

    return [
        Scored(np.array([score(lora, one)]), np.array([score(lora, other)]))
        for lora, one, other in zip(loras, own, others, strict=True)
    ]


def _user_lora(ran: PeopleRun, device: int) -> Lora:
    found = Vault(vault_folder_of(ran.run, device)).load_private(1, UPLOADED)
    if found is None:
        raise RuntimeError(f"device {device} in {ran.run} has trained no user LoRA")
    return Lora.from_tensors({k: v for k, v in found[0].items() if k != "weights"})


def _group(person: Halved) -> int:
    if person.given.group is None:
        raise RuntimeError("the corpus tells no groups")
    return person.given.group
