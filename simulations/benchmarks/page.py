"""The benchmark's page: one HTML file that opens offline, with chart, table and machine."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.atomic_file import write_text
from simulations.benchmarks import wording
from simulations.benchmarks.charts import ratio_chart
from simulations.benchmarks.results import Results
from simulations.benchmarks.table import formats_of
from simulations.report.wording import count_of

FILE = "benchmark.html"
HERE = Path(__file__).parent


def write_page(results: Results, folder: Path) -> Path:
    """Write the page and return its path."""
    path = folder / FILE
    write_text(path, render_page(results))
    return path


def render_page(results: Results) -> str:
    """Return the page as HTML that needs nothing from outside."""
    environment = Environment(
        # The report's style sheet is the page's.
        loader=FileSystemLoader([HERE, HERE.parent / "report"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        value=wording.value,
        spread=wording.spread,
        bar=wording.bar,
        limit=wording.limit,
        verdict=wording.verdict,
        count_of=count_of,
    )
    ratios = [figure for figure in results.figures if figure.unit == "x"]
    faster = [figure for figure in ratios if figure.higher_is_better]
    costs = [figure for figure in ratios if not figure.higher_is_better]
    return environment.get_template("page.html.j2").render(
        results=results,
        machine=results.machine,
        headline=wording.headline(results.figures, results.machine["device"]),
        charts=[
            ratio_chart(figures, title, key)
            for figures, title, key in (
                (faster, "How many times faster than the peer →", "faster"),
                (costs, "What it costs beside the peer ←", "costs"),
            )
            if figures
        ],
        formats=formats_of(results),
        facts=_facts(results),
    )


def _facts(results: Results) -> list[tuple[str, str]]:
    """Return how the benchmark was run, as name and value."""
    machine, settings = results.machine, results.settings
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items() if v)
    facts = {
        "base model": settings.model,
        "rounds": settings.rounds,
        "device": machine["device"],
        "threads": f"{machine['threads']} of {machine['cores']} cores",
        "time": f"{machine['time']} time",
        "formats": f"ours {machine['base_format']}, peers fp32, where a row says no other",
        "started": machine["started"],
        "took": f"{sum(results.took.values()):.0f} s",
        "git commit": machine["git_commit"] or "none",
        "Python": machine["python"],
        "packages": packages,
        "system": machine["platform"],
    }
    return [(name, str(value)) for name, value in facts.items()]
