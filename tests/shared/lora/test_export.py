"""Exports: what is printed loads the adapter, and nothing that was there is lost."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shared import smollm2, tiny
from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig
from shared.errors import MesofedError
from shared.lora.export import CARD, OWN, check_target, export_adapter, loadable_base
from shared.lora.layer import Parts
from shared.lora.lora import Factors, Lora

ADAPT = ("q_proj", "down_proj")


def random_lora(base: BaseModel, rank: int, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    return Lora(
        {
            m.name: Factors(
                torch.randn(m.in_features, rank, generator=generator) / m.in_features**0.5,
                torch.randn(rank, m.out_features, generator=generator) / 4,
            )
            for m in base.maps
        }
    )


def run_snippet(text: str) -> dict[str, Any]:
    """Run the Python lines of a printed text or a card as if they were pasted."""
    found = re.search(r"^from peft import.*?(?=^```|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert found, text
    names: dict[str, Any] = {}
    exec(found[0], names)
    return names


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A base model as anybody has it: a folder that transformers wrote."""
    folder = tmp_path / "model's folder"
    tiny.build_model().save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    return folder


def test_the_printed_lines_and_the_card_load_what_was_exported(saved: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig(name=str(saved), format="fp32"), ADAPT)
    lora = random_lora(base, 3, seed=1)
    out = tmp_path / "an adapter"
    told, code = export_adapter(lora, out, base, "A test.")
    assert "A test. Rank 3, trained on" in told
    ids = torch.arange(40, 60)[None]
    with torch.no_grad(), base.stack.using(Parts(shared=lora)):
        expected = base.model(input_ids=ids).logits
    with torch.no_grad():
        plain = base.model(input_ids=ids).logits
    assert (expected - plain).abs().max() > 0.05
    for text in (code, (out / CARD).read_text(encoding="utf-8")):
        names = run_snippet(text)
        with torch.no_grad():
            came = names["model"](input_ids=ids).logits
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-5)
        assert names["tokenizer"]("a")["input_ids"] == [97]
        config = names["model"].peft_config["default"]
        assert config.base_model_name_or_path == str(saved.resolve())
    assert {path.name for path in out.iterdir()} == OWN


@pytest.mark.skipif(smollm2.wheel_file() is None, reason=smollm2.INSTALL)
def test_smollm2_is_loaded_from_the_very_weights_that_were_trained_on(tmp_path: Path) -> None:
    base = load_base(BaseConfig(name="smollm2", format="bf16"), ("q_proj",))
    try:
        told, code = export_adapter(random_lora(base, 1, seed=2), tmp_path / "a", base, "A test.")
        assert "HuggingFaceTB" not in told + code
        model = run_snippet(code)["model"].get_base_model()
        for theirs, ours in (
            (model.get_input_embeddings().weight, base.model.get_input_embeddings().weight),
            (
                model.model.layers[3].mlp.up_proj.weight,
                base.model.model.layers[3].mlp.up_proj.weight,
            ),
        ):
            assert torch.equal(theirs, ours)
    finally:
        load_base(BaseConfig(name="tiny"), ("q_proj",))  # drop it and its 270 MB


def test_tiny_is_said_to_be_nowhere(tmp_path: Path) -> None:
    base = load_base(BaseConfig(name="tiny", format="fp32"), ADAPT)
    told, code = export_adapter(random_lora(base, 2, seed=3), tmp_path / "a", base, "A test.")
    assert "cannot be loaded elsewhere" in told
    assert code == ""
    assert "from_pretrained" not in told + (tmp_path / "a" / CARD).read_text(encoding="utf-8")


def test_an_id_of_the_hub_stays_as_it_is() -> None:
    assert loadable_base("org/model") == "org/model"


def test_a_former_export_is_replaced_where_told_and_anything_else_is_refused(
    tmp_path: Path,
) -> None:
    base = load_base(BaseConfig(name="tiny", format="fp32"), ADAPT)
    out = tmp_path / "a"
    first, _ = export_adapter(random_lora(base, 1, 4), out, base, "A test.")
    assert "Rank 1," in first
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        MesofedError, match=r"as an export leaves them\. Add --force to replace them"
    ):
        export_adapter(random_lora(base, 2, 4), out, base, "A test.")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    second, _ = export_adapter(random_lora(base, 2, 4), out, base, "A test.", force=True)
    assert "Rank 2," in second
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(MesofedError, match=r"holds notes\.txt\. Name another folder"):
        export_adapter(random_lora(base, 3, 4), out, base, "A test.", force=True)
    (out / "notes.txt").unlink()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MesofedError, match="is a file"):
        check_target(file)
