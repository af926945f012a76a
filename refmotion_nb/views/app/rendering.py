"""HoloViews made into Bokeh models in a thread, so that a page's loop only has to show them; in the page's colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import holoviews as hv
import numpy as np

from refmotion_nb.views.figure_colours import dress
from refmotion_nb.views.plots.page import leave_as_it_is


@dataclass(frozen=True)
class Panels:
    """Figures row by row, None where a row has none."""

    figures: list[Any]
    columns: int
    told: bool  # whether each tells its own heights, so that rows need not be kept together


def rendered(item: Any, dark: bool = False) -> Any:
    """Return the Bokeh model of a HoloViews object, for a light or a dark page."""
    model = _renderer().get_plot(item).state
    dress(model, dark)
    leave_as_it_is(model)
    return model


def panels(item: Any, dark: bool = False, larger: float = 1.0) -> Panels:
    """Return the figures of a HoloViews object for a light or a dark page, frames of fixed size ``larger`` than they are.

    Those of a layout share axes, as they do in a notebook, but no grid: Bokeh's come out empty where they are put into a
    page later.
    """
    if not isinstance(item, hv.Layout) or len(item) == 1:
        (one,) = item if isinstance(item, hv.Layout) else (item,)
        figures, columns, told = [rendered(one, dark)], 1, True
    else:
        plot = _renderer().get_plot(item.opts(hv.opts.Layout(merge_tools=False), backend="bokeh"))
        dress(plot.state, dark)
        leave_as_it_is(plot.state)
        parts = {place: part.subplots["main"] for place, part in plot.subplots.items() if "main" in part.subplots}
        rows, columns = (1 + max(at) for at in zip(*parts))
        told = all(part.yaxis != "bare" for part in parts.values())
        for (row, column), part in parts.items():
            if told or (row, column + 1) not in parts:  # a grid takes it away; a row needs it once
                part.state.toolbar_location = part.toolbar
        figures = [parts[at].state if at in parts else None for at in np.ndindex(rows, columns)]
    for one in filter(None, figures):
        if one.frame_width and one.frame_height:
            one.frame_width, one.frame_height = round(larger * one.frame_width), round(larger * one.frame_height)
    return Panels(figures, columns, told)


@cache
def _renderer() -> Any:
    """Return a renderer of HoloViews that gives each figure a document of its own, as it does in notebooks.

    Elsewhere it takes the one that Bokeh is at work on, in whatever thread: that of some page, whose theme it would set
    to its own, and with which the figure would end.
    """
    renderer = hv.renderer("bokeh").instance()
    renderer.notebook_context = True
    return renderer
