"""What a run leaves of how it was made."""

import json
from pathlib import Path

import pytest

from shared import precision
from shared.base_model import load_base
from shared.config import BaseConfig, RunConfig, load_config
from shared.corpus.load import Corpus
from shared.run_record import write_run_record


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_run_keeps_the_format_that_auto_came_to(
    has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may go on on another machine, and would mix two formats there."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: has_bf16)
    config = RunConfig(base=BaseConfig(name="tiny"))
    assert config.base.format == "auto"
    base = load_base(config.base, config.adapt)
    write_run_record(tmp_path, config, base, Corpus((), (), "none"), "simulation", ("run",), ())
    expected = "bf16" if has_bf16 else "fp32"
    assert load_config(tmp_path / "config.toml").base == config.base.model_copy(
        update={"format": expected}
    )
    assert json.loads((tmp_path / "run.json").read_text())["base"]["format"] == expected
