"""A place on a page for a figure that takes a while to make: made in a thread, shown by a later refresh."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from html import escape
from typing import Any

import holoviews as hv
import panel as pn

from refmotion_nb.views.app.design import page_is_dark
from refmotion_nb.views.app.engine import Engine
from refmotion_nb.views.app.rendering import rendered


@cache
def _maker() -> ThreadPoolExecutor:
    """Return the one thread that figures are made in: HoloViews is not made for several."""
    return ThreadPoolExecutor(1, thread_name_prefix="refmotion figures")


class Figure:
    """Shows what ``make`` returned for the latest key; the one before stays until then."""

    def __init__(self, engine: Engine, **options: Any):
        """Stand empty; ``options`` are those of the column around it."""
        self.engine = engine
        self.dark = page_is_dark()
        self.view = pn.Column(**{"sizing_mode": "stretch_width", **options})
        self._key: Hashable = None
        self._made: Future[Any] | None = None

    def show(self, key: Hashable, make: Callable[[], Any]) -> None:
        """Show what ``make`` returns, once it is there; nothing is made again for the same key."""
        if key != self._key:
            self._key = key
            made = self._made = _maker().submit(_made, make, self.dark)
            made.add_done_callback(lambda _: self.engine.changed())
            if not len(self.view):
                self.view[:] = [pn.pane.HTML("drawing …", css_classes=["rm-words"])]
        elif self._made is not None and self._made.done():
            made, self._made = self._made, None
            problem = made.exception()
            self.view[:] = [_problem(problem) if problem is not None else _shown(made.result())]

    def clear(self) -> None:
        """Show nothing."""
        self._key = self._made = None
        self.view[:] = []


def _made(make: Callable[[], Any], dark: bool) -> Any:
    """Return what ``make`` returns, HoloViews as Bokeh models; the panels of a layout one by one.

    Bokeh's grids come out empty where they are put into a page later.
    """
    item = make()
    if isinstance(item, hv.Layout):
        return [rendered(one, dark) for one in item], min(item._max_cols, len(item))
    return ([rendered(item, dark)], 1) if isinstance(item, hv.core.Dimensioned) else item


def _shown(item: Any) -> Any:
    if isinstance(item, tuple):
        models, columns = item
        return pn.GridBox(*map(pn.pane.Bokeh, models), ncols=columns)
    return pn.panel(item)


def _problem(error: BaseException) -> Any:
    return pn.pane.HTML(escape(str(error)), css_classes=["rm-problem"], sizing_mode="stretch_width")
