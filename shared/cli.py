"""The console command `mesofed`: its root, and the commands that need nothing but ``shared``.

Sub-commands are entry points of the group ``mesofed.commands``, imported only when they are
called, so the root in ``shared`` reaches ``server``, ``client`` and ``simulations`` without
importing them.
"""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import click
import typer
import typer.core
import typer.main
from rich.console import Console
from rich.table import Table

from shared.errors import MesofedError

GROUP = "mesofed.commands"
FAILED, INTERRUPTED = 1, 130


class EntryPointCommands(typer.core.TyperGroup):
    """A group whose commands are the entry points of :data:`GROUP`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, sorted."""
        return sorted(entry_points(group=GROUP).names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        for entry in entry_points(group=GROUP, name=cmd_name):
            command = typer.main.get_command(entry.load())
            command.name = cmd_name
            return command
        return None


root = typer.Typer(
    cls=EntryPointCommands,
    no_args_is_help=True,
    add_completion=False,
    # Typer's own tracebacks print local variables, which may be a person's texts.
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: [bold]mesofed simulate[/bold] (about five minutes on two cores).",
)


@root.callback()
def _root() -> None:
    """Federated, on-device personalization of language models.

    A server trains what people share; each device personalises on its own history and sends
    back router statistics, nothing else.

    Exit codes: 0 done, 1 something to mend (the text says what), 2 wrong usage, 130 stopped by
    Ctrl-C (a run can be resumed).
    """


def main() -> None:
    """Run `mesofed`; problems that the user can mend end in their text, not in a traceback."""
    errors = Console(stderr=True)
    try:
        root()
    except MesofedError as error:
        errors.print(f"[bold red]Error:[/bold red] {_escaped(str(error))}", highlight=False)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        errors.print("Stopped.")
        sys.exit(INTERRUPTED)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


data = typer.Typer(no_args_is_help=True, help="Look at corpus files before using them.")


@data.callback()
def _data() -> None:
    """Look at corpus files before using them."""


@data.command()
def check(
    file: Annotated[Path, typer.Argument(help="A JSONL file or LaMP questions file, gzip too.")],
    outputs: Annotated[
        Path | None, typer.Option(help="LaMP outputs file; default: beside the questions.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task that the file is expected to be of.")] = "",
) -> None:
    """Read a corpus file to its end; say what it holds and what is wrong with it.

    Exit code 1 if anything is wrong.
    """
    from shared.corpus.load import check_file

    report = check_file(file, outputs, task or None)
    console = Console()
    table = Table(show_header=False, box=None)
    table.add_row("file", f"{report.path} ({report.source})")
    table.add_row("users", f"{report.users:,}")
    table.add_row("history items", f"{report.items:,}")
    if report.history_length:
        low, middle, high = report.history_length
        table.add_row("items a user", f"{low} to {high}, median {middle:g}")
    for name, count in report.queries.items():
        table.add_row("queries", f"{count:,} {name}")
    table.add_row("left out", f"{len(report.skipped):,} empty or unusable pieces")
    console.print(table)
    for skip in report.skipped[:5]:
        console.print(f"  {skip.where}: {skip.reason}", markup=False, highlight=False)
    if report.problems:
        count = len(report.problems)
        console.print(f"\n[bold red]{count:,} problem{'s' if count > 1 else ''}[/bold red]")
        for problem in report.problems[:20]:
            console.print(
                f"  {problem.where}: expected {problem.expected}; got {problem.got}",
                markup=False,
                highlight=False,
            )
        console.print("Mend the file, or leave bad input out: --set corpus.bad_input=skip")
        raise typer.Exit(FAILED)
    console.print(
        f"\nSound. Next: mesofed simulate --set corpus.source={report.source} "
        f"--set corpus.path={report.path}",
        soft_wrap=True,
        highlight=False,
    )


models = typer.Typer(help="List the base models and whether each is ready on this machine.")


@models.command()
def _models() -> None:
    """List the base models and whether each is ready on this machine."""
    from shared.available_models import available_models

    table = Table(box=None)
    for heading in ("name", "parameters", "formats", "ready", "note"):
        table.add_column(heading, overflow="fold")
    for model in available_models():
        table.add_row(
            model.name,
            f"{model.parameters:,}" if model.parameters else "",
            " ".join(model.formats),
            "yes" if model.ready else "no",
            model.note,
        )
    Console().print(table)
    typer.echo("\nUse one with: mesofed simulate --set base.name=NAME --set base.format=bf16")
