"""The record of a round, ``statistics/r<k>.json``: who answered, the means, the privacy spent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.exchange import Exchange
from server.refusals import Refused, refused_record
from server.secure_round import SecureSum
from shared.config import PrivacyConfig
from shared.privacy import LedgerEntry, spent
from shared.protocol import NoisedStatistics, RouterStatistics
from shared.statistic_vector import UNITS, bound_influence, decode_mean, plausible

Record = dict[str, Any]


@dataclass(frozen=True)
class RoundPrivacy:
    """The noise of one round.

    Attributes
    ----------
    config : PrivacyConfig
    noise_multiplier : float
        As accounted: of one device's noise, or of the honest devices' in the sum.
    variance : int
        sigma^2 that each device adds to each number, in squared units.
    before : tuple of float
        Noise multipliers of the rounds before, as their records tell.
    """

    config: PrivacyConfig
    noise_multiplier: float
    variance: int
    before: tuple[float, ...]

    def record(self, devices: int) -> Record:
        """Return what the round's record says of it, for so many devices in the mean."""
        costs = [
            LedgerEntry(number, self.config.mode, multiplier, "")
            for number, multiplier in enumerate((*self.before, self.noise_multiplier), start=1)
        ]
        return {
            "mode": self.config.mode,
            "unit": "one person, all rounds",
            "noise_multiplier": self.noise_multiplier,
            "delta": self.config.delta,
            "epsilon_of_round": spent(costs[-1:], self.config.delta),
            "epsilon_in_total": spent(costs, self.config.delta),
            "epsilon_of_budget": self.config.epsilon,
            "noise_of_mean": math.sqrt(self.variance / max(devices, 1)) / UNITS,
        }


def describe_round(installed: Exchange[None], gathered: Exchange[RouterStatistics]) -> Record:
    """Return the record of a round without noise, devices in the order of their node ids.

    The means are taken over the devices that answered, exactly rounded, so that they do not
    depend on the order in which an engine numbers its nodes.
    """
    answers = list(gathered.answers.values())
    record = _who(installed, gathered.refused, gathered.stray, list(gathered.answers))
    for device, statistics in zip(
        _traffic(installed, gathered.bytes_down, gathered.bytes_up, list(gathered.answers)),
        answers,
        strict=True,
    ):
        record["devices"].append(
            {
                **device,
                "statistics": {
                    "release": statistics.release,
                    "expert_weights": list(statistics.expert_weights),
                    "anchor_weights": list(statistics.anchor_weights),
                    "best_similarity": statistics.best_similarity,
                    "entropy": statistics.entropy,
                },
            }
        )
    record["mean"] = {
        "expert_weights": _mean([s.expert_weights for s in answers]),
        "anchor_weights": _mean([s.anchor_weights for s in answers]),
    }
    return record


def describe_noised(
    installed: Exchange[None],
    gathered: Exchange[NoisedStatistics],
    experts: int,
    privacy: RoundPrivacy,
) -> Record:
    """Return the record of a round in which each device noised its own statistics."""
    nodes = list(gathered.answers)
    vectors = [
        bound_influence(said.vector, experts, privacy.variance)
        for said in gathered.answers.values()
    ]
    total = [sum(column) for column in zip(*vectors, strict=True)]
    record = _who(installed, gathered.refused, gathered.stray, nodes)
    record["devices"] = _traffic(installed, gathered.bytes_down, gathered.bytes_up, nodes)
    record["mean"] = _means(total, len(nodes), experts)
    record["privacy"] = privacy.record(len(nodes))
    return record


def describe_sum(
    installed: Exchange[None], summed: SecureSum, experts: int, privacy: RoundPrivacy
) -> Record:
    """Return the record of a round whose statistics came as one sum: there are no others.

    A sum that could not be opened, or that honest devices cannot have made, has no mean; the next
    release is then trained on the corpus as it is.
    """
    nodes, total = list(summed.opened.devices), summed.opened.total
    trusted = total is not None and plausible(total, len(nodes), experts, privacy.variance)
    record = _who(installed, summed.refused, summed.stray, nodes)
    record["devices"] = _traffic(installed, summed.bytes_down, summed.bytes_up, nodes)
    record["mean"] = _means(total, len(nodes), experts) if total is not None and trusted else None
    record["joined"] = summed.joined
    record["sum"] = "lost" if total is None else "taken" if trusted else "implausible"
    record["privacy"] = privacy.record(len(nodes))
    return record


def _who(
    installed: Exchange[None], refused: Sequence[Refused], stray: int, nodes: Sequence[int]
) -> Record:
    return {
        "asked": len(installed.asked),
        "answered": len(nodes),
        "refused": refused_record((*installed.refused, *refused)),
        "stray": installed.stray + stray,
        "devices": [],
    }


def _traffic(
    installed: Exchange[None],
    bytes_down: Mapping[int, int],
    bytes_up: Mapping[int, int],
    nodes: Sequence[int],
) -> list[Record]:
    return [
        {
            "node": node,
            "bytes_down": installed.bytes_down.get(node, 0) + bytes_down.get(node, 0),
            "bytes_up": installed.bytes_up.get(node, 0) + bytes_up.get(node, 0),
        }
        for node in nodes
    ]


def _means(total: Sequence[int], devices: int, experts: int) -> Record:
    mean = asdict(decode_mean(total, devices, experts))
    return {name: list(v) if isinstance(v, tuple) else v for name, v in mean.items()}


def _mean(rows: list[tuple[float, ...]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
