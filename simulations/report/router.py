"""What the devices sent: their use of experts and anchors, and whether it finds the true groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.report.run import RouterUse, Run


@dataclass(frozen=True)
class RouterLine:
    """What one device sent, under its user's id, or its node's where the user is not known."""

    name: str
    group: int | None
    use: RouterUse


def _strongest(weights: tuple[float, ...]) -> int:
    return max(range(len(weights)), key=weights.__getitem__)


def _agreement(weights: Mapping[str, tuple[float, ...]], groups: Mapping[str, int]) -> float | None:
    """Return the adjusted Rand index of strongest expert against group; None if not defined."""
    from sklearn.metrics import adjusted_rand_score

    users = [user for user, own in weights.items() if own and user in groups]
    if len(users) < 2 or len({groups[user] for user in users}) < 2:
        return None
    return float(
        adjusted_rand_score(
            [groups[user] for user in users], [_strongest(weights[user]) for user in users]
        )
    )


def _mean(columns: list[tuple[float, ...]]) -> list[float]:
    width = min(map(len, columns), default=0)
    return [sum(own[i] for own in columns) / len(columns) for i in range(width)]


def _routed(run: Run) -> list[RouterLine]:
    """Return what each device sent: by user where results name them, else by node."""
    known = [
        RouterLine(device.user_id, device.group, device.router)
        for device in run.devices
        if device.router is not None
    ]
    if known or not run.rounds:
        return known
    return [RouterLine(node, None, use) for node, use in run.rounds[-1].router.items()]


def router_usage(run: Run) -> dict[str, Any] | None:
    """Return what the section on router usage shows; None when no device sent statistics."""
    routed = _routed(run)
    if not routed:
        return None

    def place(line: RouterLine) -> tuple[int, int, float]:
        group = len(routed) if line.group is None else line.group
        if not line.use.expert_weights:
            return group, 0, 0.0
        return group, _strongest(line.use.expert_weights), -max(line.use.expert_weights)

    groups = {line.name: line.group for line in routed if line.group is not None}
    experts = next((stage for stage in reversed(run.training) if stage.stage == "experts"), None)
    return {
        "lines": sorted(routed, key=place),
        "grouped": bool(groups),
        "experts": _mean([line.use.expert_weights for line in routed]),
        "anchors": _mean([line.use.anchor_weights for line in routed]),
        "similarity": sum(line.use.best_similarity for line in routed) / len(routed),
        "entropy": sum(line.use.entropy for line in routed) / len(routed),
        "agreement": _agreement({line.name: line.use.expert_weights for line in routed}, groups),
        "server_agreement": _agreement(experts.gates, experts.groups) if experts else None,
    }
