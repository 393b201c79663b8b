"""The page: well-formed, self-contained, complete, and with the table's own numbers."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from simulations.report.page import write_report
from simulations.report.progress import render_progress
from simulations.report.read import read_run
from simulations.report.summary import write_summary

Writer = Callable[..., Path]
SMALL: dict[str, Any] = {"tasks": ("tagging",), "devices": 3, "methods": ("population", "meso")}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks nesting while it collects ids, attributes, visible text and tables by id."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table: str | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "table" and values.get("id"):
            self._table = values["id"]
            self.tables[str(self._table)] = []
        if self._table and tag == "tr":
            self.tables[self._table].append([])
        if self._table and tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag]
        self.open.pop()
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self._table and self.open and {"td", "th"} & set(self.open):
            self.tables[self._table][-1][-1] += f" {data.strip()}" if data.strip() else ""


def _page(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_what_is_marked_is_said(fake_run: Writer) -> None:
    folder = fake_run()
    page = _page(folder)
    assert "clear: sign-flip test over users, Holm-corrected, p < 0.05" in page.text
    marks = [
        cell for row in page.tables["results-table"] for cell in row if cell[1:2] in ("▲", "▼")
    ]
    gains = [row["gain"] for row in json.loads(write_summary(folder).read_text())["table"]]
    gains = [gain for gain in gains if gain is not None]
    assert len(marks) == sum(gain["clear"] for gain in gains) > 0
    # Intervals alone would mark more.
    assert len(marks) < sum(gain["low"] > 0 or gain["high"] < 0 for gain in gains)


def test_nothing_comes_from_outside(fake_run: Writer) -> None:
    folder = fake_run()
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:")), (name, value)
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert "script" not in page.tags
    assert "http://" not in html
    assert "https://" not in html


def test_ids_are_unique_and_references_resolve(fake_run: Writer) -> None:
    folder = fake_run()
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    named = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    for name, value in page.attributes:
        if name == "aria-labelledby":
            named += value.split()
    assert named
    assert set(named) <= set(page.ids)


def test_charts_follow_the_page_and_can_be_listened_to(fake_run: Writer) -> None:
    html = write_report(fake_run()).read_text(encoding="utf-8")
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 3 + 3 * 4 + 4 + 4 + 2  # quality, gains, server, private, bytes, shares
    for chart in charts:
        assert 'role="img"' in chart
        assert "<title " in chart
        assert "<desc " in chart
        assert "<text" in chart  # letters, not outlines
        assert re.findall(r"#[0-9a-fA-F]{6}\b", chart) == []  # every colour is a variable
        assert set(re.findall(r"var\((--\w+)\)", chart)) <= set(re.findall(r"(--\w+):", html))
        assert "font-family" not in chart
        assert "DejaVu" not in chart


def test_table_holds_the_numbers_of_the_files(fake_run: Writer) -> None:
    folder = fake_run(tasks=("tagging",))
    table = _page(folder).tables["results-table"]
    by_method: dict[str, list[float]] = {}
    for path in (folder / "results").glob("*.json"):
        for method, result in json.loads(path.read_text())["methods"].items():
            answers = [q for q in result["queries"] if q["task"] == "tagging"]
            right = np.mean([q["prediction"] == q["gold"] for q in answers])
            by_method.setdefault(method, []).append(float(right))
    assert len(table) == 2 + len(by_method)
    for row in table[2:]:
        method = row[0].split()[0]
        assert row[2].split()[0] == f"{np.mean(by_method[method]):.3f}"
        gain = np.mean(by_method[method]) - np.mean(by_method["population"])
        if method != "population":
            shown = float(row[3].split()[1].replace("−", "-"))
            assert shown == pytest.approx(gain, abs=0.0051)
    best = max(np.mean(scores) for scores in by_method.values())
    starred = re.findall(r'class="best">([\d.]+)<', (folder / "report.html").read_text("utf-8"))
    assert set(starred) == {f"{best:.3f}"}


def test_heat_map_is_sorted_by_group_and_readable(fake_run: Writer) -> None:
    folder = fake_run(tasks=("tagging",))
    page = _page(folder)
    rows = page.tables["heat-map"][1:]
    assert [int(row[1]) for row in rows] == sorted(n % 4 for n in range(12))
    for row in rows:
        number = int(row[0].split("-")[1])
        sent = json.loads((folder / f"results/{number:04d}.json").read_text())["statistics"]
        assert [cell.strip() for cell in row[2:6]] == [f"{w:.2f}" for w in sent["expert-weights"]]
    assert "adjusted Rand index of 1.00" in page.text


def test_agreement_is_scikit_learns(fake_run: Writer) -> None:
    folder = fake_run(tasks=("tagging",))
    path = folder / "results/0000.json"
    data = json.loads(path.read_text())
    data["statistics"]["expert-weights"] = [0.0, 0.0, 0.0, 1.0]
    path.write_text(json.dumps(data))
    # Contingency of 3,3,3,3 with one device moved: sums over pairs, Hubert and Arabie (1985).
    joint, rows, columns, pairs = (1 + 3 + 3 + 3), 4 * 3, (1 + 3 + 3 + 6), 66
    expected = rows * columns / pairs
    index = (joint - expected) / ((rows + columns) / 2 - expected)
    assert f"adjusted Rand index of {index:.2f}" in _page(folder).text


def test_user_names_are_text_never_markup(fake_run: Writer) -> None:
    folder = fake_run(**SMALL, user=lambda n: f'<script>alert("{n}")</script>&$x^2$')
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert '<script>alert("2")</script>&$x^2$' in page.text


def test_foreign_text_everywhere_is_escaped(fake_run: Writer) -> None:
    folder = fake_run(tasks=("tagging",))
    for name in ("run.json", "corpus.json", "config.toml", "statistics/r1.json"):
        path = folder / name
        text = path.read_text()
        for word in ("synthetic", "no profile items", "malformed", "smollm2", "4f2a9c1d0b7e"):
            text = text.replace(word, f"<b>{word}</b>")
        path.write_text(text)
    page = _page(folder)
    assert "b" not in page.tags
    assert "<b>malformed</b>" in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ("tagging",)},
        {"tasks": ("news_headline",)},
        {"groups": None, "tasks": ("tagging",)},
        {"methods": ("base", "population")},
        {"methods": ("base", "meso")},
        {"methods": ("meso",)},
        {"training": False, "tasks": ("rating",)},
        {"statistics": False, "tasks": ("rating",)},
        {"devices": 1},
        {"devices": 2, "queries": 1},
        {"devices": 0, "training": False, "statistics": False},
    ],
    ids=str,
)
def test_runs_with_missing_pieces_still_make_a_page(
    fake_run: Writer, changes: dict[str, Any]
) -> None:
    page = _page(fake_run(**changes))
    assert "How this was run" in page.text
    for word in ("nan", "None", "inf"):
        assert not re.search(rf"\b{word}\b", page.text), word
    if changes.get("groups", 4) is None:
        assert "Rand" not in page.text
    if changes.get("statistics") is False:
        assert "No round of statistics has been recorded yet." in page.text


def test_losses_that_are_not_numbers_do_not_break_the_page(fake_run: Writer) -> None:
    folder = fake_run(**SMALL)
    path = folder / "training/r1/population.json"
    data = json.loads(path.read_text())
    data["curves"] = {"population": [[1, 2.0], [2, None], [3, float("nan")]], "empty": []}
    path.write_text(json.dumps(data))
    path = folder / "training/r1/bank.json"
    data = json.loads(path.read_text())
    data["curves"] = {"a": [[1, None]], "b": [[1, None], [2, None]]}
    path.write_text(json.dumps(data))
    assert "No finite losses." in _page(folder).text


def test_the_same_run_gives_the_same_bytes(fake_run: Writer) -> None:
    folder = fake_run(**SMALL)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_skips_and_record_are_told(fake_run: Writer) -> None:
    page = _page(fake_run(tasks=("tagging",)))
    assert "2 entries left out:" in page.text
    assert "2 × no profile items" in page.text
    for fact in ("mesofed simulate --set base.name=smollm2", "4f2a9c1d0b7e", "torch 2.13.0"):
        assert fact in page.text
    assert [row[-1].strip() for row in page.tables["bytes-table"][1:-1]] == ["132"] * 12


@pytest.mark.parametrize(("devices", "boxed"), [(16, False), (40, False), (41, True)])
def test_a_table_is_seen_whole_or_scrolls_in_a_box(
    fake_run: Writer, devices: int, boxed: bool
) -> None:
    html = write_report(fake_run(tasks=("rating",), devices=devices)).read_text(encoding="utf-8")
    for label in ("Expert weights of each device", "Every user on rating", "Bytes of each device"):
        (kind,) = re.findall(rf'<div class="([^"]*)"[^>]*aria-label="{label}"', html)
        assert (kind == "sheet tall") == boxed
    # Only a box may cut rows off.
    style = html[html.index("<style>") : html.index("</style>")]
    assert [line for line in style.splitlines() if re.search(r"max-height: \d", line)] == [
        ".tall { max-height: 34rem; overflow: auto; }"
    ]


def test_commands_in_the_next_step_are_code(fake_run: Writer) -> None:
    html = write_report(fake_run(tasks=("rating",), devices=8)).read_text(encoding="utf-8")
    footer = html[html.index("<footer>") :]
    assert "`" not in footer
    words = '<span class="whole">--set</span> <span class="whole">seed=N</span>'
    assert f"<code>{words}</code>" in footer


# Runs without scores


def test_a_run_under_way_says_what_there_is_and_how_to_go_on(fake_run: Writer) -> None:
    folder = fake_run(devices=0)
    path = folder / "statistics/r1.json"
    path.unlink()
    page = _page(folder)
    assert "The server has trained population LoRA, group experts and meta-LoRA bank" in page.text
    assert f"simulate --resume {folder}" in page.text
    assert "results-table" not in page.tables


def test_devices_that_wait_for_their_scores_are_not_a_finished_run(fake_run: Writer) -> None:
    folder = fake_run(tasks=("rating",), devices=12)
    assert "--resume" not in _page(folder).text
    (folder / "results/0011.json").unlink()
    assert f"simulate --resume {folder}" in _page(folder).text


def test_a_deployment_shows_what_its_devices_sent_and_no_scores(fake_run: Writer) -> None:
    folder = fake_run(devices=0)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "kind": "deployment"}))
    statistics = {
        "expert_weights": [0.9, 0.1],
        "anchor_weights": [1.0],
        "best_similarity": 0.5,
        "entropy": 0.47,
    }
    round_ = json.loads((folder / "statistics/r1.json").read_text())
    nodes = [
        {"node": 7, "bytes_down": 10, "bytes_up": 20, "statistics": statistics},
        {
            "node": 8,
            "bytes_down": 10,
            "bytes_up": 20,
            "statistics": {**statistics, "expert_weights": [0.3, 0.7]},
        },
    ]
    round_ |= {"asked": 2, "answered": 2, "refused": [], "devices": nodes}
    round_["mean"] = {"expert_weights": [0.6, 0.4]}  # (0.9 + 0.3) / 2 and the rest
    (folder / "statistics/r1.json").write_text(json.dumps(round_))
    page = _page(folder)
    assert "Release 1 went to 2 devices, of which 2 sent router statistics." in page.text
    assert "Quality is measured on devices only in a simulation" in page.text
    assert "2 of 2 devices answered. Privacy: no noise was added" in page.text
    rows = [[cell.strip() for cell in row[:3]] for row in page.tables["heat-map"]]
    assert rows == [["node", "E1", "E2"], ["7", "0.90", "0.10"], ["8", "0.30", "0.70"]]
    assert "evaluated" not in page.text
    printed = io.StringIO()
    Console(file=printed, width=100).print(render_progress(read_run(folder)))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "E1 0.60  E2 0.40" in printed.getvalue()
    assert "no noise was added" in printed.getvalue()
    assert "evaluated" not in printed.getvalue()


def test_the_terminal_says_what_a_sum_of_devices_cost_in_privacy(fake_run: Writer) -> None:
    folder = fake_run(devices=0)
    round_ = json.loads((folder / "statistics/r1.json").read_text())
    round_ |= {"devices": [], "mean": {"expert_weights": [0.25, 0.75]}}
    round_["privacy"] = {
        "mode": "central",
        "delta": 1e-5,
        "epsilon_of_round": 2.0,
        "epsilon_in_total": 2.0,
        "epsilon_of_budget": 8.0,
    }
    (folder / "statistics/r1.json").write_text(json.dumps(round_))
    printed = io.StringIO()
    Console(file=printed, width=100).print(render_progress(read_run(folder)))
    told = " ".join(printed.getvalue().split())
    assert "E1 0.25 E2 0.75" in told
    assert "of round 1, mode central: epsilon 2 at delta 1e-05" in told
    assert "over all rounds: epsilon 2 of 8" in told
