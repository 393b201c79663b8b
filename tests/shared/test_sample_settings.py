"""The samples of settings files hold every setting, are current, and change nothing."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from shared.config import RunConfig, load_config
from shared.sample_settings import DEVICE, sample

ROOT = Path(__file__).parents[2]


def names(kind: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in kind.model_fields.items():
        inner = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found |= {f"{name}.{below}" for below in names(field.annotation)} if inner else {name}
    return found


def leaves(data: dict[str, Any]) -> set[str]:
    return {
        below
        for name, value in data.items()
        for below in ({f"{name}.{x}" for x in leaves(value)} if isinstance(value, dict) else {name})
    }


@pytest.mark.parametrize("which", ["run", "device"])
def test_the_files_are_current_and_change_nothing(which: str) -> None:
    path = ROOT / "docs" / f"{which}.toml"
    text = path.read_text(encoding="utf-8")
    assert text == sample(which), f"python -m shared.sample_settings {which} > docs/{which}.toml"
    assert load_config(path) == RunConfig()
    assert max(map(len, text.splitlines())) <= 100


def test_they_hold_every_setting() -> None:
    every = names(RunConfig)
    assert len(every) > 60
    assert leaves(tomllib.loads(sample("run"))) == every
    mine = {name for name in every if name.split(".")[0] in DEVICE}
    assert leaves(tomllib.loads(sample("device"))) == mine


@pytest.mark.parametrize("which", ["run", "device"])
def test_every_setting_is_preceded_by_its_meaning(which: str) -> None:
    lines = sample(which).splitlines()
    settings = [n for n, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert len(settings) > 20
    assert [lines[n] for n in settings if not lines[n - 1].startswith("# ")] == []
    assert "None" not in sample(which)


def test_what_may_be_written_is_said() -> None:
    lines = sample("run").splitlines()
    assert lines[lines.index('mode = "off"') - 1].endswith("(off | local | central)")
    assert lines[lines.index("quorum = 0.5") - 1].endswith("(above 0, at most 1)")


def test_the_device_s_are_what_its_commands_read() -> None:
    command = (ROOT / "client" / "cli.py").read_text(encoding="utf-8")
    assert set(re.findall(r"\bsettings\.(\w+)", command)) == set(DEVICE)
