"""The report: one HTML file that opens offline and says what a run found."""

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from shared.atomic_file import write_text
from shared.byte_size import byte_size
from simulations.report import charts, curves, wording
from simulations.report.read import read_run
from simulations.report.router import router_usage
from simulations.report.run import Curve, Run
from simulations.report.share_error import share_errors
from simulations.report.summary import SHARED_ONLY, Row, Summary, about, summarise_run

_PRIVATE_CURVE = "device"
WHOLE = 30
"""Words of code up to this length are not broken at their hyphens."""
ROWS_SHOWN = 40
"""A table of more rows gets a box of its own to scroll in; up to so many, all are seen."""


@dataclass(frozen=True)
class GainPanel:
    """One method's chart of gain per user, and its counts in words."""

    chart: Markup
    better: int
    same: int
    worse: int


@dataclass(frozen=True)
class UserLine:
    """One user of the table of all users: a primary score per method, None where not asked."""

    user_id: str
    group: int | None
    history: int
    scores: tuple[float | None, ...]


def _charts_of_quality(summary: Summary) -> list[Markup]:
    return [
        charts.quality_chart(
            [row for row in summary.rows if row.task == task], summary.featured, f"quality-{place}"
        )
        for place, task in enumerate(summary.tasks)
    ]


def _user_gains(summary: Summary, row: Row) -> dict[str, float]:
    """Return each user's gain of one row over ``population``; positive is better."""
    own = summary.by_user[row.method, row.task]
    reference = summary.by_user.get(("population", row.task), {})
    sign = 1 if row.higher_is_better else -1
    return {user: sign * (own[user] - reference[user]) for user in own if user in reference}


def _gain_panels(run: Run, summary: Summary) -> dict[str, list[GainPanel]]:
    """Return the charts of gain per user, by task, featured method first.

    Empty without ``population``.
    """
    history = {device.user_id: device.history for device in run.devices}
    panels: dict[str, list[GainPanel]] = {}
    for place, task in enumerate(summary.tasks):
        rows = [row for row in summary.rows if row.task == task and row.gain is not None]
        gains = {
            row.method: _user_gains(summary, row)
            for row in sorted(rows, key=lambda row: row.method != summary.featured)
            if row.method not in SHARED_ONLY
        }
        limits = charts.gain_limits([gain for own in gains.values() for gain in own.values()])
        for number, (method, own) in enumerate(gains.items()):
            chart = charts.gain_chart(method, own, history, limits, f"gain-{place}-{number}")
            better = sum(gain > 0 for gain in own.values())
            worse = sum(gain < 0 for gain in own.values())
            panel = GainPanel(chart, better, len(own) - better - worse, worse)
            panels.setdefault(task, []).append(panel)
    return panels


def _user_tables(run: Run, summary: Summary) -> dict[str, list[UserLine]]:
    """Return one line per user and task: the primary metric of every method."""
    return {
        task: [
            UserLine(
                device.user_id,
                device.group,
                device.history,
                tuple(
                    summary.by_user.get((method, task), {}).get(device.user_id)
                    for method in summary.methods
                ),
            )
            for device in run.devices
            if any(
                device.user_id in summary.by_user.get((method, task), {})
                for method in summary.methods
            )
        ]
        for task in summary.tasks
    }


def _curve_nouns(stage: str) -> str:
    return {"bank": "anchor", "experts": "expert"}.get(stage, "run")


def _training(run: Run) -> list[Markup]:
    """Return the charts of the server's stages of the newest release."""
    newest = max((stage.release for stage in run.training), default=0)
    drawn: list[Markup] = []
    for stage in run.training:
        if stage.release != newest:
            continue
        if any(stage.curves.values()):
            title = wording.STAGE_NAMES[stage.stage]
            noun = _curve_nouns(stage.stage)
            drawn.append(curves.curve_chart(stage.curves, title, noun, f"train-{stage.stage}"))
        if stage.router:
            drawn.append(curves.gates_chart(stage.router, "train-router"))
    return drawn


