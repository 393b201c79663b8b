"""The form of a record: which fields it has, of which type, length and bounds.

A form is data. From it come the check of what arrives, the reason of a refusal, which is fixed
text and never repeats what came, and the page that tells people what crosses the wire.
"""

import re
from dataclasses import dataclass
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

RECORD_TYPES = {"config": ConfigRecord, "metric": MetricRecord, "array": ArrayRecord}


@dataclass(frozen=True)
class Field:
    """One field of a record.

    Attributes
    ----------
    name : str
    kind : str
        "int", "float", lists of them, or "bytes": items of a fixed size, one after the other.
    meaning : str
        For the reader of the page.
    low, high : float
        Bounds of each number.
    least, most : int
        Bounds of the number of items, of a list or of bytes.
    size : int
        Bytes of an item.
    """

    name: str
    kind: Literal["int", "float", "ints", "floats", "bytes"]
    meaning: str
    low: float = 0
    high: float = 0
    least: int = 1
    most: int = 1
    size: int = 1

    @property
    def form(self) -> str:
        """The field's form, in words."""
        items = f"{self.least} to {self.most}" if self.least < self.most else f"{self.most}"
        if self.kind == "bytes":
            return f"{items} x {self.size} bytes" if self.most > 1 else f"{self.size} bytes"
        if self.low == self.high:
            return f"the {self.kind} {_number(self.low)}"
        many = f"{items} {self.kind}" if self.kind.endswith("s") else f"one {self.kind}"
        return f"{many} from {_number(self.low)} to {_number(self.high)}"

    def admits(self, value: object) -> bool:
        """Return whether a value is of this form; NaN and bool never are."""
        if self.kind == "bytes":
            if type(value) is not bytes:
                return False
            items, rest = divmod(len(value), self.size)
            return rest == 0 and self.least <= items <= self.most
        wanted = float if self.kind.startswith("float") else int
        if self.kind.endswith("s"):
            if type(value) is not list or not self.least <= len(value) <= self.most:
                return False
            values = value
        else:
            values = [value]
        # A comparison with NaN is false, so NaN is refused here too.
        return all(type(item) is wanted and self.low <= item <= self.high for item in values)


@dataclass(frozen=True)
class Files:
    """The files of an array record: flat arrays of bytes, under names of one pattern."""

    name: re.Pattern[str]
    most: int
    meaning: str

    @property
    def form(self) -> str:
        """The files' form, in words."""
        return f"1 to {self.most} files, each a flat array of uint8"


@dataclass(frozen=True)
class RecordForm:
    """The form of one record.

    Attributes
    ----------
    name : str
        Under which it crosses the wire.
    kind : str
        Flower's record type: "config", "metric" or "array".
    fields : tuple of Field, or Files
    """

    name: str
    kind: Literal["config", "metric", "array"]
    fields: tuple[Field, ...] | Files


def fault_of(record: object, form: RecordForm) -> str | None:
    """Return what is wrong with a record of fields, as fixed text; None if nothing is."""
    assert isinstance(form.fields, tuple), "files have a check of their own"
    if not isinstance(record, RECORD_TYPES[form.kind]):
        return f"{form.name}: expected a {form.kind} record"
    if set(record) != {field.name for field in form.fields}:
        return f"{form.name}: expected the fields {', '.join(f.name for f in form.fields)}"
    for field in form.fields:
        if not field.admits(record[field.name]):
            return f"{form.name}: expected {field.name} to be {field.form}"
    return None


def fault_of_names(content: RecordDict, forms: tuple[RecordForm, ...]) -> str | None:
    """Return what is wrong with the names of a message's records; None if nothing is."""
    if set(content) == {form.name for form in forms}:
        return None
    return f"expected exactly the records {', '.join(form.name for form in forms) or '(none)'}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
