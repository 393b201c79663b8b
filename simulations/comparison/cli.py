"""The command `mesofed compare`."""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from shared.console import output, say
from shared.errors import MesofedError
from shared.interrupt import INTERRUPTED, stopping_in_order
from shared.program import command

compare = typer.Typer(help="Compare methods, centralized and federated, and report on them.")


@compare.command()
def _compare(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; without one, the built-in corpus.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison; default: comparisons/<time>.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with one that was stopped.")
    ] = None,
) -> None:
    """Compare methods x settings x slices x seeds over one corpus, and write one report.

    Every finished cell is a file, so a comparison that was stopped goes on
    where it was. Your own people, one a line (see `mesofed data check`):

      mesofed compare --set corpus.source=jsonl --set corpus.path=people.jsonl.gz

    Some settings (all are in the comparison.toml of any comparison):

      methods='["population","oppu","meso"]'  settings='["federated"]'
      seeds='[7,8,9]'  slices='["all","sparse-3","shifted"]'
      people=validation  base.name=tiny
    """
    from shared.quiet import quiet_libraries

    quiet_libraries()
    from shared.config import read_settings
    from shared.progress import shown
    from simulations.comparison.compare import conclude, open_comparison, prepare, run
    from simulations.comparison.config import ComparisonConfig
    from simulations.comparison.tables import render_tables

    if resume is not None and (config or assignments or out):
        raise MesofedError(
            "Expected --resume FOLDER alone: a comparison keeps its own settings. Leave out the "
            "config, --set and --out."
        )
    console = output()
    folder = resume or out or Path("comparisons") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    with shown(console):
        if resume is None:
            settings = read_settings(ComparisonConfig, config, tuple(assignments or ()))
            prepare(settings, folder, [Path(sys.argv[0]).name, *sys.argv[1:]])
        settings = open_comparison(folder)
        console.print(f"Comparison: {folder}", markup=False, soft_wrap=True)
    try:
        with stopping_in_order(), shown(console):
            run(settings, folder)
    except KeyboardInterrupt:
        say(console, f"\nStopped. Continue: `{command('compare', '--resume', folder)}`")
        # Threads may be deep in a computation; every file is written whole, so just go.
        console.file.flush()
        os._exit(INTERRUPTED)
    console.print(render_tables(conclude(settings, folder)))
    page = (folder / "report.html").resolve()
    say(console, f"\nNext: open {page}")
