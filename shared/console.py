"""Where commands write: at most 100 columns, fewer on a narrower terminal, as many into a pipe.

Prose is broken between words. A path or another long word stays whole, and so does a command, which
stands between backticks: where it does not fit it gets a line of its own, to be copied as it is,
and one that is wider than that is broken as a shell allows.
"""

import re

from rich.console import Console
from rich.text import Text

WIDTH = 100
INDENT = "  "
_WORD = re.compile(r"(?:`[^`\n]*`|[^\s`]|`)+")
_COMMAND = re.compile(r"`([^`]*\s[^`]*)`[.,;:]?")
_LAST = re.compile(r"(: )`([^`]*)`$")
_SHELL_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+""")


def output() -> Console:
    """Return the console of a command's results."""
    return Console(width=_width(Console()), highlight=False)


def notices() -> Console:
    """Return the console of what is said beside a command's results."""
    return Console(stderr=True, highlight=False)


def say(console: Console, text: str) -> None:
    """Print sentences, their commands between backticks, so that these can be copied."""
    console.print(Text(wrapped(text, _width(console))), soft_wrap=True)


def print_error(text: str) -> None:
    """Print an error, as :func:`say` does."""
    console = notices()
    said = Text(wrapped(f"Error: {text}", _width(console)))
    said.stylize("bold red", 0, len("Error:"))
    console.print(said, soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """Return a text in lines that are at most so wide, if no word of it is wider.

    An indented line, such as one of a list, goes on below itself.
    """
    return "\n".join(part for line in text.split("\n") for part in _lines(line, width))


def shell_lines(line: str, width: int) -> list[str]:
    r"""Return a command in lines that a shell reads as one: each but the last ends in ``\``.

    An option stays beside its value.
    """
    parts: list[str] = []
    for word in _SHELL_WORD.findall(line):
        if parts and re.fullmatch(r"--?[\w-]+", parts[-1]) and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = [INDENT + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(f" {part} \\") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(2 * INDENT + part)
    return [*(f"{part} \\" for part in lines[:-1]), lines[-1]]


def _lines(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [_LAST.sub(r"\1\2", line)]
    indent = line[: len(line) - len(line.lstrip())]
    below = indent and indent + INDENT
    lines, current = [], indent
    for word in _WORD.findall(line):
        longer = f"{current} {word}" if current.strip() else current + word
        if len(longer) <= width:
            current = longer
            continue
        lines += [current] if current.strip() else []
        command = _COMMAND.fullmatch(word)
        lines += shell_lines(command[1], width) if command else []
        current = below if command else below + word
    return [*lines, current] if current.strip() else lines


def _width(console: Console) -> int:
    return min(WIDTH, console.width) if console.is_terminal else WIDTH
