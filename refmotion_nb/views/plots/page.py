"""Pages that show plots: the scripts they are sent, and the colours of figures on light and dark ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

import holoviews as hv
from bokeh.models import CustomJS, Plot, Toolbar
from bokeh.models.ui import UIElement
from panel.config import config
from panel.io.notebook import patch_inline_stylesheets
from panel.viewable import Viewable

from refmotion_nb.views.drawing_style import DARK
from refmotion_nb.views.figure_colours import coated

_FOLLOWS = "refmotion: in the colours of the page"  # tag of figures


def send_style_sheets(viewable: Any, root: Any) -> None:
    """Put style sheets into what a notebook is sent: it would ask a CDN for those that are named."""
    if root.document is None or root.document.session_context is None:
        for model in root.select({"type": UIElement}):
            patch_inline_stylesheets(model)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let imports of a module fail, unless it has been imported already."""
    new = module not in sys.modules
    if new:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if new:
            del sys.modules[module]


@contextmanager
def sending_all() -> Iterator[None]:
    """Let Panel not ask the Jupyter server for scripts too, which it does from 1.10 on.

    It asks at the root of the host: behind JupyterHub, or another prefix, in vain, which a red line says above the cell.
    """
    before = getattr(config, "notebook_resources", None)
    if before is not None:
        config.notebook_resources = "cdn"  # asked for nothing, as all is inline
    try:
        yield
    finally:
        if before is not None:
            config.notebook_resources = before


def _load() -> None:
    """Make HoloViews draw with Bokeh, and send a notebook's page the scripts for it."""
    # nbformat is only for HoloViews' archive; beside JupyterLab its import takes several seconds
    with _without("nbformat"), sending_all():
        hv.extension("bokeh", logo=False, inline=True)  # without it the page asks a CDN


class Pages:
    """Sends scripts again to pages that come later: a notebook reloaded in the browser, of which the kernel went on."""

    MOST = 10  # some front ends have no name that lasts

    def __init__(self, shell: Any, load: Callable[[], None]):
        """Follow the pages of a kernel's ``shell``; ``load`` sends the scripts to that whose cell is being run."""
        self._kernel, self._load = getattr(shell, "kernel", None), load
        self._known = {self._page()}

    def look(self, *_: Any) -> None:
        """Load if the cell that is being run is of a page not met yet: before a plot is shown."""
        page = self._page()
        if page not in self._known and len(self._known) < self.MOST:
            self._known.add(page)
            self._load()

    def _page(self) -> str:
        return "" if self._kernel is None else str(self._kernel.get_parent().get("header", {}).get("session", ""))


@cache
def load() -> None:
    """Get ready to draw, once: called by whatever draws, not at import, as it sends a notebook's page the scripts."""
    hooks = Viewable._preprocessing_hooks
    if "bokeh" not in hv.Store.loaded_backends():
        _load()
        if "IPython" in sys.modules:
            hooks.append(Pages(sys.modules["IPython"].get_ipython(), _load).look)
    hv.renderer("bokeh").center = False  # what is wider than the page loses its left part where it is centred
    hooks += [send_style_sheets, _follow_page]  # the former is not done by HoloViews, which displays by Panel


def mark(plot: Any, element: Any) -> None:
    """Tag a figure, of which other parts may still be missing (a HoloViews hook)."""
    figure = plot.handles["plot"]
    if _FOLLOWS not in figure.tags:
        figure.tags = [*figure.tags, _FOLLOWS]


def leave_as_it_is(root: Any) -> None:
    """Let figures keep their colours, which somebody has chosen for the page."""
    for figure in root.select({"type": Plot}):
        figure.tags = [tag for tag in figure.tags if tag != _FOLLOWS]


def _follow_page(viewable: Any, root: Any) -> None:
    """Let a browser choose the colours of the figures that are tagged (a hook of Panel), each time it shows them."""
    if root.document is not None:  # there before: to look through all that a page shows takes long
        return
    figures = [figure for figure in root.select({"type": Plot}) if _FOLLOWS in figure.tags]
    if not figures:
        return
    changes = [change for figure in figures for change in coated(figure)]
    for toolbar in root.select({"type": Toolbar}):  # of several figures
        toolbar.logo = None
    columns = dict(zip(("models", "names", "light", "dark"), map(list, zip(*changes))))
    callback = CustomJS(args={**columns, "where": ", ".join(DARK)}, code=_script())
    attach = root._attach_document

    def attached(document: Any) -> None:
        attach(document)
        document.js_on_event("document_ready", callback)

    root._attach_document = attached  # models have no event for it, and documents do not know of hooks


@cache
def _script() -> str:
    return resources.files("refmotion_nb.views.plots").joinpath("follow_page.js").read_text(encoding="utf-8")


def follow_page(plot: Any) -> Any:
    """Return a HoloViews plot of one's own with the report's colours, dark where the page is.

    As in other plots the wheel scrolls the page until its zoom is chosen, unless ``active_tools`` are given by ``.opts``.
    """
    load()

    def marked(item: Any) -> Any:
        own = hv.Store.lookup_options("bokeh", item, "plot").kwargs
        hooks, tools = [mark, *own.get("hooks", [])], own.get("active_tools", ["pan"])
        return item.opts(hooks=hooks, active_tools=tools, clone=True)

    return plot.map(marked, [hv.Element, hv.Overlay, hv.NdOverlay])
