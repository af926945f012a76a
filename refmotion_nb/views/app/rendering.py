"""HoloViews made into Bokeh models in a thread, so that a page's loop only has to show them; in the page's colours."""

from __future__ import annotations

from functools import cache
from typing import Any

import holoviews as hv

from refmotion_nb.views.figure_colours import dress
from refmotion_nb.views.plots.page import leave_as_it_is


def rendered(item: Any, dark: bool = False) -> Any:
    """Return the Bokeh model of a HoloViews object, for a light or a dark page."""
    model = _renderer().get_plot(item).state
    dress(model, dark)
    leave_as_it_is(model)
    return model


@cache
def _renderer() -> Any:
    """Return a renderer of HoloViews that gives each figure a document of its own, as it does in notebooks.

    Elsewhere it takes the one that Bokeh is at work on, in whatever thread: that of some page, whose theme it would set
    to its own, and with which the figure would end.
    """
    renderer = hv.renderer("bokeh").instance()
    renderer.notebook_context = True
    return renderer
