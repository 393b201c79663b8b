"""The console command `mesofed`: its root, and the commands that need nothing but ``shared``.

Sub-commands are entry points of the group ``mesofed.commands``, imported only when they are
called, so the root in ``shared`` reaches ``server``, ``client`` and ``simulations`` without
importing them.
"""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
import typer.core
import typer.main
from rich.table import Table
from rich.text import Text

from shared.console import output, print_error, say
from shared.errors import MesofedError
from shared.interrupt import stopping_at_once
from shared.program import command
from shared.suggestion import suggestion

if TYPE_CHECKING:
    from shared.corpus.load import CheckReport

GROUP = "mesofed.commands"
FAILED = 1
SHOWN_PROBLEMS, SHOWN_SKIPS = 20, 5


class Commands(typer.core.TyperGroup):
    """A group that says of a misspelt command what it may have meant, once."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed."""
        typed, known = args[0], self.list_commands(ctx)
        if typed not in known and not typed.startswith("-") and not ctx.resilient_parsing:
            # Before Click and Typer see it, each of which would add its own suggestion.
            raise click.UsageError(f"No such command {typed!r}{suggestion(typed, known)}.", ctx)
        return super().resolve_command(ctx, args)


class EntryPointCommands(Commands):
    """A group whose commands are the entry points of :data:`GROUP`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, sorted."""
        return sorted(entry_points(group=GROUP).names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        for entry in entry_points(group=GROUP, name=cmd_name):
            found: typer.Typer = entry.load()
            found.info.cls = Commands
            command = typer.main.get_command(found)
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
    epilog=f"Start with: [bold]{command('simulate')}[/bold] (a minute with --set base.name=tiny).",
)


@root.callback()
def _root() -> None:
    """Federated, on-device personalization of language models.

    A server trains what people share; each device personalises on its own
    history and sends back router statistics, nothing else.

    Exit codes: 0 done, 1 something to mend (the text says what), 2 wrong
    usage, 130 stopped by Ctrl-C or SIGTERM (a run can be resumed).
    """


def main() -> None:
    """Run `mesofed`; problems that the user can mend end in their text, not in a traceback."""
    with stopping_at_once():
        try:
            root()
        except MesofedError as error:
            print_error(str(error))
            sys.exit(FAILED)


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

    Exit code 1 if anything is wrong, or there are too few people for a simulation.
    """
    for path in (file, outputs):
        _require_readable(path)
    from shared.corpus.load import check_file
    from shared.corpus.problems import advice
    from shared.corpus.split import MIN_SERVER_USERS, MIN_USERS

    report = check_file(file, outputs, task or None)
    console = output()
    console.print(_contents(report))
    for skip in report.skipped[:SHOWN_SKIPS]:
        say(console, f"  {skip.where}: {skip.reason}")
    if (more := len(report.skipped) - SHOWN_SKIPS) > 0:
        console.print(f"  and {more:,} more")
    if report.problems:
        count = len(report.problems)
        console.print(f"\n[bold red]{count:,} problem{'s' if count > 1 else ''}[/bold red]")
        for problem in report.problems[:SHOWN_PROBLEMS]:
            say(console, f"  {problem}")
        if (more := count - SHOWN_PROBLEMS) > 0:
            console.print(f"  and {more:,} more")
        say(console, advice(mendable=report.users > 0))
        raise typer.Exit(FAILED)
    if report.users < MIN_USERS:
        console.print(
            f"\nSound, but too few people for a simulation: it needs at least {MIN_USERS} users "
            f"({MIN_SERVER_USERS} of the server and a device); these are {report.users}.\n"
            f"Next: add people, one a line, and check again."
        )
        raise typer.Exit(FAILED)
    settings = [f"corpus.source={report.source}", f"corpus.path={report.path}"]
    settings += [f"corpus.outputs={outputs}"] if outputs else []
    from shared.config import BankConfig

    fewest = max(1, report.history_length[0] if report.history_length else 1)
    if fewest < BankConfig().min_history:  # else nobody of the server might become an anchor
        settings.append(f"bank.min_history={fewest}")
    line = command("simulate", *(part for setting in settings for part in ("--set", setting)))
    say(console, f"\nSound. Next: `{line}`")


def _require_readable(path: Path | None) -> None:
    try:
        if path is not None:
            path.open("rb").close()
    except OSError as error:
        raise MesofedError(f"Cannot read {path}: {error.strerror}.") from error


def _contents(report: "CheckReport") -> Table:
    table = Table(show_header=False, box=None)
    table.add_row("file", Text(f"{report.path} ({report.source})"))
    table.add_row("users", f"{report.users:,}")
    table.add_row("history items", f"{report.items:,}")
    if report.history_length:
        low, middle, high = report.history_length
        table.add_row("items a user", f"{low} to {high}, median {middle:g}")
    for name, count in report.queries.items():
        table.add_row("queries", f"{count:,} {name}")
    table.add_row("left out", f"{len(report.skipped):,} empty or unusable pieces")
    if report.problems:
        table.add_row("not read", "what the problems below are about")
    return table


models = typer.Typer(help="List the base models and whether each is ready on this machine.")


@models.command()
def _models() -> None:
    """List the base models and whether each is ready on this machine."""
    from shared.available_models import available_models

    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("name")
    table.add_column("parameters", justify="right")
    table.add_column("formats")
    table.add_column("ready")
    console = output()
    found = available_models()
    for model in found:
        parameters = f"{model.parameters:,}" if model.parameters else ""
        table.add_row(model.name, parameters, " ".join(model.formats), model.ready)
    console.print(table)
    console.print()
    # Beside four other columns, a note would be a strip of a few words a line.
    for model in found:
        say(console, f"{model.name}: {model.note}")
    line = f"{command('simulate')} --set base.name=NAME --set base.format=int8"
    say(console, f"\nUse one with: `{line}`")
