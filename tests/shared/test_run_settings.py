"""Apps find their run by one rule on every engine."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from shared.config import RunConfig, dump_config, load_config
from shared.errors import MesofedError
from shared.run_settings import (
    RUN_DIR_VARIABLE,
    keys_folder,
    resolve_run,
    run_folder,
    vault_folder,
)


def context(node_config: dict[str, Any] | None = None, **run_config: Any) -> Context:
    settings = {name.replace("_", "-"): value for name, value in run_config.items()}
    return Context(
        run_id=77,
        node_id=1,
        node_config=node_config or {},
        state=RecordDict(),
        run_config=settings,
    )


def test_the_run_folder_comes_from_the_run_then_the_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    assert run_folder(context()) == tmp_path / ".mesofed" / "runs" / "77"
    assert run_folder(context(run_dir="")) == tmp_path / ".mesofed" / "runs" / "77"
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path / "environment"))
    assert run_folder(context(run_dir="")) == tmp_path / "environment"
    assert run_folder(context(run_dir=str(tmp_path / "named"))) == tmp_path / "named"
    assert run_folder(context(run_dir="~/mine")) == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert run_folder(context(run_dir="here")) == tmp_path / "here"


def test_a_kept_config_wins_over_a_named_one_over_the_defaults(tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text("seed = 5\n", encoding="utf-8")
    run = tmp_path / "run"
    assert resolve_run(context(run_dir=str(run), config="")).config == RunConfig()
    assert resolve_run(context(run_dir=str(run), config=str(named))).config.seed == 5
    assert not run.exists()
    settings = resolve_run(context(run_dir=str(run)))
    run.mkdir()
    (settings.run_dir / "config.toml").write_text(dump_config(RunConfig(seed=6)), encoding="utf-8")
    assert resolve_run(context(run_dir=str(run), config=str(named))).config.seed == 6


def test_the_vault_of_a_simulated_node_lies_in_the_run(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert vault_folder(context({"partition-id": 3}, run_dir=run)) == tmp_path / "vaults" / "0003"


def test_keys_lie_in_the_run_unless_the_config_names_a_folder(tmp_path: Path) -> None:
    assert keys_folder(RunConfig(), tmp_path) == tmp_path / "keys"
    config = load_config(overrides=("release.keys=elsewhere/keys",))
    assert keys_folder(config, tmp_path) == Path.cwd() / "elsewhere" / "keys"


@pytest.mark.parametrize("number", [None, -1, True, "2", 1.0])
def test_a_node_without_a_partition_is_told_what_to_set(number: Any) -> None:
    node_config = {} if number is None else {"partition-id": number}
    with pytest.raises(MesofedError, match=r"node_config\['agent'\]"):
        vault_folder(context(node_config))


@pytest.mark.parametrize("setting", ["run_dir", "config"])
def test_a_setting_that_is_no_text_is_refused(setting: str) -> None:
    with pytest.raises(MesofedError, match="Expected"):
        resolve_run(context(**{setting: 3}))
