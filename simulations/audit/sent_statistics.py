"""What the server has seen of the router statistics, read from what the devices have sent.

off       each device's statistics as they are      local    the same, under noise of its own
central   the noised sum of all of them, as the server's record tells it; of one device, nothing

The bytes are those in the devices' journals: a journal holds whatever has left its device. What a
vault keeps beside, the statistics before any noise, no server sees; the audit looks at it only to
say whether noise is there and how far a sum is from the truth.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.inspection import sent
from client.vault import Vault
from shared.flower_internals import content_from_bytes
from shared.protocol import (
    MAX_NOISED,
    NOISED_STATISTICS,
    ROUTER_STATISTICS,
    RouterStatistics,
    noised_from_content,
    statistics_from_content,
)
from shared.secure_aggregation import masks
from shared.secure_aggregation.messages import MASKED, MaskedVector, read_reply
from shared.statistic_vector import UNITS, encode
from simulations.audit.attack import Scores
from simulations.audit.federations import vault_folder_of
from simulations.report.wording import count_of

RELEASE = 1


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
    bare : int
        Those among them whose vector is the very one before noise.
    sum : SeenSum or None
        In mode ``central``.
    """

    mode: str
    devices: int
    single: int
    bare: int
    sum: SeenSum | None

    @property
    def failures(self) -> tuple[str, ...]:
        """What the privacy mode does not allow, in words."""
        if self.mode == "central" and self.single:
            return (f"{count_of(self.single, 'device')} sent statistics that can be read alone",)
        if self.mode == "local" and self.bare:
            return (f"{count_of(self.bare, 'device')} sent statistics without noise",)
        return ()


def sent_vector(run: Path, device: int) -> Scores | None:
    """Return the statistics that anyone can read in what a device has sent; None if there are none.

    Returns
    -------
    ndarray, (E + M + 2,), or None
        As ``statistic_vector.encode`` has them, over ``UNITS``.
    """
    found = {tuple(vector) for vector in _readable(Vault(vault_folder_of(run, device)))}
    if len(found) > 1:
        raise RuntimeError(f"device {device} in {run} has sent {len(found)} different statistics")
    return np.array(found.pop()) / UNITS if found else None


def sent_vectors(run: Path, devices: int) -> list[Scores]:
    """Return each device's vector, where every device has sent one: in mode off or local."""
    found = [sent_vector(run, device) for device in range(devices)]
    vectors = [vector for vector in found if vector is not None]
    if len(vectors) != devices:
        raise RuntimeError(f"{devices - len(vectors)} devices in {run} have sent no statistics")
    return vectors


def look_at(run: Path, devices: int, mode: str) -> Seen:
    """Return what the server of a federation in a privacy mode has seen."""
    before = [_before_noise(run, device) for device in range(devices)]
    vectors = [sent_vector(run, device) for device in range(devices)]
    return Seen(
        mode,
        devices,
        single=sum(vector is not None for vector in vectors),
        bare=sum(
            vector is not None and np.array_equal(vector, np.array(encode(own)) / UNITS)
            for vector, own in zip(vectors, before, strict=True)
        ),
        sum=_seen_sum(run, before) if mode == "central" else None,
    )


def _readable(vault: Vault) -> Iterator[list[int]]:
    """Return the vectors of single people that stand in what a device has sent."""
    for entry in sent(vault):
        if entry["release"] != RELEASE:
            continue
        content = content_from_bytes(entry["bytes"])
        if entry["request"] == ROUTER_STATISTICS:
            yield encode(statistics_from_content(content))
        elif entry["request"] == NOISED_STATISTICS:
            yield list(noised_from_content(content).vector)
        elif entry["request"] == MASKED:
            masked = read_reply(MASKED, content)
            assert isinstance(masked, MaskedVector)
            numbers = masks.from_ring(masks.from_bytes(masked.data))
            # Under a mask a number is anything below 2^64, so all are small once in 10^27 at most.
            if all(abs(number) <= MAX_NOISED for number in numbers):
                yield numbers


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


def _seen_sum(run: Path, before: list[RouterStatistics]) -> SeenSum:
    path = run / "statistics" / f"r{RELEASE}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    mean = record["mean"]
    return SeenSum(
        record["answered"],
        tuple(mean["expert_weights"]) if mean is not None else None,
        tuple(np.mean([own.expert_weights for own in before], axis=0).tolist()),
        record["privacy"]["noise_of_mean"],
    )
