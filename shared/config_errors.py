"""What is wrong with a configuration: what a setting may be, what came, what it may have meant.

Pydantic finds it, in words of its own; here it is said in those of the settings files.
"""

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from shared.suggestion import suggestion

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def wrong(error: ErrorDetails, kind: type[BaseModel]) -> str:
    """Return what is wrong with one setting of a kind of configuration."""
    name, came = ".".join(map(str, error["loc"])) or "config", error["input"]
    if error["type"] == "value_error":  # our own, which says what came where that helps
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "extra_forbidden":
        got = "" if isinstance(came, dict) else f"; got {came!r}"  # a section says nothing
        return f"{name}: there is no such setting{_meant(name, tuple(_names(kind)))}{got}"
    field = _field(error["loc"], kind)
    if field is None:
        return f"{name}: {error['msg']}; got {came!r}"
    # What is wrong with one of a list is at a number.
    may_be = (
        get_args(field.annotation)[0] if isinstance(error["loc"][-1], int) else field.annotation
    )
    meant = suggestion(came, choices(may_be)) if isinstance(came, str) else ""
    return f"{name}: expected {_expected(may_be, bounds(field))}; got {came!r}{meant}"


def _meant(name: str, known: tuple[str, ...]) -> str:
    """Return what a setting that there is not may have been."""
    own = name.rpartition(".")[2]
    sections = [other for other in known if other.endswith(f".{own}")]
    if sections:
        return f" (did you mean {' or '.join(map(repr, sections))}?)"
    return suggestion(name, known) or " (the .toml file of any run has them all)"


def bounds(field: FieldInfo) -> list[str]:
    """Return the bounds of a number, such as ``at least 2``."""
    return [
        f"{words} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]


def choices(may_be: object) -> tuple[str, ...]:
    """Return the words that a setting of a type may be, if it is a choice."""
    return get_args(may_be) if get_origin(may_be) is Literal else ()


def _expected(may_be: object, limits: list[str]) -> str:
    if words := choices(may_be):
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if get_origin(may_be) is tuple:
        whole = get_args(may_be)[0] is int
        return "a list, such as " + ("'[7,8]'" if whole else """'["one","two"]'""")
    if isinstance(may_be, type) and issubclass(may_be, BaseModel):
        return "a section of settings, as the .toml file of any run has it"
    what = "a whole number" if may_be is int else "a number" if may_be is float else "text"
    return f"{what}, {' and '.join(limits)}" if limits else what


def _field(place: tuple[int | str, ...], kind: type[BaseModel]) -> FieldInfo | None:
    """Return the setting at a place of a configuration, or that of the list it is in."""
    found = None
    for name in place:
        if isinstance(name, int):
            return found
        found = kind.model_fields.get(name)
        if found is None:
            return None
        if isinstance(found.annotation, type) and issubclass(found.annotation, BaseModel):
            kind = found.annotation
    return found


def _names(kind: type[BaseModel], before: str = "") -> Iterator[str]:
    """Yield the name of every setting and section."""
    for name, field in kind.model_fields.items():
        yield before + name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _names(inner, f"{before}{name}.")
