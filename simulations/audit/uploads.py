"""The contrast: what the server of `fedavg-lora` could infer from the LoRAs that devices upload.

The devices are those of the audit, each with the given half of the own history. They run the very
rounds of the contender (simulations/baselines/federated_averaging.py), from the population LoRA of
the release. No device of Mesofed does so.

What comes up is not a LoRA over the global one but the global one as it has become. Where it is
compared with others' of the same round, what they started from cancels. A score is the sum of
those of all rounds, for the server sees them all.
"""

from collections.abc import Sequence
from functools import partial

from shared.release import Release
from shared.seeding import derive_seed
from shared.training import Trainee
from simulations.audit.attack import GROUP, TRAINED_ON, Attack, Scored, judge
from simulations.audit.federations import Ground
from simulations.audit.groups import can_ask, group_of, groups_by_likelihood
from simulations.audit.likelihood import membership_by_likelihood, samples_of
from simulations.baselines.federated_averaging import AveragingRound, averaging_rounds
from simulations.comparison.config import AveragingConfig

UPLOADS = "uploads of fedavg-lora"


def uploaded(ground: Ground, release: Release) -> tuple[AveragingRound, ...]:
    """Return what everyone uploads in all rounds of ``fedavg-lora``, at its default settings."""
    rounds = averaging_rounds(
        ground.base, partial(_clients, ground, release), release.population, AveragingConfig()
    )
    return tuple(rounds)


def _clients(ground: Ground, release: Release, round_: int) -> list[Trainee]:
    seed = ground.config.seed
    return [
        Trainee(
            person.given.user_id,
            tuple(samples_of(ground.base, person.given.history, release.examples)),
            derive_seed(seed, "upload", person.given.user_id, round_),
        )
        for person in ground.devices
    ]


def summed(rounds: Sequence[Sequence[Scored]]) -> list[Scored]:
    """Return each person's scores, added up over the rounds."""
    return [
        Scored(sum(score.members for score in one), sum(score.others for score in one))
        for one in zip(*rounds, strict=True)
    ]


def attack_uploads(ground: Ground, release: Release) -> list[Attack]:
    """Ask of the uploads what the audit asks of all else."""
    base, seed, people = ground.base, ground.config.seed, ground.devices
    rounds = [done.uploads.loras() for done in uploaded(ground, release)]
    found = [
        judge(
            UPLOADS,
            TRAINED_ON,
            "the release, the item, and who uploads what, in every round; no secure sum",
            summed(
                [
                    membership_by_likelihood(base, [], loras, people, release.examples)
                    for loras in rounds
                ]
            ),
            seed,
            contrast=True,
        )
    ]
    if can_ask(people, ground.server):
        own = [group_of(person) for person in people]
        found.append(
            judge(
                UPLOADS,
                GROUP,
                "the release, who uploads what in every round; items, groups of the server's users",
                summed(
                    [
                        groups_by_likelihood(
                            base, [], loras, own, ground.server, release.examples, seed
                        )
                        for loras in rounds
                    ]
                ),
                seed,
                contrast=True,
            )
        )
    return found
