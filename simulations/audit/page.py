"""The audit's page: one HTML file that opens offline and says what was measured, and how."""

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.atomic_file import write_text
from shared.byte_size import byte_size
from simulations.audit import wording
from simulations.audit.audit import Audit
from simulations.audit.chart import attack_chart
from simulations.report.wording import count_of, duration

FILE = "audit.html"
HERE = Path(__file__).parent


def write_page(audit: Audit, folder: Path) -> Path:
    """Write the page and return its path."""
    path = folder / FILE
    write_text(path, render_page(audit))
    return path


def render_page(audit: Audit) -> str:
    """Return the page as HTML that needs nothing from outside."""
    environment = Environment(
        # The report's style sheet is the page's.
        loader=FileSystemLoader([HERE, HERE.parent / "report"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(bytes=byte_size)
    environment.globals.update(words=wording, count_of=count_of)
    return environment.get_template("page.html.j2").render(
        audit=audit,
        headline=wording.headline(audit),
        chart=attack_chart(audit.attacks, "attacks"),
        facts=_facts(audit),
    )


def _facts(audit: Audit) -> list[tuple[str, str]]:
    """Return how the audit was made, as name and value."""
    machine = audit.machine
    facts = {
        "command": shlex.join(audit.command),
        "base model": audit.base,
        "corpus": audit.corpus,
        "seed": audit.config.seed,
        "took": duration(audit.seconds),
        "started": machine["started"],
        "device": machine["device"],
        "threads": f"{machine['threads']} of {machine['cores']} cores",
        "git commit": machine["git_commit"] or "none",
        "Python": machine["python"],
        "packages": ", ".join(f"{k} {v}" for k, v in machine["packages"].items() if v),
        "system": machine["platform"],
    }
    return [(name, str(value)) for name, value in facts.items()]
