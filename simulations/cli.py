"""The commands `mesofed simulate` and `mesofed report`."""

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

simulate = typer.Typer(help="Run a federation on this machine and report on it.")
report = typer.Typer(help="Write a run's report anew and print its results.")


@simulate.command()
def _simulate(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; without one, the built-in demo.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: runs/<time>.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")
    ] = None,
) -> None:
    """Run a federation on this machine: server, devices, evaluation and report.

    Without arguments it runs the demo: SmolLM2-135M on the built-in corpus.

    Your own people, one a line (see `mesofed data check`):

      mesofed simulate --set corpus.source=jsonl --set corpus.path=people.jsonl.gz

    Some settings (all are in the config.toml of any run):

      seed=7  engine=local|ray  methods='["population","meso"]'
      base.name=tiny|smollm2|<hub id>  base.format=auto|fp32|bf16|int8|nf4
      corpus.server_users=32  corpus.device_users=16
    """
    from shared.quiet import quiet_libraries

    quiet_libraries()
    from shared.config import load_config
    from shared.progress import shown
    from simulations.prepare import load_model, prepare, resume_run

    if resume is not None and (config or assignments or out):
        raise MesofedError(
            "Expected --resume RUN alone: a run keeps its own settings. Leave out the config, "
            "--set and --out."
        )
    console = output()
    folder = resume or out or Path("runs") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    with shown(console):
        if resume is not None:
            settings = resume_run(folder)
            load_model(settings)
        else:
            settings = load_config(config, tuple(assignments or ()))
            base = prepare(settings, folder, [Path(sys.argv[0]).name, *sys.argv[1:]])
            if settings.base.format == "auto" and base.format == "fp32" and base.name != "tiny":
                say(
                    console,
                    "This processor does not multiply bf16, so the base model is in fp32, and all "
                    "takes several times as long. A first look in a minute or two: "
                    f"`{command('simulate', '--set', 'base.name=tiny')}`. If other work keeps the "
                    "cores busy, `--set threads=1` is many times faster.",
                )
        console.print(f"Run: {folder}", markup=False, soft_wrap=True)
    from simulations.federated import simulate as run
    from simulations.report.read import read_run
    from simulations.report.table import ResultsTable
    from simulations.report.wording import next_step

    try:
        with stopping_in_order(), shown(console):
            summary = run(settings, folder)
    except KeyboardInterrupt:
        say(console, f"\nStopped. Continue: `{command('simulate', '--resume', folder)}`")
        # Threads may be deep in a computation; every file is written whole, so just go.
        console.file.flush()
        os._exit(INTERRUPTED)
    console.print()
    console.print(ResultsTable(summary))
    console.print(f"Report: {(folder / 'report.html').resolve()}", markup=False, soft_wrap=True)
    if settings.corpus.source == "synthetic":
        own = command("simulate", "--set", "corpus.source=jsonl", "--set", "corpus.path=FILE")
        say(console, f"Next: open the report, or try your own people: `{own}`")
    else:
        say(console, f"Next: {next_step(read_run(folder), summary)}")


@report.command()
def _report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    markdown: Annotated[bool, typer.Option(help="Print the table as Markdown.")] = False,
) -> None:
    """Write a run's report anew from what it has measured so far, and print its results."""
    from simulations.prepare import open_run

    open_run(run)
    from simulations.report.conclude import conclude
    from simulations.report.progress import render_progress
    from simulations.report.read import read_run
    from simulations.report.table import ResultsTable, markdown_table
    from simulations.report.wording import next_step

    summary, read = conclude(run), read_run(run)
    console = output()
    if not summary.rows:
        console.print(render_progress(read))
    elif markdown:
        typer.echo(markdown_table(summary))
    else:
        console.print(ResultsTable(summary))
    console.print(f"Report: {(run / 'report.html').resolve()}", markup=False, soft_wrap=True)
    say(console, f"Next: {next_step(read, summary)}")
