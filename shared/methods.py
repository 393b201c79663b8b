"""The methods under comparison: which parts of the adapter stack are on, and how they are weighed.

A method is a value, not a class: server, device and report all read the same declaration.
"""

from dataclasses import dataclass
from typing import Literal

from shared.errors import MesofedError
from shared.suggestion import suggestion

Weights = Literal["off", "routed", "tuned", "tuned-all"]
Private = Literal["none", "user_lora", "stack"]

# Where a stack of rank 2 brings most for a tenth of a user LoRA's numbers (docs/research-log.md).
STACK_MAPS = ("v_proj", "o_proj", "down_proj")


@dataclass(frozen=True)
class Method:
    """One way to personalise.

    Attributes
    ----------
    name, summary : str
        Short name, and one line for tables and help.
    population : bool
        Whether the population LoRA is on.
    experts, anchors : {"off", "routed", "tuned", "tuned-all"}
        Weights over the group experts and over the retrieved anchors: none, as the router and
        the retrieval give them, or tuned on the device from that start; of anchors, the retrieved
        ones alone or all of the bank, where the others start from zero.
    private : {"none", "user_lora", "stack"}
        What the device trains: nothing, a user LoRA (``private.rank``), or an ultra-low-rank
        stack (``private.stack_rank``).
    rank : int or None
        Of the private part, in place of the configured one.
    maps : tuple of str
        Last name components of the linear maps that carry the private part; empty for all that
        carry LoRAs. A stack goes on all of them too where none has such a name.
    label_prior : bool
        Whether the label frequencies of the person's history take part in the choice among labels.
    by_rank : bool
        Whether experts and anchors count as parts rank by rank, each with a weight of its own:
        tuned, that is a code of a few dozen numbers.
    gated : bool
        Whether experts and anchors stay off for a person whose own items have a lower loss without
        them.
    """

    name: str
    summary: str
    population: bool = True
    experts: Weights = "off"
    anchors: Weights = "off"
    private: Private = "none"
    rank: int | None = None
    maps: tuple[str, ...] = ()
    label_prior: bool = False
    by_rank: bool = False
    gated: bool = False

    @property
    def tunes(self) -> bool:
        """Whether the device learns fusion weights."""
        return any(weights.startswith("tuned") for weights in (self.experts, self.anchors))

    @property
    def routed(self) -> bool:
        """Whether it uses experts or anchors of a release, and so needs to know where one is."""
        return (self.experts, self.anchors) != ("off", "off")

    @property
    def trains(self) -> bool:
        """Whether the device has anything to train."""
        return self.private != "none" or self.tunes


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("base", "the base model, nothing on top", population=False),
        Method("population", "population LoRA"),
        Method(
            "population-prior",
            "population LoRA + label frequencies of the own history",
            label_prior=True,
        ),
        Method("experts", "population + routed experts", experts="routed"),
        Method("anchors", "population + fused anchors", anchors="routed"),
        Method("oppu", "population + own user LoRA", private="user_lora"),
        Method(
            "oppu-qv",
            "oppu on query and value maps alone, as published",
            private="user_lora",
            maps=("q_proj", "v_proj"),
        ),
        Method("proper-folded", "experts + user LoRA", experts="routed", private="user_lora"),
        Method("mta-exact", "fused anchors + stack", anchors="routed", private="stack"),
        Method(
            "meso",
            "experts + anchors + stack on value, output and down maps + label prior",
            experts="routed",
            anchors="routed",
            private="stack",
            maps=STACK_MAPS,
            label_prior=True,
        ),
        Method(
            "meso-no-prior",
            "meso without the label prior",
            experts="routed",
            anchors="routed",
            private="stack",
            maps=STACK_MAPS,
        ),
        Method(
            "meso-gated",
            "meso, experts and anchors only where the own items have a lower loss with them",
            experts="routed",
            anchors="routed",
            private="stack",
            maps=STACK_MAPS,
            label_prior=True,
            gated=True,
        ),
        Method(
            "meso-no-release",
            "meso without experts and anchors",
            private="stack",
            maps=STACK_MAPS,
            label_prior=True,
        ),
        Method(
            "meso-tuned",
            "meso, tuned weights",
            experts="tuned",
            anchors="tuned",
            private="stack",
            maps=STACK_MAPS,
            label_prior=True,
        ),
        Method(
            "meso-code",
            "tuned weights over every rank of experts and all anchors + label prior",
            experts="tuned",
            anchors="tuned-all",
            by_rank=True,
            label_prior=True,
        ),
        Method(
            "meso-r1",
            "meso, stack of rank 1 on all maps",
            experts="routed",
            anchors="routed",
            private="stack",
            rank=1,
            label_prior=True,
        ),
        Method(
            "meso-r4",
            "meso, stack of rank 4 on all maps",
            experts="routed",
            anchors="routed",
            private="stack",
            rank=4,
            label_prior=True,
        ),
    )
}


def method_named(name: str) -> Method:
    """Return a declared method.

    Raises
    ------
    MesofedError
        If there is none of that name.
    """
    if name not in METHODS:
        raise MesofedError(
            f"Expected one of {', '.join(METHODS)}; got method {name!r}{suggestion(name, METHODS)}."
        )
    return METHODS[name]
