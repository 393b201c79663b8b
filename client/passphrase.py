"""How the command line gets a passphrase: from a file, from the environment, or by asking."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from shared.console import notices, say
from shared.errors import MesofedError
from shared.interrupt import INTERRUPTED, stopping_in_order
from shared.program import command

PASSPHRASE_VARIABLE = "MESOFED_PASSPHRASE"


def passphrase_from(
    file: Path | None, *, new: bool = False, variable: str = PASSPHRASE_VARIABLE
) -> Callable[[], str]:
    """Return how the passphrase is found: in a file, in the environment, or by asking."""

    def find() -> str:
        if file is not None:
            try:
                return file.read_text(encoding="utf-8").rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise MesofedError(f"Cannot read the passphrase file {file}: {error}.") from error
        if variable and os.environ.get(variable):
            return os.environ[variable]
        if not sys.stdin.isatty():
            raise MesofedError(
                "Expected a passphrase, and there is no terminal to ask for it. Name a file that "
                f"holds it{f', or set ${variable}' if variable else ''}; --help says how."
            )
        # In order, for on the way out the terminal is told again to show what is typed.
        with stopping_in_order():
            try:
                asked: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=new)
            except typer.Abort:
                say(notices(), "\nStopped.")
                sys.exit(INTERRUPTED)
        return asked

    return find


def opened_by(passphrase_file: Path | None) -> tuple[str, ...]:
    """Return the arguments with which the next command opens the vault as this one did."""
    return () if passphrase_file is None else ("--passphrase-file", str(passphrase_file))


def warn_of_a_short_one(passphrase: str, vault: Path) -> None:
    """Warn of a passphrase that whoever copies the vault could find by trying."""
    from client.lock import AMPLE_PASSPHRASE  # cryptography is loaded by who needs it

    if len(passphrase) < AMPLE_PASSPHRASE:
        say(
            notices(),
            f"Warning: this passphrase has {len(passphrase)} characters, of the "
            f"{AMPLE_PASSPHRASE} or more that are wise. Whoever copies the vault can try all short "
            "ones; several words that nobody would put together are best. Change it: "
            f"`{command('device', 'passphrase', vault)}`",
        )
