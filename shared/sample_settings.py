"""Samples of the settings files: every setting with its default and its meaning, ready to copy.

python -m shared.sample_settings run > docs/run.toml            what a run reads
python -m shared.sample_settings device > docs/device.toml      what a device reads of it
"""

import sys
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

import tomli_w
from pydantic.fields import FieldInfo

from shared.config import RunConfig, Section
from shared.config_errors import bounds, choices
from shared.console import WIDTH

DEVICE = ("seed", "threads", "methods", "adapt", "base", "private", "privacy")
"""What ``mesofed device`` reads: all else is the server's."""
INTRODUCTION = {
    "run": "Every setting of a run, with its default: a file for `mesofed simulate FILE` and for "
    "`config` of `flwr run`. Keep what you change; what is left out has the default. Any of it may "
    "be set on the command line instead, as `--set section.name=value`.",
    "device": "Every setting of a device, with its default: a file for `mesofed device start "
    "--config FILE`. Keep what you change; what is left out has the default. [base] and adapt must "
    "be those of the server's run, and privacy.mode too, or the device does not answer.",
}


def sample(which: str) -> str:
    """Return a sample, ``run`` or ``device``, that reads back to the defaults."""
    names = DEVICE if which == "device" else tuple(RunConfig.model_fields)
    lines = [*_comment(INTRODUCTION[which]), *_made_by(which)]
    sections = [name for name in names if isinstance(_default(RunConfig, name), Section)]
    lines += _settings(RunConfig, [name for name in names if name not in sections])
    for name in sections:
        kind = type(_default(RunConfig, name))
        meaning = (kind.__doc__ or "").split("\n\n")[0]
        lines += ["", "", *_comment(meaning), f"[{name}]"]
        lines += _settings(kind, tuple(kind.model_fields))
    return "\n".join(lines) + "\n"


def _made_by(which: str) -> list[str]:
    return _comment(f"Made by `python -m shared.sample_settings {which}`; a test holds it current.")


def _settings(kind: type[Section] | type[RunConfig], names: Collection[str]) -> Iterator[str]:
    for name in names:
        yield ""
        yield from _comment(_meaning(kind.model_fields[name]))
        yield tomli_w.dumps({name: _default(kind, name)}).rstrip("\n")


def _meaning(field: FieldInfo) -> str:
    """Return what a setting means and what it may be."""
    words = choices(field.annotation)
    may_be = " | ".join(words) if words else ", ".join(bounds(field))
    return f"{field.description} ({may_be})" if may_be else str(field.description)


def _default(kind: type[Section] | type[RunConfig], name: str) -> Any:
    return kind.model_fields[name].default


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


if __name__ == "__main__":
    print(sample(sys.argv[1]), end="")
