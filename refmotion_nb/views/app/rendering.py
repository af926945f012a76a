"""HoloViews made into Bokeh models in a thread, so that a page's loop only has to show them; in the page's colours."""

from __future__ import annotations

from typing import Any

import holoviews as hv

from refmotion_nb.views.figure_colours import coated
from refmotion_nb.views.plots.page import leave_as_it_is


def rendered(item: Any, dark: bool = False) -> Any:
    """Return the Bokeh model of a HoloViews object, for a light or a dark page."""
    model = hv.render(item, backend="bokeh")
    for change in coated(model):
        if dark:
            setattr(change.model, change.name, change.dark)
    leave_as_it_is(model)
    return model
