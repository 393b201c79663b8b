"""On a GPU everything comes to what it comes to on the processor, which is the truth here.

`make test-gpu` runs these; the other tests run on the processor, wherever they are run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from client.answers import choose_labels, generate, gold_losses
from shared import base_model
from shared.base_model import BaseModel, load_base
from shared.cohort import FusionWeights, Trained, train_cohort
from shared.config import BaseConfig, Format, TrainingConfig
from shared.embedding import embed_user
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora
from shared.lora.slab import Slab
from shared.precision import computing_device
from shared.samples import Sample, collate, encode
from shared.state_cache import StateCache
from shared.training import Trainee, answer_losses, mean_per_user

GPU = computing_device()
CPU = torch.device("cpu")
ADAPT = ("q_proj", "v_proj", "down_proj")
CONFIG = TrainingConfig(rank=2, epochs=2, batch_size=2, learning_rate=5e-3, clip_norm=0.5)
LABELS = ["drama", "dream", "dreams", "gear", "gears", "lesson"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU == CPU, reason="on a GPU, by `make test-gpu`"),
]


def load_on(
    device: torch.device, format_: Format = "fp32", top_layers: int = 2, memory_mb: int = 768
) -> BaseModel:
    """Load ``tiny`` on a device, beside another that is kept."""
    config = BaseConfig(
        name="tiny",
        format=format_,
        max_tokens=64,
        top_layers=top_layers,
        batch_memory_mb=memory_mb,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "computing_device", lambda: device)
        patch.setattr(base_model, "_resident", None)
        return load_base(config, ADAPT)


@pytest.fixture(scope="module", params=[0, 2], ids=["all layers", "top layers"])
def both(request: pytest.FixtureRequest) -> tuple[BaseModel, BaseModel]:
    """Return the model on the processor and on the GPU."""
    return load_on(CPU, "fp32", request.param), load_on(GPU, "fp32", request.param)


def random_lora(base: BaseModel, rank: int, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    return Lora(
        {m.name: Factors(draw(m.in_features, rank), draw(rank, m.out_features)) for m in base.maps}
    )


def samples_of(base: BaseModel, name: str, count: int) -> tuple[Sample, ...]:
    return tuple(
        encode(base, f"{name} {i}".ljust(10 + 3 * i, "."), f"{name}{'!' * i}") for i in range(count)
    )


def trained(base: BaseModel, names: tuple[str, ...] = ("ada", "bob", "eve")) -> Trained:
    """Train users over two shared parts, the weight of one of which they tune."""
    everybody = {"ada": 3, "bob": 5, "eve": 2}
    place = [list(everybody).index(name) for name in names]
    people = [
        Trainee(name, samples_of(base, name, everybody[name]), everybody[name]) for name in names
    ]
    start = Slab.of(base.maps, [random_lora(base, 2, 1 + user) for user in place])
    shared = (random_lora(base, 2, 8), random_lora(base, 3, 9))
    values = torch.tensor([[1.0, 0.2], [1.0, 0.5], [1.0, 0.8]])[place]
    fusion = FusionWeights(shared, values, torch.tensor([False, True]))
    return train_cohort(base, people, start, CONFIG, fusion)


def test_hidden_states_and_embeddings_are_the_processors(
    both: tuple[BaseModel, BaseModel], federation: Any
) -> None:
    states, embeddings = [], []
    for base in both:
        batch = collate([samples_of(base, "ada", 3)], base.pad_token, base.device)
        with torch.no_grad(), base.stack.using(Parts()):
            hidden = base.hidden_states(batch.ids, batch.lengths)
        assert hidden.device.type == base.device.type
        states.append([hidden[row, :n].cpu() for row, n in enumerate(batch.lengths)])
        embeddings.append(embed_user(base, federation.people.device[0].history))
    for expected, came in zip(*states, strict=True):
        torch.testing.assert_close(came, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(embeddings[1], embeddings[0], atol=1e-4, rtol=1e-3)


def test_a_cohort_learns_what_it_learns_on_the_processor(
    both: tuple[BaseModel, BaseModel],
) -> None:
    expected, came = (trained(base) for base in both)
    for name, curve in expected.curves.items():
        assert came.curves[name] == [
            (step, pytest.approx(loss, rel=1e-3, abs=1e-4)) for step, loss in curve
        ]
    for user in range(3):
        before = Slab.of(both[0].maps, [random_lora(both[0], 2, 1 + user)]).rows[0]
        change = (expected.slab.rows[user] - before).norm()
        # Adam makes whole steps of gradients that are nothing but rounding.
        assert (came.slab.rows[user].cpu() - expected.slab.rows[user]).norm() <= 0.02 * change
    assert expected.weights is not None
    assert came.weights is not None
    torch.testing.assert_close(came.weights.cpu(), expected.weights, atol=1e-3, rtol=1e-2)


def test_company_changes_no_more_than_rounding(both: tuple[BaseModel, BaseModel]) -> None:
    _, base = both
    together = trained(base)
    for user, name in enumerate(("ada", "bob", "eve")):
        alone = trained(base, (name,))
        before = Slab.of(base.maps, [random_lora(base, 2, 1 + user)]).rows[0]
        own, other = alone.slab.rows[0].cpu(), together.slab.rows[user].cpu()
        assert (other - own).norm() <= 0.02 * (own - before).norm()


def test_answers_are_the_processors(both: tuple[BaseModel, BaseModel]) -> None:
    prompts = [["post: one two\ntag:", "post: " + "w" * 20 + "\ntag:"], ["Zürich\ntag:"]]
    found = []
    for base in both:
        shared = random_lora(base, 3, 4)
        parts = Parts(
            2,
            shared.to(base.dtype, base.device),
            torch.tensor([[1.0, 0.5, -0.5], [0.2, 0.1, 1.0]], device=base.device),
        )
        samples = [[encode(base, p, "gear") for p in group] for group in prompts]
        with base.lock:
            found.append(
                (
                    choose_labels(base, parts, prompts, LABELS),
                    choose_labels(base, parts, prompts, list("12345"), ordered=True),
                    generate(base, parts, prompts, 6),
                    gold_losses(base, parts, samples),
                )
            )
    expected, came = found
    assert came[:3] == expected[:3]
    for own, truth in zip(came[3], expected[3], strict=True):
        assert own == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(("format_", "within"), [("bf16", 5e-3), ("int8", 5e-3), ("nf4", 1e-2)])
def test_over_a_smaller_base_losses_are_the_processors_and_training_lowers_them(
    format_: Format, within: float
) -> None:
    """Whatever a format costs, it costs on both: its weights are the same, products round."""

    def losses(base: BaseModel, private: Slab | None = None) -> float:
        batch = collate([samples_of(base, "ada", 3)], base.pad_token, base.device)
        views = private.to(base.dtype, base.device).views() if private is not None else None
        with torch.no_grad(), base.stack.using(Parts(1, None, None, views)):
            return float(mean_per_user(answer_losses(base, batch), batch))

    base = load_on(GPU, format_)
    assert losses(base) == pytest.approx(losses(load_on(CPU, format_)), rel=within)
    people = [Trainee("ada", samples_of(base, "ada", 3), 1)]
    start = Slab.initial(base.maps, 4, [1])
    config = CONFIG.model_copy(update={"rank": 4, "epochs": 10})
    slab = train_cohort(base, people, start, config).slab
    assert losses(base, slab) < losses(base) - 0.1


def test_states_that_went_to_the_disk_come_back_to_the_gpu() -> None:
    states = torch.randn(5, 16).to(GPU, torch.bfloat16)
    cache = StateCache(limit=100)
    cache.put((1, 2), states)
    cache.put((3,), torch.zeros(1, 16, dtype=torch.bfloat16, device=GPU))
    cache.trim()
    assert (1, 2) not in cache._memory
    back = cache.get((1, 2))
    assert back.device.type == GPU.type
    assert torch.equal(back.cpu(), states.cpu())


def test_every_kind_of_method_comes_to_the_processors_losses(
    mesofed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "base.name": "tiny",
        "base.format": "fp32",
        "base.max_tokens": 64,
        "corpus.server_users": 6,
        "corpus.device_users": 3,
        "corpus.max_history": 4,
        "corpus.max_queries": 3,
        "threads": 1,
        "seeds": [5],
        "settings": ["federated"],
        "population.epochs": 1,
        "private.epochs": 1,
        "proper.epochs": 1,
        "proper.user_epochs": 1,
        "averaging.rounds": 1,
        "methods": [
            *("population", "user-majority", "rag-1", "oppu", "proper", "per-pcs", "mta"),
            *("fedavg-lora", "flora", "meso-code", "meso-gated", "meso"),
        ],
    }
    arguments = [
        part
        for key, value in settings.items()
        for part in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    found: list[dict[str, list[float]]] = []
    for device in (CPU, GPU):
        monkeypatch.setattr(base_model, "computing_device", lambda device=device: device)
        monkeypatch.setattr(base_model, "_resident", None)
        folder = tmp_path / device.type
        outcome = mesofed("compare", *arguments, "--out", folder)
        assert outcome.code == 0, outcome.err
        found.append({})
        for path in (folder / "cells").rglob("*.json"):
            people = json.loads(path.read_text(encoding="utf-8"))["people"]
            answers = [[answer["nll"] for answer in person["answers"]] for person in people]
            found[-1][path.stem] = [
                sum(own) / len(own) for own in answers if own and None not in own
            ]
    expected, came = found
    assert {*expected, *came} == {*settings["methods"]}
    for method, losses in expected.items():
        assert came[method] == pytest.approx(losses, rel=3e-3), method
