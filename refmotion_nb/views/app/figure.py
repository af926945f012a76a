"""A place on a page for a figure that takes a while to make: made in a thread, shown by a later refresh."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from html import escape
from threading import Lock
from typing import Any

import holoviews as hv
import panel as pn

from refmotion_nb.views.app import parts
from refmotion_nb.views.app.design import page_is_dark
from refmotion_nb.views.app.engine import Engine
from refmotion_nb.views.app.rendering import Panels, panels

BESIDE = 230  # px around a frame at most: axis, colour bar or legend, toolbar


class Maker:
    """Makes figures one after the other in one thread: HoloViews is not made for several.

    A figure waits once, in the place that it has, with what it was last asked for: whoever asks often is not served more.
    """

    def __init__(self) -> None:
        """Begin with nothing to make."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="refmotion figures")
        self._lock = Lock()
        self._waiting: dict[Figure, Callable[[], None]] = {}

    def ask(self, figure: Figure, make: Callable[[], None]) -> None:
        """Call ``make`` when it is the turn of ``figure``, instead of what it waits for now."""
        with self._lock:
            self._waiting[figure] = make
        self._pool.submit(self._next)

    def drop(self, figure: Figure) -> None:
        """Forget what a figure waits for."""
        with self._lock:
            self._waiting.pop(figure, None)

    def _next(self) -> None:
        with self._lock:
            make = self._waiting.pop(next(iter(self._waiting))) if self._waiting else None
        if make is not None:
            make()


@cache
def maker() -> Maker:
    """Return what makes the figures of all pages."""
    return Maker()


class Same:
    """What is equal to itself only, to have results in keys: kept, so that no later one is taken for it."""

    def __init__(self, item: Any):
        """Stand for ``item``."""
        self.item = item

    def __eq__(self, other: object) -> bool:
        """Tell whether the very same is meant."""
        return isinstance(other, Same) and other.item is self.item

    def __hash__(self) -> int:
        """Return a number that goes with it."""
        return id(self.item)


class _Words(str):
    """Words in the place of a figure."""


class Figure:
    """Shows what ``make`` returned for the latest key; what was there before stays until then."""

    def __init__(self, engine: Engine, larger: float = 1.0, waiting: str = "drawing …", **options: Any):
        """Stand empty; figures are ``larger`` than in a notebook, ``options`` are those of the column around them.

        ``waiting`` is what stands there before the first is made.
        """
        self.engine, self.larger, self.waiting = engine, larger, waiting
        self.dark = page_is_dark()
        self.view = pn.Column(css_classes=["rm-figure"], **{"sizing_mode": "stretch_width", **options})
        self._key: Hashable = None  # of what is wanted
        self._shown: Hashable = None
        self._since = object()  # another one when what was asked for before is not to be shown any more
        self._made: tuple[object, Hashable, Callable[[], Any]] | None = None  # since when, for what key, how to show it

    @property
    def up_to_date(self) -> bool:
        """Whether what was last asked for is what is shown."""
        return self._shown == self._key

    def show(self, key: Hashable, make: Callable[[], Any]) -> None:
        """Show what ``make`` returns, once it is there; nothing is made again for the same key.

        What was made meanwhile for an earlier key is shown until then.
        """
        if key != self._key:
            self._key, since = key, self._since
            maker().ask(self, lambda: self._make(key, make, since))
            if not len(self.view) or isinstance(self._shown, _Words):
                self.view[:] = [pn.pane.HTML(escape(self.waiting), css_classes=["rm-words"], margin=5)]
        made, self._made = self._made, None
        if made is not None and made[0] is self._since:
            _, self._shown, shown = made
            self.view[:] = [shown()]

    def instead(self, text: str) -> None:
        """Show words where there is nothing to draw."""
        if self._key != (words := _Words(text)):
            self.clear()
            self._key = self._shown = words
            self.view[:] = [parts.empty(text)]

    def clear(self) -> None:
        """Show nothing."""
        self.close()
        self._key = self._shown = self._made = None
        self.view[:] = []

    def close(self) -> None:
        """Have nothing made any more; what is in hand will not be shown."""
        self._since = object()
        maker().drop(self)

    def _make(self, key: Hashable, make: Callable[[], Any], since: object) -> None:
        """Make it, in the thread, and let the page look again."""
        try:
            shown = _made(make, self.dark, self.larger)
        except Exception as error:
            shown = _problem(error)
        if since is self._since:
            self._made = since, key, shown
            self.engine.changed()


def _made(make: Callable[[], Any], dark: bool, larger: float) -> Callable[[], Any]:
    """Return how to show what ``make`` returns: HoloViews as Bokeh models."""
    item = make()
    if not isinstance(item, hv.core.Dimensioned):
        return lambda: pn.panel(item)
    drawn = panels(item, dark, larger)
    return lambda: _laid_out(drawn)


def _laid_out(drawn: Panels) -> Any:
    """Return panels in rows, which where there is no room are broken unless a panel leans on the first in its row."""
    panes = [None if one is None else pn.pane.Bokeh(one) for one in drawn.figures]
    if len(panes) == 1:
        return pn.GridBox(*panes, ncols=1, sizing_mode="stretch_width")  # one may be as wide as there is room
    if not drawn.told:  # no grid: a legend in one row would push the panels of another apart
        rows = (panes[i : i + drawn.columns] for i in range(0, len(panes), drawn.columns))
        return pn.Column(*(pn.Row(*filter(None, row), margin=0) for row in rows), margin=0)
    widest = max(one.frame_width or 0 for one in drawn.figures if one is not None)
    most = drawn.columns * (widest + BESIDE)
    return pn.FlexBox(*filter(None, panes), sizing_mode="stretch_width", gap="0", styles={"max-width": f"{most}px"})


def _problem(error: Exception) -> Callable[[], Any]:
    told = escape(str(error) or type(error).__name__)
    return lambda: pn.pane.HTML(told, css_classes=["rm-problem"], sizing_mode="stretch_width")
