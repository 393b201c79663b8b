"""Where commands write: at most 100 columns; into a file or pipe just so many, errors unwrapped."""

from rich.console import Console

WIDTH = 100


def output() -> Console:
    """Return the console of a command's results."""
    console = Console(highlight=False)
    width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    return Console(width=width, highlight=False)


def print_error(text: str) -> None:
    """Print an error; off a terminal its lines stay whole, for ``grep`` and for logs."""
    console = Console(stderr=True, highlight=False)
    # Text with brackets is not markup.
    escaped = text.replace("[", r"\[")
    console.print(f"[bold red]Error:[/bold red] {escaped}", soft_wrap=not console.is_terminal)
