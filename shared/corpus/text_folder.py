"""A person's own notes: a folder of text files becomes a private history."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from shared.corpus.problems import Skip
from shared.corpus.user import ProfileItem
from shared.errors import MesofedError

MARKDOWN = ".md"
SUFFIXES = (".txt", MARKDOWN)
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class FolderHistory:
    """The history in a folder.

    Attributes
    ----------
    items : tuple of ProfileItem
        One a paragraph, task ``writing``; oldest file first.
    skipped : tuple of Skip
        Files that gave nothing, and why.
    """

    items: tuple[ProfileItem, ...]
    skipped: tuple[Skip, ...]


def history_from_folder(folder: Path) -> FolderHistory:
    """Read the ``.txt`` and ``.md`` files in a folder and below, without hidden ones.

    Files come oldest first by time of change, then by name. A paragraph ends at an empty line;
    one without any letter or digit, such as a ruled line, is no paragraph. In ``.md`` files a
    heading ends the paragraph above it and is left out: it names a text and is none.

    Raises
    ------
    MesofedError
        If the folder is missing, or holds no text.
    """
    if not folder.is_dir():
        raise MesofedError(f"Expected a folder of .txt or .md files; got {folder}.")
    found: list[tuple[int, str, Path]] = []
    skipped: list[Skip] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in SUFFIXES or path.is_dir():
            continue
        try:
            found.append((path.stat().st_mtime_ns, name, path))
        except OSError as error:
            skipped.append(Skip(str(path), f"cannot be read: {error.strerror}"))
    items: list[ProfileItem] = []
    for _, name, path in sorted(found):
        text = _read(path, skipped)
        if text is None:
            continue
        lines = text.splitlines()
        paragraphs = _paragraphs(_prose(lines) if path.suffix.lower() == MARKDOWN else lines)
        if not paragraphs:
            skipped.append(Skip(str(path), "has no paragraph"))
        items.extend(
            ProfileItem(f"{name}#{number}", "writing", "", paragraph)
            for number, paragraph in enumerate(paragraphs, start=1)
        )
    if not items:
        reasons = "".join(f"\n  {skip.where} {skip.reason}" for skip in skipped[:10])
        raise MesofedError(
            f"Expected text in the .txt and .md files of {folder}; got none. "
            f"Put at least one paragraph there.{reasons}"
        )
    return FolderHistory(tuple(items), tuple(skipped))


def _read(path: Path, skipped: list[Skip]) -> str | None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        skipped.append(Skip(str(path), f"cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        skipped.append(Skip(str(path), "is not UTF-8 text"))
    else:
        if "\0" not in text:
            return text
        skipped.append(Skip(str(path), "is not text: it has zero bytes"))
    return None


def _prose(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a Markdown text, an empty one for each heading.

    A heading is a line that begins with one to six ``#`` and a space, or a line that stands by
    itself over a line of ``=`` or ``-`` (CommonMark 0.31, sections 4.2 and 4.3). In fenced code
    ``#`` begins a comment.
    """
    fence, above, underlined = "", "", False
    for line, below in zip_longest(lines, lines[1:], fillvalue=""):
        if (found := _FENCE.match(line)) and found[1].startswith(fence):
            fence = "" if fence else found[1]
        heading = underlined or (not fence and _HEADING.match(line))
        underlined = not (heading or fence or above.strip()) and bool(
            line.strip() and _UNDERLINE.fullmatch(below)
        )
        above = "" if heading or underlined else line
        yield above


def _paragraphs(lines: Iterable[str]) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    joined = (" ".join(" ".join(lines).split()) for lines in paragraphs)
    return [text for text in joined if any(letter.isalnum() for letter in text)]
