"""Per-Pcs (arXiv 2406.10471): a LoRA assembled from pieces of other people's, without training.

    gates      one vector g per sharer and map, from zero; x -> x sigmoid(x . g), LoRA frozen
    score_j    mean over the answer tokens of LN(x) . LN(g_j) / sqrt(d), on the person's history
    assembly   map by map in forward order: the top k, w = softmax(score / temperature),
               A = sum_j w_j A_j and B = sum_j w_j B_j, apart, as released

The sharers are the anchors and their LoRAs the bank: the same for every method. A and B mixed
apart give cross terms B_i A_j; that is how it was published, and it is kept here.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from client.personalize import Personalised
from shared.base_model import BaseModel
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.progress import stage, tokens_done
from shared.samples import Sample, collate
from shared.seeding import derive_seed
from shared.training import Trainee, answer_losses, batches_of, learning_rate, mean_per_user
from simulations.baselines.gated_layer import Update, adding
from simulations.comparison.config import PiecesConfig
from simulations.comparison.contender import Answered, Contender, evaluated
from simulations.comparison.scene import Scene
from simulations.comparison.traffic import BYTES, Traffic, lora_bytes

Gates = dict[str, Tensor]
"""By map: a gate a sharer, (sharers, in)."""


def gated_update(factors: Factors, gate: Tensor) -> Update:
    """Return x -> B A (x sigmoid(x . g)) of one piece; gate (in,)."""

    def update(x: Tensor) -> Tensor:
        open_ = torch.sigmoid(x.float() @ gate)[..., None]  # (rows, tokens, 1)
        low: Tensor = open_.to(x.dtype) * (x @ factors.a.to(x.dtype))
        return low @ factors.b.to(x.dtype)

    return update


def train_gates(
    base: BaseModel,
    population: Lora,
    sharers: list[tuple[str, tuple[Sample, ...], Lora]],
    config: PiecesConfig,
    seed: int,
) -> Gates:
    """Train the gates of each sharer's pieces on the sharer's own samples."""
    below = Parts(1, population.to(base.dtype, base.device))
    trained = []
    for name, samples, lora in sharers:
        pieces = lora.to(base.dtype, base.device)
        gates = {
            m.name: torch.zeros(m.in_features, device=base.device, requires_grad=True)
            for m in base.maps
        }
        optimiser = torch.optim.AdamW(gates.values(), betas=(0.9, 0.95), weight_decay=0.0)
        plan = batches_of(Trainee(name, samples, derive_seed(seed, "gates", name)), config)
        updates = {name: gated_update(factors, gates[name]) for name, factors in pieces}
        for step, batch_samples in enumerate(plan):
            batch = collate([batch_samples], base.pad_token, base.device)
            with base.stack.using(below), adding(base, updates):
                loss = mean_per_user(answer_losses(base, batch), batch).sum()
            gradients = torch.autograd.grad(loss, list(gates.values()))
            for gate, gradient in zip(gates.values(), gradients, strict=True):
                gate.grad = gradient
            torch.nn.utils.clip_grad_norm_(gates.values(), config.clip_norm)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, step, len(plan))
            optimiser.step()
            tokens_done(sum(map(len, batch_samples)))
        trained.append({name: gate.detach().cpu() for name, gate in gates.items()})
    return {m.name: torch.stack([own[m.name] for own in trained]) for m in base.maps}


def assembled(pieces: list[Factors], scores: Tensor, config: PiecesConfig) -> Factors:
    """Return the piece put together of the best pieces by score, (sharers,)."""
    best = torch.topk(scores, min(config.top_k, len(pieces)))
    weights = torch.softmax(best.values / config.temperature, dim=0).tolist()
    chosen = [pieces[i] for i in best.indices.tolist()]
    # As released: A and B apart.
    return Factors(
        sum((w * p.a for w, p in zip(weights, chosen, strict=True)), torch.zeros(())),
        sum((w * p.b for w, p in zip(weights, chosen, strict=True)), torch.zeros(())),
    )


def piece_scores(x: Tensor, gates: Tensor) -> Tensor:
    """Score gates, (sharers, in), by a map's inputs at answer tokens, (answers, in)."""
    width = (x.shape[-1],)
    inputs, keys = layer_norm(x.float(), width), layer_norm(gates.float(), width)
    scores: Tensor = (inputs @ keys.mT).mean(0) / width[0] ** 0.5  # (sharers,)
    return scores


@torch.no_grad()
def assemble(
    base: BaseModel,
    population: Lora,
    bank: tuple[Lora, ...],
    gates: Gates,
    history: tuple[Sample, ...],
    config: PiecesConfig,
) -> Lora:
    """Assemble one person's LoRA: one pass over the history, each map as the pass reaches it."""
    batch = collate([history], base.pad_token, base.device)
    # The answer tokens themselves; the last is only ever predicted and has no place.
    place = batch.position + 1
    inside = place < torch.tensor(batch.lengths, device=place.device)[batch.row]
    row, place = batch.row[inside], place[inside]
    found: dict[str, Factors] = {}

    def update_of(name: str) -> Update:
        own = gates[name].to(base.device)

        def update(x: Tensor) -> Tensor:
            pieces = [lora.factors[name] for lora in bank]
            piece = assembled(pieces, piece_scores(x[row, place], own).cpu(), config)
            found[name] = piece
            low: Tensor = x @ piece.a.to(x.device, x.dtype)
            return low @ piece.b.to(x.device, x.dtype)

        return update

    updates = {m.name: update_of(m.name) for m in base.maps}
    with base.stack.using(Parts(1, population.to(base.dtype, base.device))), adding(base, updates):
        base.hidden_states(batch.ids, batch.lengths)
    return Lora({m.name: found[m.name] for m in base.maps})


def _gates(scene: Scene) -> Gates:
    release, config = scene.release, scene.config.pieces
    sharers = [
        (scene.server[user].user_id, scene.server_samples[user], lora)
        for user, lora in zip(scene.anchors, release.bank, strict=True)
    ]

    def make() -> Gates:
        total = config.epochs * sum(len(s) for _, samples, _ in sharers for s in samples)
        with stage("gates of pieces", total, "tokens"), scene.base.lock:
            return train_gates(scene.base, release.population, sharers, config, scene.seed)

    return scene.finished("pieces", make)


def _answer(scene: Scene) -> Answered:
    release, gates = scene.release, _gates(scene)
    stacks = []
    for history in scene.histories:
        with scene.base.lock:
            own = assemble(
                scene.base,
                release.population,
                release.bank,
                gates,
                history,
                scene.config.pieces,
            )
        stacks.append(Personalised((release.population, own), torch.ones(2)))
    return evaluated(scene, stacks)


def _traffic(scene: Scene) -> Traffic:
    release = scene.release
    gates = len(release.bank) * sum(m.in_features for m in scene.base.maps)
    return Traffic(lora_bytes(release.population, *release.bank) + BYTES * gates, 0)


PER_PCS = Contender(
    "per-pcs",
    "pieces of the anchors' LoRAs, assembled map by map",
    _answer,
    traffic=_traffic,
    released=True,
)
