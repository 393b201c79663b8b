"""Retrieval in the prompt as a method of its own (OPPU's arms with k > 0).

``rag-k`` asks the population LoRA, which has not seen such prompts; ``rag-k-tuned`` asks a LoRA of
the same size and rates that was trained on the server's users with the same retrieval.
"""

from dataclasses import replace

from shared.methods import METHODS
from simulations.comparison.contender import (
    Answered,
    Contender,
    evaluated,
    of_devices,
    personalised,
)
from simulations.comparison.scene import Scene
from simulations.comparison.traffic import Traffic, lora_bytes


def _untuned(count: int) -> Contender:
    def answer(scene: Scene) -> Answered:
        own = scene.retrieving(count)
        stacks = personalised(scene, METHODS["population"], scene.foundation)
        return evaluated(own, [replace(stack, examples=own.examples) for stack in stacks])

    items = f"{count} own item{'s' if count > 1 else ''} in the prompt (BM25)"
    return Contender(
        f"rag-{count}",
        f"population, {items}",
        answer,
        traffic=lambda scene: Traffic(lora_bytes(scene.foundation.population), 0),
    )


RETRIEVALS = (
    _untuned(1),
    _untuned(4),
    of_devices("population", 1, "rag-1-tuned"),
    of_devices("population", 4, "rag-4-tuned"),
)
