"""HoloViews made into Bokeh models in a thread, so that a page's loop only has to show them; in the page's colours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import holoviews as hv
from bokeh.models import ColorMapper

from refmotion_nb.views.app.design import figure_theme
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.plots.look import ramp


def rendered(item: Any, dark: bool = False) -> Any:
    """Return the Bokeh model of a HoloViews object, for a light or a dark page."""
    model = hv.render(item, backend="bokeh")
    themed = figure_theme(dark)._json["attrs"]
    for one in model.references():
        for kind in type(one).__mro__:
            one.update(**{name: value for name, value in themed.get(kind.__name__, {}).items() if hasattr(one, name)})
        if dark:
            _recolour(one)
    return model


@cache
def _swapped() -> dict[str, str]:
    """Return the colours for dark pages by those for light ones that plots are made with."""
    light, dark = palette(), palette(dark=True)
    own = {light[name]: dark[name] for name in light if name[0] in "cf" and name[1:].isdigit()}
    return {**own, light["muted"]: dark["muted"], "black": dark["text"], "white": dark["card"]}


def _recolour(model: Any) -> None:
    if isinstance(model, ColorMapper) and list(model.palette) == ramp():
        model.palette = ramp(dark=True)
    for name in type(model).properties():
        if name.endswith("color"):
            value = getattr(model, name)
            plain = value.get("value") if isinstance(value, Mapping) else getattr(value, "value", value)
            if isinstance(plain, str) and plain in _swapped():
                setattr(model, name, _swapped()[plain])
