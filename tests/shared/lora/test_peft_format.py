"""PEFT adapter folders: PEFT reads ours, we read those of PEFT, with the same logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared import tiny
from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig
from shared.errors import MesofedError
from shared.lora.algebra import concatenate, fuse
from shared.lora.layer import Parts, expand_weights
from shared.lora.lora import Factors, Lora
from shared.lora.peft_format import CONFIG, WEIGHTS, load_peft, save_peft
from shared.lora.slab import Slab

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = torch.tensor([[104, 101, 108, 108, 111, 32], [1, 2, 3, 4, 5, 6]])


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(BaseConfig(name="tiny", format="fp32", top_layers=0), ("q_proj", "v_proj"))


def random_lora(base: BaseModel, rank: int, seed: int, size: float = 0.1) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    return Lora(
        {
            m.name: Factors(
                torch.randn(m.in_features, rank, generator=generator) * size,
                torch.randn(rank, m.out_features, generator=generator) * size,
            )
            for m in base.maps
        }
    )


@torch.no_grad()
def our_logits(base: BaseModel, parts: Parts) -> Tensor:
    with base.lock, base.stack.using(parts):
        logits: Tensor = base.model(input_ids=IDS, use_cache=False).logits
    return logits


@torch.no_grad()
def their_logits(model: nn.Module) -> Tensor:
    logits: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return logits


def assert_close(came: Tensor, expected: Tensor, plain: Tensor) -> None:
    """Compare logits; first make sure that the adapter changes them at all."""
    assert (expected - plain).abs().max() > 0.05
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-5)


def adapted_by_peft(model: nn.Module) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_peft_loads_a_part_on_the_plain_base(base: BaseModel, tmp_path: Path, rank: int) -> None:
    lora = random_lora(base, rank, seed=rank)
    save_peft(lora, tmp_path / "adapter", None)
    model = PeftModel.from_pretrained(tiny.build_model(), tmp_path / "adapter")
    assert adapted_by_peft(model) == {m.name for m in base.maps}
    plain = our_logits(base, Parts())
    assert_close(their_logits(model), our_logits(base, Parts(shared=lora)), plain)


def test_peft_loads_the_folded_stack_of_one_user(base: BaseModel, tmp_path: Path) -> None:
    shared = [random_lora(base, rank, seed=rank) for rank in (4, 2, 2, 3)]
    weights = torch.tensor([1.0, 0.7, 0.3, -0.4])
    private = random_lora(base, 2, seed=9)
    stack = Parts(
        1,
        concatenate(shared),
        expand_weights(shared, weights[None]),
        Slab.of(base.maps, [private]).views(),
    )
    save_peft(fuse([*shared, private], [*weights.tolist(), 1.0]), tmp_path, None)
    model = PeftModel.from_pretrained(tiny.build_model(), tmp_path)
    assert_close(their_logits(model), our_logits(base, stack), our_logits(base, Parts()))


def test_only_the_named_maps_are_adapted(base: BaseModel, tmp_path: Path) -> None:
    whole = random_lora(base, 2, seed=1)
    name = base.maps[2].name
    save_peft(Lora({name: whole.factors[name]}), tmp_path, None)
    model = PeftModel.from_pretrained(tiny.build_model(), tmp_path)
    assert adapted_by_peft(model) == {name}


def test_the_config_is_that_of_peft_and_says_what_is_true(base: BaseModel, tmp_path: Path) -> None:
    lora = random_lora(base, 3, seed=1)
    for place in (None, "org/model"):
        save_peft(lora, tmp_path, place)
        config = LoraConfig.from_pretrained(tmp_path)
        assert (config.r, config.lora_alpha, config.use_rslora) == (3, 3, False)
        assert (config.task_type, config.bias, config.inference_mode) == ("CAUSAL_LM", "none", True)
        assert config.base_model_name_or_path == place
    written = json.loads((tmp_path / CONFIG).read_text())["target_modules"]
    assert written == sorted(lora.factors)  # PEFT's set has another order in every process
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_peft(lora, tmp_path, "org/model")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert set(first) == {CONFIG, WEIGHTS}


def test_an_empty_lora_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match="got an empty one"):
        save_peft(Lora({}), tmp_path / "adapter", None)
    assert not (tmp_path / "adapter").exists()


def test_what_we_write_we_read_back(base: BaseModel, tmp_path: Path) -> None:
    lora = random_lora(base, 3, seed=4)
    save_peft(lora, tmp_path, None)
    back = load_peft(tmp_path, base.maps)
    assert list(back.factors) == [m.name for m in base.maps]
    for name, factors in back:
        assert torch.equal(factors.a, lora.factors[name].a)
        assert torch.equal(factors.b, lora.factors[name].b)


# Adapters from PEFT


def write_with_peft(folder: Path, **choices: Any) -> nn.Module:
    """Save a randomly initialised PEFT adapter for ``tiny`` and return the model with it."""
    defaults: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 10,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    model = get_peft_model(tiny.build_model(), LoraConfig(**(defaults | choices)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=generator)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"use_rslora": True},
        {"r": 3, "lora_alpha": 1, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {r"layers\.[12]\.self_attn\.v_proj": 6}, "use_rslora": True},
        {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 40, "q_proj": 2}},
        {"target_modules": ["v_proj"], "layers_to_transform": [1, 3]},
        {"target_modules": r".*\.2\.self_attn\.q_proj"},
    ],
    ids=lambda choices: ",".join(choices) or "alpha",
)
def test_we_load_adapters_of_peft(base: BaseModel, tmp_path: Path, choices: dict[str, Any]) -> None:
    model = write_with_peft(tmp_path, **choices)
    lora = load_peft(tmp_path, base.maps)
    assert_close(
        our_logits(base, Parts(shared=lora)), their_logits(model), our_logits(base, Parts())
    )
    # Every map has one rank, so that the algebra and the slab take it.
    assert {f.rank for _, f in lora} == {lora.rank}
    twice = Slab.of(base.maps, [fuse([lora, lora], [0.5, 0.5])]).lora(0)
    torch.testing.assert_close(
        our_logits(base, Parts(shared=twice)),
        our_logits(base, Parts(shared=lora)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_maps_that_the_adapter_leaves_alone_get_zeros(base: BaseModel, tmp_path: Path) -> None:
    write_with_peft(tmp_path, target_modules=["v_proj"])
    lora = load_peft(tmp_path, base.maps)
    for name, factors in lora:
        assert factors.rank == 4
        assert bool(factors.delta().abs().sum() > 0) == name.endswith("v_proj")


def test_adapters_in_half_precision_come_in_fp32(base: BaseModel, tmp_path: Path) -> None:
    lora = random_lora(base, 2, seed=5)
    save_peft(lora.to(torch.bfloat16, torch.device("cpu")), tmp_path, None)
    back = load_peft(tmp_path, base.maps)
    for name, factors in back:
        assert factors.a.dtype == torch.float32
        assert torch.equal(factors.a, lora.factors[name].a.bfloat16().float())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "o_proj"]}, r'adapt=\["o_proj", "q_proj", "v_proj"\]'),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_more_than_a_lora_over_our_maps_is_refused(
    base: BaseModel, tmp_path: Path, choices: dict[str, Any], message: str
) -> None:
    write_with_peft(tmp_path, **choices)
    with pytest.raises(MesofedError, match=message):
        load_peft(tmp_path, base.maps)


# Damaged folders


@pytest.fixture
def adapter(base: BaseModel, tmp_path: Path) -> Path:
    save_peft(random_lora(base, 2, seed=6), tmp_path, None)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(base: BaseModel, adapter: Path, missing: str) -> None:
    (adapter / missing).unlink()
    with pytest.raises(MesofedError, match=missing):
        load_peft(adapter, base.maps)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"r": 0},
        {"r": 3},
        {"r": 10**15},
        {"r": "four"},
        {"lora_alpha": None},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": {"q_proj": 5}},
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": {"(?i)q_proj": 2.0}},
        {"something_new": {"on": True}},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(
    base: BaseModel, adapter: Path, changes: dict[str, Any]
) -> None:
    edit_config(adapter, **changes)
    with pytest.raises(MesofedError):
        load_peft(adapter, base.maps)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(KEY), "pairs of lora_A and lora_B"),
        (lambda t: t.clear(), "no factors at all"),
        (lambda t: t.update({KEY: t[KEY][:, :-1].contiguous()}), r"shape \(2, 64\)"),
        (lambda t: t.update({KEY: t[KEY].int()}), "torch.int32"),
        (lambda t: t[KEY].fill_(float("nan")), "not finite"),
        (lambda t: t.update({"lm_head.weight": torch.ones(2)}), "got lm_head.weight"),
        (
            lambda t: t.update(
                {
                    KEY.replace(".0.", ".9."): t[KEY].clone(),
                    KEY.replace(".0.", ".9.").replace("_A", "_B"): t[KEY].mT.contiguous(),
                }
            ),
            "another base model",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    base: BaseModel, adapter: Path, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    edit_weights(adapter, edit)
    with pytest.raises(MesofedError, match=message):
        load_peft(adapter, base.maps)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from([CONFIG, WEIGHTS]), data=st.binary(max_size=80), cut=st.booleans())
def test_arbitrary_bytes_are_refused(
    base: BaseModel, adapter: Path, name: str, data: bytes, cut: bool
) -> None:
    kept = (adapter / name).read_bytes()
    (adapter / name).write_bytes(kept[: len(data) * 3] + data if cut else data)
    try:
        with pytest.raises(MesofedError):
            load_peft(adapter, base.maps)
    finally:
        (adapter / name).write_bytes(kept)
