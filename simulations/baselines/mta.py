"""MTA as released (arXiv 2511.20072): anchors of the bare base, merged by factors, and a stack.

    alpha    s_1 / (s_1 + s_2), from the raw cosines of the two nearest anchors
    merge    A = (1 - alpha) A_1 + alpha A_2, and B likewise, apart: cross terms, and the nearer
             anchor gets the smaller weight
    stack    rank 4 over the merged LoRA; no population LoRA anywhere

The bugs are the release's; ``mta-exact`` has them mended. The anchors are those of every other
method here, embedded by the base model in place of a second encoder; ranks and rates of the bank
are the comparison's own, so that methods differ by what they do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from client.personalize import Personalised
from shared.cohort import train_cohort
from shared.compute import wait_for
from shared.dynamic_batching import TrainingRequest, train
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.progress import stage
from shared.seeding import derive_seed
from shared.training import Trainee
from simulations.comparison.contender import TRAINING, Answered, Contender, evaluated
from simulations.comparison.scene import Scene
from simulations.comparison.traffic import Traffic, lora_bytes

STACK_RANK = 4


def two_nearest(embedding: Tensor, anchors: Tensor) -> tuple[int, int, float]:
    """Return the two anchors of highest cosine, nearest first, and alpha, the first one's share.

    Parameters
    ----------
    embedding : Tensor, (width,)
    anchors : Tensor, (anchors, width)
    """
    best = torch.topk(cosine_similarity(anchors, embedding[None]), 2)
    first, second = best.values.tolist()
    return int(best.indices[0]), int(best.indices[1]), first / (first + second)


def merged_by_factors(first: Lora, second: Lora, alpha: float) -> Lora:
    """Return the release's merge: factors apart, and the weights swapped."""
    return Lora(
        {
            name: Factors(
                (1 - alpha) * f.a + alpha * second.factors[name].a,
                (1 - alpha) * f.b + alpha * second.factors[name].b,
            )
            for name, f in first
        }
    )


def _bank(scene: Scene) -> tuple[Lora, ...]:
    """Return the anchors' LoRAs over the bare base model."""
    base, config = scene.base, scene.config.bank

    def make() -> dict[str, Tensor]:
        members = [(scene.server[i].user_id, scene.server_samples[i]) for i in scene.anchors]
        total = config.epochs * sum(len(s) for _, own in members for s in own)
        trainees = [
            Trainee(name, samples, derive_seed(scene.seed, "bare bank", name))
            for name, samples in members
        ]
        initial = Slab.initial(
            base.maps, config.rank, [derive_seed(t.seed, "start") for t in trainees]
        )
        with stage("bank over the bare base", total, "tokens"), base.lock:
            return {"rows": train_cohort(base, trainees, initial, config).slab.rows}

    return Slab.from_rows(base.maps, scene.finished("bare-bank", make)["rows"]).loras()


def stacked_over(scene: Scene, merged: Sequence[Lora], rank: int) -> list[Personalised]:
    """Train a stack of a rank for each of the people, over a frozen LoRA of their own."""
    config = scene.config.private
    config = config.model_copy(update={"learning_rate": config.stack_learning_rate})
    waiting = []
    for user, history, lora in zip(scene.people, scene.histories, merged, strict=True):
        seed = scene.private_seed(user)
        trainee = Trainee(user.user_id, history, seed)
        start = derive_seed(seed, "start")
        request = TrainingRequest(
            scene.base, trainee, rank, start, config, (lora,), torch.ones(1), share=TRAINING
        )
        waiting.append(train(request))
    members = [wait_for(trained) for trained in waiting]
    return [
        Personalised(
            (lora,),
            torch.ones(1),
            Slab(scene.base.maps, rank, member.row.cpu()[None]).lora(0),
            curve=tuple(member.curve),
            tokens=member.tokens,
            seconds=member.seconds,
        )
        for lora, member in zip(merged, members, strict=True)
    ]


def _answer(scene: Scene) -> Answered:
    bank, anchors = _bank(scene), scene.server_embeddings[list(scene.anchors)]
    merged = []
    for embedding in scene.embeddings:
        first, second, alpha = two_nearest(embedding, anchors)
        merged.append(merged_by_factors(bank[first], bank[second], alpha))
    return evaluated(scene, stacked_over(scene, merged, STACK_RANK))


MTA = Contender(
    "mta",
    "as released: factors averaged apart, weights swapped, no population LoRA",
    _answer,
    traffic=lambda scene: Traffic(lora_bytes(*scene.release.bank), 0),
    released=True,
)
