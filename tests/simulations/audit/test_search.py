"""The search finds a canary however it is written, or a part of it, and nothing where none is."""

import base64
import gzip
import json
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.audit.canaries import Canary, canary_text
from simulations.audit.search import Needles
from simulations.audit.views import views

TEXT = canary_text(1, 0, "history text")
RNG = np.random.default_rng(2)
VALUES = RNG.uniform(0.1, 1, 64) * RNG.choice([-1, 1], 64)
TRAINED = 1e-3 * RNG.standard_normal(400)
CANARIES = (
    Canary(3, "history text", TEXT),
    Canary(4, "user LoRA", values=VALUES),
    Canary(5, "trained meso", values=TRAINED, planted=False),
)
NEEDLES = Needles(CANARIES)
NOISE = RNG.bytes(3000)


def kinds(data: bytes) -> set[str]:
    return {find.kind for find in NEEDLES.search("messages", NOISE + data + NOISE[:777])}


WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "reversed": lambda data: data[::-1],
    "hex": lambda data: data.hex().encode(),
    "hex, upper case": lambda data: b"#" + data.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64 after one byte": lambda data: base64.b64encode(b"x" + data),
    "base64 after two bytes": lambda data: base64.b64encode(b"xy" + data),
    "url-safe base64": base64.urlsafe_b64encode,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "gzip of base64": lambda data: gzip.compress(base64.b64encode(data)),
    "base64 of zlib": lambda data: base64.b64encode(zlib.compress(data, 9)),
    "zlib that breaks off": lambda data: zlib.compress(data + RNG.bytes(400))[:-60],
}


@pytest.mark.parametrize("written", list(WRITTEN))
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "lower", "upper", "json"]
)
def test_a_text_is_found_in_every_encoding(written: str, encoding: str) -> None:
    data = {
        "lower": lambda: TEXT.lower().encode(),
        "upper": lambda: TEXT.upper().encode(),
        "json": lambda: json.dumps({"error": f"cannot read <{TEXT}>"}).encode(),
    }.get(encoding, lambda: TEXT.encode(encoding))()
    assert kinds(WRITTEN[written](data)) == {"history text"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(TEXT) - 16), st.binary(max_size=40), st.binary(max_size=40))
def test_sixteen_letters_are_enough(start: int, before: bytes, after: bytes) -> None:
    part = TEXT[start : start + 16].encode()
    finds = NEEDLES.search("logs", before + part + after)
    assert [(f.source, f.device, f.form) for f in finds if f.view == "as it is"] == [
        ("logs", 3, "utf-8")
    ]


def test_fifteen_letters_are_not() -> None:
    assert kinds(TEXT[:15].encode()) == set()


FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "fp64": lambda v: v.astype("<f8").tobytes(),
    "fp32": lambda v: v.astype("<f4").tobytes(),
    "fp32, big-endian": lambda v: v.astype(">f4").tobytes(),
    "fp16": lambda v: v.astype("<f2").tobytes(),
    "bf16": lambda v: torch.tensor(v).float().bfloat16().view(torch.int16).numpy().tobytes(),
}


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize(("kind", "values"), [("user LoRA", VALUES), ("trained meso", TRAINED)])
def test_numbers_are_found_in_every_format(form: str, kind: str, values: np.ndarray) -> None:
    data = FORMATS[form](values[20:40])
    assert kinds(data) == {kind}
    assert kinds(base64.b64encode(zlib.compress(b"." + data))) == {kind}


@pytest.mark.parametrize("decimals", [2, 3, 4, 6, 17])
@pytest.mark.parametrize("separator", [", ", "\n", ";w="])
def test_planted_numbers_are_found_in_decimals(decimals: int, separator: str) -> None:
    text = separator.join(f"{value:.{decimals}f}" for value in VALUES[7:17])
    assert kinds(text.encode()) == {"user LoRA"}


@pytest.mark.parametrize("decimals", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f8", "<f4"])
def test_planted_numbers_are_found_when_rounded(decimals: int, dtype: str) -> None:
    assert kinds(np.round(VALUES[7:17], decimals).astype(dtype).tobytes()) == {"user LoRA"}


def test_nothing_is_found_where_nothing_is() -> None:
    start_of_a_lora = np.zeros(4000, "<f4").tobytes()
    weights = json.dumps([0.0, 0.25, 0.75, 0.0, 0.1234, 0.8766, -0.31]).encode()
    doubles = np.round(RNG.dirichlet(np.ones(8), 40), 4).tobytes()
    data = RNG.bytes(4 << 20) + start_of_a_lora + weights + doubles
    assert NEEDLES.search("files", data) == []
    # The zeros that a LoRA starts with are everybody's and no find.
    zeros = Canary(0, "trained oppu", values=np.zeros(400), planted=False)
    assert Needles([zeros, CANARIES[0]]).search("files", start_of_a_lora) == []


def test_a_find_across_the_border_of_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.audit.search._CHUNK", 64)
    for offset in range(40, 72):
        (find,) = NEEDLES.search("files", bytes(offset) + TEXT.encode() + bytes(50))
        assert find.windows == len(TEXT) - 15


def test_views_end_two_layers_deep() -> None:
    once, twice = base64.b64encode(TEXT.encode()), b""
    twice = base64.b64encode(once)
    assert kinds(twice) == {"history text"}
    assert kinds(base64.b64encode(twice)) == set()
    assert {name for name, _ in views(b"short")} == {"as it is", "reversed"}
