"""What a run leaves for people to read: summary, metrics and report, from what is on disk."""

import json
from pathlib import Path
from typing import Any

from shared.atomic_file import write_text
from simulations.report.page import write_report
from simulations.report.summary import Summary, summarise, write_summary


def conclude(run_dir: Path) -> Summary:
    """Write summary, metrics and report from what the run has left on disk."""
    write_summary(run_dir)
    write_metrics(run_dir)
    write_report(run_dir)
    return summarise(run_dir)


def write_metrics(run_dir: Path) -> None:
    """Gather every measurement of the run in ``metrics.jsonl``, one a line."""
    lines: list[dict[str, Any]] = []
    for path in sorted((run_dir / "training").glob("r*/*.json")):
        log = _read(path)
        where = {"round": int(path.parent.name[1:]), "stage": log["stage"]}
        lines.append({**where, "name": "seconds", "value": log["seconds"]})
        for trainee, curve in log.get("curves", {}).items():
            lines += [
                {**where, "trainee": trainee, "step": step, "name": "loss", "value": loss}
                for step, loss in curve
            ]
        for step in log.get("router", []):
            lines += [
                {**where, "step": step["step"], "name": name, "value": step[name]}
                for name in ("balance", "gate_entropy", "mean_gates")
            ]
    for path in sorted((run_dir / "results").glob("*.json")):
        result = _read(path)
        for method, outcome in result["methods"].items():
            where = {"round": result["release"], "user": result["user_id"], "method": method}
            lines += [
                {**where, "stage": "private training", "step": step, "name": "loss", "value": loss}
                for step, loss in outcome["curve"]
            ]
            lines += [
                {**where, "stage": "evaluation", "task": task, "name": name, "value": value}
                for task, scores in outcome["scores"].items()
                for name, value in scores.items()
            ]
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
