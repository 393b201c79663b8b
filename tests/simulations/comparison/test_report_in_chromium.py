"""The report in a real headless Chromium: it renders, nothing is logged, tables sort.

The page is copied with a probe at its end, which clicks headings and writes what it saw into the
page; ``--dump-dom`` then gives it back.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
)
# Errors and refused requests are collected from the very beginning of the page.
LISTENER = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(String(e.message || e.target.src)), true);
addEventListener("unhandledrejection", (e) => problems.push(String(e.reason)));
addEventListener("securitypolicyviolation", (e) => problems.push("csp " + e.blockedURI));
console.error = (...all) => problems.push(all.join(" "));
</script>"""
PROBE = """<script>
const seen = { problems: window.problems, tables: {}, charts: 0, wide: 0 };
seen.charts = [...document.querySelectorAll("svg.chart")]
  .filter((svg) => svg.getBoundingClientRect().height > 20 && svg.querySelector("path")).length;
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
for (const table of document.querySelectorAll("table.sortable")) {
  const values = (column) => [...table.tBodies[0].rows].map((r) => r.cells[column].dataset.value);
  const names = () => [...table.tBodies[0].rows].map((r) => r.cells[0].textContent);
  const buttons = table.querySelectorAll("thead button");
  const before = names();
  buttons[2].click();
  const up = values(2), upState = buttons[2].closest("th").getAttribute("aria-sort");
  buttons[2].click();
  const down = values(2), downState = buttons[2].closest("th").getAttribute("aria-sort");
  buttons[3].click();
  const gains = values(3);
  buttons[0].click();
  seen.tables[table.id] = { before, up, upState, down, downState, gains, byName: names() };
}
const out = document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


def look(page: Path, folder: Path, width: int) -> tuple[dict[str, Any], str]:
    text = page.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    text = text.replace("<head>", f"<head>{LISTENER}", 1)
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    profile = folder / "profile"
    done = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},900",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    said = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(said), done.stderr


@pytest.fixture(scope="module")
def seen(comparison: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return look(comparison.folder / "report.html", tmp_path_factory.mktemp("laptop"), 1280)


def test_it_renders_without_a_complaint(comparison: Any, seen: tuple[dict[str, Any], str]) -> None:
    data, logged = seen
    assert data["problems"] == []
    assert "CONSOLE" not in logged
    page = (comparison.folder / "report.html").read_text(encoding="utf-8")
    assert data["charts"] == page.count('class="chart"')
    assert data["charts"] >= 10
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_every_table_sorts_both_ways_and_by_name(seen: tuple[dict[str, Any], str]) -> None:
    tables = {name: t for name, t in seen[0]["tables"].items() if name.startswith("results-")}
    assert tables
    for table in tables.values():
        values = sorted(float(v) for v in table["up"])
        assert [float(v) for v in table["up"]] == values
        assert [float(v) for v in table["down"]] == values[::-1]
        assert (table["upState"], table["downState"]) == ("ascending", "descending")
        assert table["byName"] == sorted(table["before"])
        assert table["byName"] != table["before"]
        known = [float(v) for v in table["gains"] if v != ""]
        assert known == sorted(known)
        assert "" not in table["gains"][: len(known)]  # what has no value comes last


def test_a_phone_scrolls_no_further_than_its_width(comparison: Any, tmp_path: Path) -> None:
    # Headless Chromium has no window below 500 pixels; tables scroll within their own boxes.
    data, _ = look(comparison.folder / "report.html", tmp_path, 500)
    assert data["problems"] == []
    assert data["wide"] <= 0
