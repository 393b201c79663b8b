"""What the README shows can be pasted."""

import re
from pathlib import Path

from shared.corpus.load import check_file

README = Path(__file__).parent.parent / "README.md"


def test_the_record_of_the_readme_is_a_sound_corpus_file(tmp_path: Path) -> None:
    blocks = re.findall(r"(?:^    .*\n)+", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (block,) = (block for block in blocks if '"user_id"' in block)
    lines = [line.removeprefix("    ") for line in block.splitlines()]
    (tmp_path / "people.jsonl").write_text("\n".join(lines), encoding="utf-8")
    report = check_file(tmp_path / "people.jsonl")
    assert (report.problems, report.skipped) == ((), ())
    assert (report.users, report.queries) == (len(lines), {"news_headline": len(lines)})


def test_commands_are_called_by_their_name_once_the_path_is_set() -> None:
    text = README.read_text(encoding="utf-8")
    assert 0 < text.index("    export PATH=") < text.index("\n    mesofed ")
    assert ".venv/bin/mesofed" not in text
