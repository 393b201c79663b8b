"""What the server has seen of the router statistics, read from the bytes that crossed the wire.

off       each device's statistics as they are      local    the same, under noise of its own
central   the noised sum of all of them, as the server's record tells it; of one device, nothing

A reply is read by the form of its records, whatever it was asked for and whatever names they have.
A journal is what a device says that it sent; here it is held against what did cross the wire. What
a vault keeps beside, the statistics before any noise, no server sees; the audit looks at it only to
say whether noise is there and how far a sum is from the truth.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.inspection import sent
from client.vault import Vault
from shared.flower_internals import content_to_bytes, message_from_bytes
from shared.protocol import (
    MAX_NOISED,
    NOISED_FORM,
    STATISTICS_FORM,
    RouterStatistics,
    statistics_from_record,
)
from shared.record_form import fault_of
from shared.secure_aggregation import masks
from shared.secure_aggregation.messages import MaskedVector
from shared.statistic_vector import UNITS, encode
from simulations.audit.attack import Scores
from simulations.audit.federations import RELEASE, PeopleRun, vault_folder_of
from simulations.audit.sent_noise import (
    SentNoise,
    declared_variance,
    make_up,
    noise_between,
)
from simulations.audit.wire import Left
from simulations.report.wording import count_of

Vector = tuple[int, ...]
"""As ``statistic_vector.encode`` has it, (E + M + 2,)."""
Answers = Counter[tuple[str, bytes]]
"""How often a device answered a type of request with these bytes of records."""


@dataclass(frozen=True)
class SeenSum:
    """The mean that a server reads off the sum, beside the one that it cannot know.

    Attributes
    ----------
    devices : int
        In the sum.
    expert_weights : tuple of float, (E,), or None
        Mean over devices as the server's record has it; None if the sum told nothing.
    true_expert_weights : tuple of float, (E,)
        From the vaults of all devices, before any noise.
    noise_of_mean : float
        Standard deviation of the noise on each number of the mean.
    """

    devices: int
    expert_weights: tuple[float, ...] | None
    true_expert_weights: tuple[float, ...]
    noise_of_mean: float


@dataclass(frozen=True)
class Seen:
    """What the server has seen of the devices' statistics in one round.

    Attributes
    ----------
    mode : str
        The privacy mode.
    devices : int
    single : int
        Devices of which a vector of their own was readable in what they sent.
    several : int
        Those among them of which more than one was.
    bare : int
        Those among them of which one was the very vector before noise.
    untold : int
        Devices of which something crossed the wire that their journal does not have, or not as
        often.
    unheard : int
        Devices whose journal has an answer that was not heard on the wire: then the rest of what is
        said here is not known either.
    sum : SeenSum or None
        In mode ``central``.
    noise : SentNoise or None
        In modes ``local`` and ``central``; None if it cannot be measured.
    """

    mode: str
    devices: int
    single: int
    several: int
    bare: int
    untold: int
    unheard: int
    sum: SeenSum | None
    noise: SentNoise | None

    @property
    def failures(self) -> tuple[str, ...]:
        """What the privacy mode does not allow, or the journals do not tell, in words."""
        wrong = {
            "sent statistics that can be read alone": self.single * (self.mode == "central"),
            "sent statistics without noise": self.bare * (self.mode == "local"),
            "sent different statistics of one release": self.several,
            "sent what is not in the journal": self.untold,
            "put into the journal what never crossed the wire": self.unheard,
        }
        found = [f"{count_of(count, 'device')} {what}" for what, count in wrong.items() if count]
        if self.mode != "off" and self.noise is None:
            found.append("what devices put under noise cannot be told from what was sent")
        if self.noise is not None and self.noise.too_small:
            found.append(
                f"the noise on what was sent has standard deviation {self.noise.measured:.2g}; "
                f"by privacy.mode {self.mode} it should be {self.noise.declared:.2g}"
            )
        return tuple(found)


def sent_vectors(people: PeopleRun) -> list[Scores]:
    """Return each device's vector, where every device has sent one: in mode off or local.

    Returns
    -------
    list of ndarray, (E + M + 2,)
        Over ``UNITS``; of a device that has sent several, which fails the audit, the first.
    """
    found = [_vectors(_left_by(people, device)) for device in range(people.devices)]
    silent = sum(not vectors for vectors in found)
    if silent:
        raise RuntimeError(f"{silent} devices in {people.run} have sent no statistics")
    return [np.array(vectors[0]) / UNITS for vectors in found]


def look_at(people: PeopleRun, mode: str) -> Seen:
    """Return what the server of a federation in a privacy mode has seen."""
    left = [_left_by(people, device) for device in range(people.devices)]
    before = [_before_noise(people.run, device) for device in range(people.devices)]
    vectors = [_vectors(replies) for replies in left]
    crossed = [_crossed(replies) for replies in left]
    told = [_told(people.run, device) for device in range(people.devices)]
    record = json.loads(
        (people.run / "statistics" / f"r{RELEASE}.json").read_text(encoding="utf-8")
    )
    return Seen(
        mode,
        people.devices,
        single=sum(bool(found) for found in vectors),
        several=sum(len(found) > 1 for found in vectors),
        bare=sum(tuple(encode(own)) in found for found, own in zip(vectors, before, strict=True)),
        untold=sum(bool(wire - journal) for wire, journal in zip(crossed, told, strict=True)),
        unheard=sum(bool(journal - wire) for wire, journal in zip(crossed, told, strict=True)),
        sum=_seen_sum(record, before) if mode == "central" else None,
        noise=_noise(people, mode, record, vectors, before) if mode != "off" else None,
    )


def _noise(
    people: PeopleRun,
    mode: str,
    record: Any,
    vectors: list[list[Vector]],
    before: list[RouterStatistics],
) -> SentNoise | None:
    noised: Mapping[int, Vector] = {d: found[0] for d, found in enumerate(vectors) if found}
    if mode == "central":
        noised, told = people.under_masks, record["mean"]
        if told and not make_up([*noised.values()], len(before[0].expert_weights), told):
            return None
    truth = [encode(before[device]) for device in noised]
    variance = declared_variance(people.run, mode, record)
    return noise_between([*noised.values()], truth, variance)


def _left_by(people: PeopleRun, device: int) -> list[Left]:
    return [reply for reply in people.left if reply.device == device]


def _vectors(replies: list[Left]) -> list[Vector]:
    """Return the different vectors of a single person that anyone can read in replies."""
    return list(dict.fromkeys(vector for reply in replies for vector in _readable(reply)))


def _readable(reply: Left) -> Iterator[Vector]:
    message = message_from_bytes(reply.data)
    if message.has_error():
        return
    record: Any  # the forms that are looked for say of what types its fields are
    for record in message.content.values():
        if fault_of(record, STATISTICS_FORM) is None:
            yield tuple(encode(statistics_from_record(record)))
        elif fault_of(record, NOISED_FORM) is None:
            yield tuple(record["vector"])
        elif fault_of(record, MaskedVector.FORM) is None:
            ring = masks.from_bytes(record["vector"])
            numbers, apart = masks.from_ring(ring), masks.from_ring(ring[1:] - ring[0])
            # Under a mask a number, and how far it is from another under one of its own, is
            # anything below 2^64: of fourteen one is small once in 300,000 vectors.
            if any(abs(number) <= MAX_NOISED for number in (*numbers, *apart)):
                yield tuple(numbers)


def _crossed(replies: list[Left]) -> Answers:
    """Return all that crossed the wire but the protocol's own refusals, of which no journal tells.

    Any other error is taken as it came: no journal has the like of it.
    """
    return Counter(
        (
            reply.request,
            content_to_bytes(message_from_bytes(reply.data).content)
            if reply.kind == "answer"
            else reply.data,
        )
        for reply in replies
        if reply.kind != "refusal"
    )


def _told(run: Path, device: int) -> Answers:
    """Return all that a device's journal tells of."""
    found: Answers = Counter()
    for entry in sent(Vault(vault_folder_of(run, device))):
        found[entry["request"], entry["bytes"]] += entry["times"]
    return found


def _before_noise(run: Path, device: int) -> RouterStatistics:
    kept = Vault(vault_folder_of(run, device)).statistics(RELEASE)
    if kept is None:
        raise RuntimeError(f"device {device} in {run} has made no statistics")
    return RouterStatistics(
        kept["release"],
        tuple(kept["expert_weights"]),
        tuple(kept["anchor_weights"]),
        kept["best_similarity"],
        kept["entropy"],
    )


def _seen_sum(record: Any, before: list[RouterStatistics]) -> SeenSum:
    mean = record["mean"]
    return SeenSum(
        record["answered"],
        tuple(mean["expert_weights"]) if mean is not None else None,
        tuple(np.mean([own.expert_weights for own in before], axis=0).tolist()),
        record["privacy"]["noise_of_mean"],
    )