def _private_training(run: Run, summary: Summary) -> list[Markup]:
    """Return one chart per method that trained on the devices."""
    drawn = []
    for place, method in enumerate(summary.methods):
        own: dict[str, Curve] = {
            device.user_id: device.methods[method].curve
            for device in run.devices
            if method in device.methods and device.methods[method].curve
        }
        if own:
            drawn.append(curves.curve_chart(own, method, _PRIVATE_CURVE, f"private-{place}"))
    return drawn


def _stages(run: Run, summary: Summary) -> list[tuple[str, float, int]]:
    """Return ``(stage, seconds, tokens)`` for the server's stages and each method's devices."""
    lines = [
        (f"{stage.stage}, release {stage.release}", stage.seconds, stage.tokens)
        for stage in run.training
    ]
    for method in summary.methods:
        results = [device.methods[method] for device in run.devices if method in device.methods]
        seconds, tokens = sum(r.seconds for r in results), sum(r.tokens for r in results)
        if tokens or seconds:
            lines.append(
                (f"{method} on {wording.count_of(len(results), 'device')}", seconds, tokens)
            )
    return lines


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the run was made, as name and value."""
    base = record.get("base") or {}
    command = record.get("command") or []
    facts = {
        "command": shlex.join(map(str, command)) if isinstance(command, list) else str(command),
        "started": record.get("started"),
        "seed": record.get("seed"),
        "base model": " ".join(str(base[name]) for name in ("name", "format") if name in base),
        "base fingerprint": base.get("fingerprint"),
        "Mesofed": record.get("mesofed"),
        "git commit": record.get("git_commit") or "none",
        "Python": record.get("python"),
        "machine": record.get("platform"),
        "cores": record.get("cores"),
    }
    paths = record.get("paths")
    for name, path in paths.items() if isinstance(paths, dict) else ():
        facts[f"path: {name}"] = path
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _box(rows: int) -> str:
    """Return the class of a table that would be too long for the page."""
    return " tall" if rows > ROWS_SHOWN else ""


def _code(text: str) -> Markup:
    """Return a text in which what stands in backticks is code, its short words kept whole."""

    def code(part: str) -> Markup:
        whole = Markup('<span class="whole">{}</span>')
        words = (whole.format(w) if len(w) <= WHOLE else escape(w) for w in part.split(" "))
        return Markup("<code>{}</code>").format(Markup(" ").join(words))

    parts = enumerate(text.split("`"))
    return Markup("").join(code(part) if place % 2 else escape(part) for place, part in parts)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        decimal=wording.decimal,
        signed=wording.signed,
        interval=wording.interval,
        metric=wording.metric_name,
        task=wording.task_name,
        arrow=wording.arrow,
        bytes=byte_size,
        duration=wording.duration,
        about=about,
        box=_box,
        code=_code,
    )
    environment.globals["count_of"] = wording.count_of
    return environment


def render_page(run: Run, summary: Summary) -> str:
    """Return the report as HTML that needs nothing from outside."""
    traffic = [device for round_ in run.rounds for device in round_.traffic]
    errors = share_errors(run)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            record=run.record,
            summary=summary,
            headline=wording.headline(summary) if summary.rows else wording.unmeasured(run),
            clear=wording.CLEAR,
            quality=_charts_of_quality(summary),
            gains=_gain_panels(run, summary),
            users=_user_tables(run, summary),
            grouped=any(device.group is not None for device in run.devices),
            router=router_usage(run),
            share_chart=charts.share_error_chart(errors, "share-error") if errors else None,
            share_words=wording.share_error_sentence(errors) if errors else "",
            training=_training(run),
            private=_private_training(run, summary),
            traffic=traffic,
            traffic_chart=charts.traffic_chart(traffic, "traffic") if traffic else None,
            traffic_words=wording.traffic_sentence(run),
            answered=wording.answered_sentence(run),
            skipped=Counter(skip.reason for skip in run.corpus.skipped).most_common(),
            stages=_stages(run, summary),
            facts=_facts(run.record),
            next_step=wording.next_step(run, summary),
        )
    )


def write_report(run_dir: Path) -> Path:
    """Read a run directory and write its ``report.html``; return the report's path.

    Raises
    ------
    MesofedError
        If the directory is not that of a run, or a file in it is broken or cannot be written.
    """
    run = read_run(run_dir)
    path = run_dir / "report.html"
    write_text(path, render_page(run, summarise_run(run)))
    return path
