"""What to type next: hints of further commands are made here, so that they can be pasted.

A command for this machine is named as its user can call it; one for another machine, about which
nobody here knows, by the bare name, as in help texts and documents.
"""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "mesofed"


def program() -> str:
    """Return the command as the user can call it again from the same folder.

    The bare name if the shell finds it, else as it was called (``.venv/bin/mesofed``). A Flower
    app runs under another command's name; there it is the one beside the interpreter.
    """
    called = Path(sys.argv[0])
    if called.name != NAME:
        called = Path(sys.executable).with_name(NAME)
    found = shutil.which(NAME)
    # A script that was found on the PATH is started under its absolute path.
    if called.is_absolute() and found is not None and Path(found).absolute() == called:
        return NAME
    return str(called) if called.is_file() else NAME


def command(*arguments: object) -> str:
    """Return a line for the shell that calls Mesofed with these arguments."""
    return shlex.join([program(), *map(str, arguments)])


def command_elsewhere(*arguments: object) -> str:
    """Return a line for the shell of another machine, on whose PATH Mesofed is."""
    return shlex.join([NAME, *map(str, arguments)])
