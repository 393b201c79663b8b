"""A folder of notes becomes a history; files that give nothing are counted."""

import os
from pathlib import Path

import pytest

from shared.corpus.problems import Skip
from shared.corpus.text_folder import history_from_folder
from shared.corpus.user import ProfileItem
from shared.errors import MesofedError


def note(path: Path, data: str | bytes, age: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


def test_paragraphs_come_oldest_file_first_then_by_name(tmp_path: Path) -> None:
    note(tmp_path / "new.md", "\ufeff# Title\r\n\r\nOne\r\nline.\r\n\r\n---\r\n\r\n\r\nTwo.", 1)
    note(tmp_path / "b.txt", "Bee.", 5)
    note(tmp_path / "a.txt", "Ant.", 5)
    note(tmp_path / "sub" / "old.TXT", "Früher.", 9)
    note(tmp_path / "code.py", "print()", 9)
    note(tmp_path / ".hidden" / "x.txt", "Secret.", 9)
    history = history_from_folder(tmp_path)
    assert history.skipped == ()
    assert history.items == tuple(
        ProfileItem(key, "writing", "", text)
        for key, text in [
            ("sub/old.TXT#1", "Früher."),
            ("a.txt#1", "Ant."),
            ("b.txt#1", "Bee."),
            ("new.md#1", "One line."),
            ("new.md#2", "Two."),
        ]
    )


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("# Title\nOne\nline.\n## Part\nTwo.\n### Empty part\n", ["One line.", "Two."]),
        ("Title\n=====\nOne.\n\nPart\n----\n\nTwo.", ["One.", "Two."]),
        # Not over one line alone: else a person's paragraph would be lost.
        ("One\nline.\n---\nTwo.", ["One line. --- Two."]),
        ("#hashtag\n\n    # deep\n\n####### seven", ["#hashtag", "# deep", "####### seven"]),
        ("Run:\n```\n# code\nls\n```\n# Title\nDone.", ["Run: ``` # code ls ```", "Done."]),
        ("~~~~\n```\n# code\n~~~\n# code\n~~~~\n# T", ["~~~~ ``` # code ~~~ # code ~~~~"]),
    ],
    ids=["before text", "underlined", "two lines", "no headings", "fenced", "nested fences"],
)  # fmt: skip
def test_headings_of_markdown_are_no_paragraphs(
    text: str, paragraphs: list[str], tmp_path: Path
) -> None:
    note(tmp_path / "a.md", text, 0)
    assert [item.target for item in history_from_folder(tmp_path).items] == paragraphs


def test_a_plain_text_has_no_markdown_headings(tmp_path: Path) -> None:
    note(tmp_path / "a.txt", "# Mine\n\nOver\n----\n", 0)
    items = history_from_folder(tmp_path).items
    assert [item.target for item in items] == ["# Mine", "Over ----"]


def test_files_that_give_nothing_are_counted(tmp_path: Path) -> None:
    note(tmp_path / "good.txt", "Good.", 0)
    note(tmp_path / "empty.txt", " \n", 1)
    note(tmp_path / "titles.md", "# Only\n\n## Titles", 1)
    note(tmp_path / "latin.txt", b"caf\xe9", 2)
    note(tmp_path / "zero.txt", b"a\0b", 3)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    history = history_from_folder(tmp_path)
    assert [item.target for item in history.items] == ["Good."]
    assert set(history.skipped) == {
        Skip(str(tmp_path / "empty.txt"), "has no paragraph"),
        Skip(str(tmp_path / "titles.md"), "has no paragraph"),
        Skip(str(tmp_path / "latin.txt"), "is not UTF-8 text"),
        Skip(str(tmp_path / "zero.txt"), "is not text: it has zero bytes"),
        Skip(str(tmp_path / "gone.txt"), "cannot be read: No such file or directory"),
    }


def test_no_folder_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match="Expected a folder"):
        history_from_folder(tmp_path / "nowhere")
    note(tmp_path / "empty.md", "", 0)
    with pytest.raises(MesofedError, match=r"(?s)got none.*empty\.md has no paragraph"):
        history_from_folder(tmp_path)
