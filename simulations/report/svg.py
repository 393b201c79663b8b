"""Matplotlib figures as SVG that lives inside a page: its text is text, its colours are the page's.

Matplotlib draws in seven stand-in colours; here they become CSS variables, so one drawing serves
light and dark. Fonts become the page's, ids become unique, and a title and description are added
for those who listen to the page.
"""

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
ACCENT, WARM, SOFT = "#050505", "#060606", "#070707"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    ACCENT: "var(--accent)",
    WARM: "var(--warm)",
    SOFT: "var(--soft)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mesofed",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.labelsize": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.75,
    "lines.linewidth": 1.75,
    "lines.solid_capstyle": "round",
}
_FONT = re.compile(r"font:\s*(?P<rest>[^;]*?)(?P<size>[\d.]+)px[^;]*")


@contextmanager
def drawing(
    width: float, height: float, left: float, right: float, top: float = 26, bottom: float = 36
) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure with one pair of axes in the report's style.

    Sizes and margins are CSS pixels. Margins are fixed, so that charts side by side line up (and
    because measuring text to find them would double the time of a drawing).
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        box = (left / width, bottom / height)
        axes = figure.add_axes((*box, 1 - (left + right) / width, 1 - (top + bottom) / height))
        axes.tick_params(length=0)
        yield figure, axes


def level_lines(axes: Axes) -> None:
    """Draw faint level lines behind the data."""
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _style(text: str) -> str:
    """Hand colours and fonts of one style attribute over to the page."""
    text = _FONT.sub(r"font-size: \g<size>px", text)
    kept = []
    for declaration in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name != "font-family":
            kept.append(f"{name}: {_VARIABLES.get(value.lower(), value)}")
    return "; ".join(kept)


def _unique_ids(root: ElementTree.Element, prefix: str) -> None:
    """Drop ids that nothing refers to and prefix the others, for many drawings in one page."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    for element in root.iter():
        if (identity := element.attrib.pop("id", None)) in used:
            element.set("id", f"{prefix}-{identity}")
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))


def as_markup(figure: Figure, key: str, title: str, description: str) -> Markup:
    """Return a figure as inline SVG for a page.

    Parameters
    ----------
    figure : Figure
        Drawn inside ``drawing``.
    key : str
        Unique in the page; letters, digits and hyphens.
    title, description : str
        What the chart shows and what it says; read aloud in place of the picture.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
        if "style" in element.attrib:
            element.set("style", _style(element.attrib["style"]))
        if not (element.text or "").strip():
            element.text = None
    for parent, tag in itertools.product(list(root.iter()), ("metadata", "style")):
        for child in parent.findall(tag):
            parent.remove(child)
    _unique_ids(root, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"class": "chart", "role": "img", "aria-labelledby": f"{key}-t {key}-d"})
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(tag, {"id": f"{key}-{tag[0]}"})
        child.text = text
        root.insert(place, child)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True))
