"""What the pages name is there: a claim whose test was renamed or removed must not stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = re.findall(r"`((?:tests|shared|server|client|simulations|docs)/[\w./-]+)`", text)
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if "//" not in link]
    missing = [name for name in places if not _there(name)]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_every_line_of_the_privacy_page_stopped_or_not_names_its_test() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    tables = re.findall(r"\| what (?:it|they) (?:would like|can do) \|.*?\n\n", text, re.S)
    rows = [line for table in tables for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(rows) > 35
    assert [row for row in rows if "`tests/" not in row] == []


def _there(name: str) -> bool:
    # Modules are named without their ending.
    return any((ROOT / f"{name}{ending}").exists() for ending in ("", ".py"))
