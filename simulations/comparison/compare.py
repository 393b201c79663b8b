"""The comparison: every method in every scene, a file for each that is done, then the report.

comparisons/<time>/   comparison.toml  run.json  artefacts/  cells/
report.html  results.csv  results.json  results.md
"""

import json
from pathlib import Path

from shared.atomic_file import write_json, write_text
from shared.base_model import load_base
from shared.compute import compute, use_threads
from shared.config import dump_config, read_settings, require_anchor, with_format
from shared.errors import MesofedError
from shared.program import command as shell_line
from shared.progress import stage
from shared.run_record import machine_record
from shared.tasks import TASKS
from simulations.comparison.catalogue import CONTENDERS
from simulations.comparison.cell import cell_path, read_cells, write_cell
from simulations.comparison.config import ComparisonConfig, Setting
from simulations.comparison.contender import Contender
from simulations.comparison.page import write_report
from simulations.comparison.people import corpus_of, divide, held_by_server
from simulations.comparison.results import Results, results_of
from simulations.comparison.scene import Scene, scenes_of
from simulations.comparison.scene_record import write_record
from simulations.comparison.tables import csv_table, markdown_table, results_data

SETTINGS_FILE, RECORD = "comparison.toml", "run.json"
FORMAT = 3
"""Of what is kept, and of what the names of methods stand for: changed whenever one of them is."""


def open_comparison(folder: Path) -> ComparisonConfig:
    """Return the settings of a comparison that has been prepared.

    Raises
    ------
    MesofedError
        If the folder is not a comparison.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise MesofedError(
            f"Expected a comparison in {folder}, with its {SETTINGS_FILE}; there is none. "
            "Name the folder that was printed when it began."
        )
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    made = record.get("comparison_format", 1)
    if made != FORMAT:
        raise MesofedError(
            f"Expected a comparison of format {FORMAT} in {folder}; it is of format {made}: this "
            "version of mesofed would mix other methods under the same names into it. Begin a "
            "new one, or go on with the version that began it. Its report stays as it is."
        )
    return read_settings(ComparisonConfig, folder / SETTINGS_FILE)


def prepare(config: ComparisonConfig, folder: Path, command: list[str]) -> None:
    """Check that the comparison can be made, and write what it is.

    Raises
    ------
    MesofedError
        If the folder holds another comparison, the corpus or the base model cannot be used, or
        nobody could be an anchor of a method that has them.
    """
    if (folder / SETTINGS_FILE).exists():
        raise MesofedError(
            f"{folder} holds a comparison already. Continue it with "
            f"`{shell_line('compare', '--resume', folder)}`, or name another folder with --out."
        )
    with stage(f"load {config.base.name}", 1, "model"):
        base = compute(lambda: load_base(config.base, config.adapt))
    people = compute(
        lambda: [divide(config, name, config.seeds[0], base) for name in config.slices]
    )
    for setting in config.settings:
        for split in people if _released(config, setting) else ():
            server = held_by_server(split, setting)
            require_anchor(config.bank.min_history, [len(user.history) for user in server])
    origin = corpus_of(config, config.seeds[0]).origin
    record = {**machine_record(base, command), "corpus": origin, "comparison_format": FORMAT}
    write_json(folder / RECORD, record)
    write_text(folder / SETTINGS_FILE, dump_config(with_format(config, base.format)))


def run(config: ComparisonConfig, folder: Path) -> None:
    """Make every cell that is not there yet."""
    use_threads(config.threads)
    compute(lambda: _run(config, folder))


def _run(config: ComparisonConfig, folder: Path) -> None:
    base = load_base(config.base, config.adapt)
    scenes = scenes_of(config, folder, base)
    with stage("cells", len(scenes) * len(config.methods), "cells") as progress:
        for opened in scenes:
            scene = opened()
            write_record(folder, scene, _released(config, scene.setting))
            for name in config.methods:
                _answer(folder, scene, CONTENDERS[name])
                progress.advance(1)


def _released(config: ComparisonConfig, setting: Setting) -> bool:
    """Whether any method takes more of a release than the population LoRA in a setting."""
    methods = [CONTENDERS[name] for name in config.methods]
    return any(method.released and setting in method.settings for method in methods)


def _answer(folder: Path, scene: Scene, contender: Contender) -> None:
    path = cell_path(folder, scene.slice, scene.setting, scene.seed, contender.name)
    kinds = {TASKS[query.task].kind for user in scene.people for query in user.queries}
    if path.exists() or scene.setting not in contender.settings or not kinds & {*contender.kinds}:
        return
    if not contender.differs(scene):
        return
    with stage(f"{contender.name}, {scene.setting}", len(scene.people), "people"):
        write_cell(path, scene, contender, contender.answer(scene))


def conclude(config: ComparisonConfig, folder: Path) -> Results:
    """Write results and report from the cells that are done."""
    cells = read_cells(folder)
    results = results_of(cells, config.methods)
    write_json(folder / "results.json", results_data(results))
    write_text(folder / "results.csv", csv_table(results))
    write_text(folder / "results.md", markdown_table(results))
    write_report(folder, config, cells, results)
    return results
