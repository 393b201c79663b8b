"""The report of a comparison: one HTML file that opens offline."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.atomic_file import write_text
from shared.byte_size import byte_size
from shared.config import dump_config
from simulations.comparison import charts, words
from simulations.comparison.catalogue import CONTENDERS
from simulations.comparison.cell import Cell
from simulations.comparison.config import ComparisonConfig
from simulations.comparison.results import Block, Results, Row, is_ours
from simulations.comparison.scene_record import Placed, SceneRecord, read_records
from simulations.comparison.tables import leaves, slice_name
from simulations.comparison.user_map import map_chart
from simulations.report import wording
from simulations.report.charts import gain_chart, gain_limits
from simulations.report.curves import curve_chart
from simulations.report.run import Curve

_EXAMPLES = 6
_CLUSTERS = 4


@dataclass(frozen=True)
class GroupLine:
    """One group of users in the heat map."""

    group: int
    users: int
    weights: tuple[float, ...]


def about(method: str) -> str:
    """Return one line on a method."""
    return CONTENDERS[method].summary if method in CONTENDERS else ""


def _tables(results: Results) -> list[tuple[str, str, list[Row]]]:
    """Return rows by task and slice, both settings in one table."""
    keys = dict.fromkeys((block.task, block.slice) for block in results.blocks)
    return [
        (task, slice_, [r for r in results.rows if (r.block.task, r.block.slice) == (task, slice_)])
        for task, slice_ in keys
    ]


def _gaps(results: Results) -> list[Markup]:
    tasks = dict.fromkeys(task for _, task, slice_ in results.gaps if slice_ == "all")
    return [
        charts.gap_chart(
            {m: g for (m, t, s), g in results.gaps.items() if (t, s) == (task, "all")},
            task,
            f"gap-{place}",
        )
        for place, task in enumerate(tasks)
    ]


def _main_blocks(results: Results) -> list[Block]:
    return [b for b in results.blocks if (b.slice, b.setting) == ("all", "federated")]


def _gain_panels(results: Results, cells: Sequence[Cell]) -> list[tuple[str, list[Markup]]]:
    history = {p.user_id: p.history for c in cells if c.slice == "all" for p in c.people}
    found = []
    for place, block in enumerate(_main_blocks(results)):
        reference = results.row("population", block)
        if reference is None:
            continue
        sign = 1 if block.higher_is_better else -1
        gains = {
            row.method: {u: sign * (s - reference.scores[u]) for u, s in row.scores.items()}
            for row in sorted(results.of(block), key=lambda row: not row.ours)
            if row.method not in ("base", "population")
        }
        limits = gain_limits([gain for own in gains.values() for gain in own.values()])
        panels = [
            gain_chart(method, own, history, limits, f"gain-{place}-{number}")
            for number, (method, own) in enumerate(gains.items())
        ]
        found.append((block.task, panels))
    return found


def _groups_of(people: Sequence[Placed]) -> tuple[list[int], bool]:
    """Return each user's group: the corpus's own if it has any, else a cluster of places."""
    if all(person.group is not None for person in people):
        return [int(person.group or 0) for person in people], True
    from sklearn.cluster import KMeans

    count = min(_CLUSTERS, len(people))
    means = KMeans(count, n_init=10, random_state=0).fit(np.array([p.place for p in people]))
    return [int(label) for label in means.labels_], False


def _groups(records: Sequence[SceneRecord]) -> dict[str, Any] | None:
    """Return heat map and map of users of the first federated scene."""
    chosen = [r for r in records if (r.slice, r.setting) == ("all", "federated")]
    if not chosen or len(chosen[0].people) < 2:
        return None
    people = chosen[0].people
    groups, known = _groups_of(people)
    lines = []
    for group in sorted(set(groups)):
        own = [p.experts for p, g in zip(people, groups, strict=True) if g == group]
        lines.append(GroupLine(group, len(own), tuple(np.mean(own, axis=0).tolist())))
    kind = (
        "Groups are the corpus's own, which no training saw"
        if known
        else "The corpus names no groups: these are clusters of the users' places"
    )
    return {
        "lines": lines,
        "map": map_chart(people, groups, f"users, seed {chosen[0].seed}", "map"),
        "words": f"{kind}. Seed {chosen[0].seed}, federated: server users (hollow in the map) and "
        "device users (filled), each in the shape of its group, whose number stands at its centre.",
    }


def _training(folder: Path, config: ComparisonConfig, cells: Sequence[Cell]) -> list[Markup]:
    seed = config.seeds[0]
    drawn = []
    stages = {
        "population": ("population LoRA", "run"),
        "experts": ("group experts", "expert"),
        "bank": ("Meta-LoRA bank", "anchor"),
    }
    for name, (title, noun) in stages.items():
        path = folder / "artefacts" / f"all-federated-{seed}" / "training" / "r1" / f"{name}.json"
        if path.exists():
            log = json.loads(path.read_text(encoding="utf-8"))
            own: dict[str, Curve] = {
                who: tuple((int(s), float(v)) for s, v in curve)
                for who, curve in log["curves"].items()
            }
            drawn.append(curve_chart(own, title, noun, f"train-{name}"))
    order = {name: place for place, name in enumerate(config.methods)}
    for cell in sorted(cells, key=lambda cell: order.get(cell.method, len(order))):
        own = {person.user_id: person.curve for person in cell.people if person.curve}
        if own and (cell.slice, cell.setting, cell.seed) == ("all", "federated", seed):
            drawn.append(curve_chart(own, cell.method, "user", f"private-{cell.method}"))
    return drawn


def _examples(
    config: ComparisonConfig, cells: Sequence[Cell], records: Sequence[SceneRecord]
) -> dict[str, Any] | None:
    where = ("all", "federated", config.seeds[0])
    texts = next((r.questions for r in records if (r.slice, r.setting, r.seed) == where), {})
    found: dict[str, dict[str, str]] = {}
    golds: dict[str, str] = {}
    for cell in cells:
        if (cell.slice, cell.setting, cell.seed) == where:
            for person in cell.people:
                for answer in person.answers:
                    key = f"{person.user_id}/{answer.query_id}"
                    if key in texts:
                        found.setdefault(cell.method, {})[key] = answer.prediction
                        golds[key] = answer.gold
    methods = sorted(
        (name for name in config.methods if name in found),
        key=lambda name: (name != "population", not is_ours(name)),
    )
    lines = [
        {
            "question": texts[key][:240] + ("…" if len(texts[key]) > 240 else ""),
            "gold": golds[key],
            "said": [found[name].get(key, "–") for name in methods],
        }
        for key in list(golds)[:_EXAMPLES]
    ]
    return {"methods": methods, "lines": lines} if lines else None


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = {
        "command": shlex.join(map(str, record["command"])),
        "base fingerprint": record["base"]["fingerprint"],
        "git commit": record["git_commit"] or "none",
        "Python": record["python"],
        "machine": record["platform"],
        "cores": record["cores"],
        "packages": ", ".join(f"{name} {version}" for name, version in record["packages"].items()),
    }
    return [(name, str(value)) for name, value in facts.items()]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent),
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
        slice_name=slice_name,
        leaves=leaves,
        about=about,
    )
    return environment


def render_page(
    folder: Path, config: ComparisonConfig, cells: Sequence[Cell], results: Results
) -> str:
    """Return the report as HTML that needs nothing from outside."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    records = read_records(folder)
    slices = dict.fromkeys((block.task, block.slice) for block in results.blocks)
    return (
        _environment()
        .get_template("comparison/page.html.j2")
        .render(
            folder=folder.name,
            config=config,
            record=record,
            results=results,
            contenders=CONTENDERS,
            headline=words.headline(results),
            found=words.summary(results),
            clear=wording.CLEAR,
            origin=record["corpus"],
            tables=_tables(results),
            quality=[
                charts.quality_chart(results, task, slice_, f"quality-{place}")
                for place, (task, slice_) in enumerate(slices)
            ],
            gaps=_gaps(results),
            sizes=[
                (charts.bytes_chart(results.of(block), block, f"size-{place}"), results.of(block))
                for place, block in enumerate(_main_blocks(results))
            ],
            gains=_gain_panels(results, cells),
            groups=_groups(records),
            training=_training(folder, config, cells),
            examples=_examples(config, cells, records),
            facts=_facts(record),
            settings=dump_config(config),
            script=Markup((Path(__file__).parent / "page.js").read_text(encoding="utf-8")),
        )
    )


def write_report(
    folder: Path, config: ComparisonConfig, cells: Sequence[Cell], results: Results
) -> Path:
    """Write a comparison's ``report.html`` and return its path."""
    path = folder / "report.html"
    write_text(path, render_page(folder, config, cells, results))
    return path
