"""Bytes to and from one device, counted for what a method needs, in the federated setting.

Deployed, a device gets the whole release whatever its method; here each method pays for what it
uses, four bytes a number, so that methods can be compared.
"""

from dataclasses import dataclass

import torch

from shared.flower_internals import content_to_bytes
from shared.lora.lora import Lora
from shared.methods import Method
from shared.protocol import RouterStatistics, statistics_to_content
from shared.release import Release

BYTES = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device over the whole of the training."""

    down: float
    up: float


def lora_bytes(*loras: Lora) -> int:
    """Return the bytes of LoRAs on the wire."""
    return BYTES * sum(lora.parameters for lora in loras)


def parts_traffic(release: Release, method: Method) -> Traffic:
    """Return what a method of the devices needs of a release, and the statistics it sends."""
    down = lora_bytes(release.population) if method.population else 0
    if method.experts != "off":
        down += lora_bytes(*release.experts)
        down += BYTES * (release.router.weight.numel() + release.router.bias.numel())
    if method.anchors != "off":
        down += lora_bytes(*release.bank) + BYTES * release.anchors.numel()
    if not method.routed:
        return Traffic(down, 0)
    down += BYTES * (release.space.mean.numel() + release.space.basis.numel())
    return Traffic(down, statistics_bytes(release))


def statistics_bytes(release: Release) -> int:
    """Return the size of the one message that a device sends."""
    experts, anchors = len(release.experts), len(release.bank)
    statistics = RouterStatistics(
        release.version,
        tuple(torch.full((experts,), 1 / experts).tolist()),
        tuple(torch.full((anchors,), 1 / anchors).tolist()),
        0.5,
        1.0,
    )
    return len(content_to_bytes(statistics_to_content(statistics)))
