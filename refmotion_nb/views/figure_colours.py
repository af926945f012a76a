"""The report's colours for Bokeh figures, on light pages and on dark ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColorMapper
from bokeh.themes import Theme

from refmotion_nb.views.drawing_style import palette


class Change(NamedTuple):
    """A property of a model that has another value on a dark page."""

    model: Any
    name: str
    light: Any
    dark: Any


def figure_theme(dark: bool = False) -> Theme:
    """Return how Bokeh draws figures on the page's cards."""
    return Theme(json={"attrs": _attributes(dark)})


@cache
def _attributes(dark: bool) -> dict[str, dict[str, Any]]:
    """Return properties by kind of model."""
    c = palette(dark)
    font = "system-ui, sans-serif"
    text = {"text_color": c["text"], "text_font": font}
    axis = {"axis_label_text_color": c["text"], "major_label_text_color": c["muted"]} | {
        f"{line}_line_color": c["muted"] for line in ("axis", "major_tick", "minor_tick")
    }
    back = {"background_fill_color": c["card"]}
    fonts = {"axis_label_text_font": font, "major_label_text_font": font, "axis_label_text_font_style": "normal"}
    bar = back | {
        "title_text_color": c["text"],
        "title_text_font_style": "normal",
        "title_text_font": font,
        "major_label_text_color": c["muted"],
        "major_label_text_font": font,
    }
    return {
        "Toolbar": {"logo": None, "stylesheets": [f".bk-divider {{ background-color: {c['line']}; }}"]},
        "Plot": back | {"border_fill_color": c["card"], "outline_line_color": c["line"]},
        "Axis": axis | fonts, "Grid": {"grid_line_color": c["grid"]}, "Title": text, "Label": text,
        "Text": text | {"text_font": {"value": font}},  # a glyph: a bare name would be that of a column
        "Legend": back | {"label_text_color": c["text"], "title_text_color": c["text"], "border_line_color": c["line"],
                          "label_text_font": font, "title_text_font": font, "background_fill_alpha": 0.85},
        "BaseColorBar": bar, "ColorBar": bar,
    }  # fmt: skip


@cache
def ramp(dark: bool = False) -> list[str]:
    """Return the colours of an order, finely stepped, for colour bars on white or on a dark page."""
    steps = [colour for name, colour in palette(dark).items() if re.fullmatch(r"f\d", name)]
    anchors = np.array([list(bytes.fromhex(colour[1:])) for colour in steps], float)
    at = np.linspace(0, len(anchors) - 1, 128)
    channels = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], -1)
    return ["#" + bytes(colour).hex() for colour in channels.round().astype(np.uint8)]


def dress(root: Any, dark: bool = False) -> list[Change]:
    """Give figures the report's colours and fonts for a light page or a dark one; return what ``wear`` needs for the other.

    They are values of the figures' own: a document without the theme, or with one that HoloViews sets, takes nothing away.
    """
    changes = coated(root)
    wear(changes, dark)
    return changes


def wear(changes: Iterable[Change], dark: bool) -> None:
    """Let figures have their colours for light pages, or those for dark ones."""
    for change in changes:
        setattr(change.model, change.name, change.dark if dark else change.light)


def coated(root: Any) -> list[Change]:
    """Give figures the report's colours for light pages, and return what is to be changed on dark ones.

    What they were given by name, as by ``.opts``, they keep; colours of the report have counterparts on dark pages.
    """
    changes = {}
    for model in root.references():
        for change in (*_themed(model), *_swapped(model)):
            changes[model.id, change.name] = change
    return [change for change in changes.values() if change.light != change.dark]


def _themed(model: Any) -> Iterator[Change]:
    """Set what the theme says of a model and nobody else does; yield it as it is on light and on dark pages."""
    light, dark = _attributes(False), _attributes(True)
    for kind in type(model).__mro__:
        for name, value in light.get(kind.__name__, {}).items():
            if hasattr(model, name) and getattr(model, name) == model.lookup(name).class_default(type(model)):
                setattr(model, name, value)
                yield Change(model, name, value, dark[kind.__name__][name])


@cache
def _counterparts() -> dict[str, str]:
    """Return the colours for dark pages by those for light ones that plots are made with."""
    light, dark = palette(), palette(dark=True)
    own = {light[name]: dark[name] for name in light if name[0] in "cf" and name[1:].isdigit()}
    own |= {light[name]: dark[name] for name in ("text", "muted", "line")}
    return {**own, "black": dark["text"], "white": dark["card"]}


def _swapped(model: Any) -> Iterator[Change]:
    """Yield the colours that have counterparts on dark pages."""
    if isinstance(model, ColorMapper) and list(model.palette) == ramp():
        yield Change(model, "palette", ramp(), ramp(dark=True))
    for name in type(model).properties():
        if name.endswith("color"):
            value = getattr(model, name)
            plain = value.get("value") if isinstance(value, Mapping) else getattr(value, "value", value)
            if isinstance(plain, str) and plain in _counterparts():
                yield Change(model, name, plain, _counterparts()[plain])
