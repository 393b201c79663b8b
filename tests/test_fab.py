"""The bundle that Flower ships to every node holds code and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.flower_environment import SWITCHES

ROOT = Path(__file__).parent.parent
PACKAGES = ("client", "server", "shared", "simulations")
FORCED_BY_FLOWER = {"pyproject.toml", ".info/CONTENT", "LICENSE"}
"""Flower puts the first two in by itself; its format version 1 demands the licence."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the bundle in a copy in which private data and a run lie about."""
    project = tmp_path_factory.mktemp("project") / "mesofed"
    project.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, project / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, project)
    for private in (
        "data/user.jsonl",
        "client/person.json",
        "client/vaults/0000/person.jsonl",
        "simulations/report/notes.md",
        "shared/settings.yaml",
        "notes.py",
        "tests/test_it.py",
    ):
        (project / private).parent.mkdir(parents=True, exist_ok=True)
        (project / private).write_text("{}", encoding="utf-8")
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", "from flwr.cli.app import app; app()", "build", "--app", "."],
        cwd=project,
        env={**os.environ, **SWITCHES, "HOME": str(home), "FLWR_HOME": str(home / "flwr")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    fabs = list(project.glob("*.fab"))
    assert len(fabs) == 1, done.stdout + done.stderr
    with zipfile.ZipFile(fabs[0]) as fab:
        return set(fab.namelist())


def test_the_bundle_holds_the_python_files_of_the_four_packages_and_nothing_else(
    bundle: set[str],
) -> None:
    assert bundle >= FORCED_BY_FLOWER
    code = bundle - FORCED_BY_FLOWER
    assert {name.split("/")[0] for name in code} == set(PACKAGES)
    assert all(name.endswith(".py") for name in code)


def test_the_bundle_holds_all_of_them(bundle: set[str]) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert ours - bundle == set()
