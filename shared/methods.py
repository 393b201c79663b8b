"""The methods under comparison: which parts of the adapter stack are on, and how they are weighed.

A method is a value, not a class: server, device and report all read the same declaration.
"""

from dataclasses import dataclass
from typing import Literal

Weights = Literal["off", "routed", "tuned"]
Private = Literal["none", "user_lora", "stack"]


@dataclass(frozen=True)
class Method:
    """One way to personalise.

    Attributes
    ----------
    name, summary : str
        Short name, and one line for tables and help.
    population : bool
        Whether the population LoRA is on.
    experts, anchors : {"off", "routed", "tuned"}
        Weights over the group experts and over the retrieved anchors: none, as the router and
        the retrieval give them, or tuned on the device from that start.
    private : {"none", "user_lora", "stack"}
        What the device trains: nothing, a user LoRA (``private.rank``), or an ultra-low-rank
        stack (``private.stack_rank``).
    """

    name: str
    summary: str
    population: bool = True
    experts: Weights = "off"
    anchors: Weights = "off"
    private: Private = "none"

    @property
    def trains(self) -> bool:
        """Whether the device has anything to train."""
        return self.private != "none" or "tuned" in (self.experts, self.anchors)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("base", "the base model, nothing on top", population=False),
        Method("population", "population LoRA"),
        Method("experts", "population + routed experts", experts="routed"),
        Method("anchors", "population + fused anchors", anchors="routed"),
        Method("oppu", "population + own user LoRA", private="user_lora"),
        Method("proper", "experts + user LoRA", experts="routed", private="user_lora"),
        Method("mta", "fused anchors + stack", anchors="routed", private="stack"),
        Method(
            "meso", "experts + anchors + stack", experts="routed", anchors="routed", private="stack"
        ),
        Method(
            "meso-tuned", "meso, tuned weights", experts="tuned", anchors="tuned", private="stack"
        ),
    )
}
