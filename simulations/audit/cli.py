"""The command `mesofed audit`."""

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from shared.cli import FAILED
from shared.console import output, say
from shared.interrupt import INTERRUPTED, stopping_in_order

audit = typer.Typer(help="Measure what leaves devices and what can be inferred from it.")

SMALL = (
    "corpus.server_users=16",
    "corpus.device_users=8",
    "corpus.max_history=16",
    "base.max_tokens=64",
    "base.top_layers=4",
    "population.epochs=1",
    "private.epochs=2",
)
"""What an audit without a configuration starts from, so that it is done in minutes."""


@audit.command()
def _audit(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file of a run; without one, a small built-in one.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the audit; default: audits/<time>.")
    ] = None,
) -> None:
    """Measure what leaves devices and what can be inferred from it.

    Runs small federations with canaries in every vault and searches every byte
    that leaves, beside two that leak on purpose; attacks the statistics, the
    release and, for contrast, uploaded LoRAs; trains the bank with and without
    differential privacy. Exit code 1 if it fails.

    Small, with a model that knows nothing; then with the settings of a run:

      mesofed audit --set base.name=tiny --set base.format=fp32

      mesofed audit RUN/config.toml --set bank.dp_epsilon=8
    """
    from shared.quiet import quiet_libraries

    quiet_libraries()
    from shared.config import load_config
    from shared.progress import shown
    from simulations.audit.audit import run_audit
    from simulations.audit.page import write_page
    from simulations.audit.table import render_audit
    from simulations.audit.wording import next_step

    settings = load_config(config, (*(SMALL if config is None else ()), *(assignments or ())))
    folder = out or Path("audits") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    console = output()
    try:
        with stopping_in_order(), shown(console):
            found = run_audit(settings, folder, [Path(sys.argv[0]).name, *sys.argv[1:]])
    except KeyboardInterrupt:
        console.print("\nStopped; an audit begins anew.")
        # A thread may be deep in a computation; results are written whole, so just go.
        console.file.flush()
        os._exit(INTERRUPTED)
    console.print()
    console.print(render_audit(found))
    page = write_page(found, folder).resolve()
    console.print(f"\nPage: {page}", soft_wrap=True, highlight=False, markup=False)
    say(console, f"Next: {next_step(found, str(folder), said(config, assignments or ()))}")
    if found.failures:
        raise typer.Exit(FAILED)


def said(config: Path | None, assignments: Sequence[str]) -> list[str]:
    """Return the arguments by which another call is about the same, but for its folder."""
    file = [] if config is None else [str(config)]
    return [*file, *(word for one in assignments for word in ("--set", one))]
