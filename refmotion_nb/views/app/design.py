"""How the app looks: the report's colours, light and dark, for the page, its widgets and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar

import param
from panel.reactive import ReactiveHTML
from panel.theme.base import DarkTheme, DefaultTheme, Inherit
from panel.theme.native import Native
from panel.viewable import Viewable

from refmotion_nb.views.drawing_style import DARK as DARK_PAGES
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.figure_colours import figure_theme
from refmotion_nb.views.plots.page import send_style_sheets

DARK = "dark"


_MAKING: ContextVar[bool] = ContextVar("what is being made is for a dark page", default=False)


@contextmanager
def making(dark: bool) -> Iterator[None]:
    """Let ``page_is_dark`` say so to all that is made in the block."""
    token = _MAKING.set(dark)
    try:
        yield
    finally:
        _MAKING.reset(token)


def page_is_dark() -> bool:
    """Return whether what is being made is for a dark page."""
    return _MAKING.get()


class Surroundings(ReactiveHTML):
    """Nothing to see; tells whether the notebook around it is dark, once a browser shows it."""

    dark = param.Boolean(default=False)
    _template = '<div id="nothing"></div>'
    _scripts: ClassVar[dict[str, str]] = {
        "render": f"data.dark = document.querySelector({', '.join(DARK_PAGES)!r}) !== null"
    }


@cache
def variables(dark: bool = False) -> str:
    """Return the colours as declarations of CSS variables."""
    scheme = "dark" if dark else "light"
    return f"color-scheme: {scheme}; " + " ".join(f"--{name}: {colour};" for name, colour in palette(dark).items())


class Light(DefaultTheme):
    """Dark on light."""

    bokeh_theme: Any = param.Parameter(default=figure_theme())


class Dark(DarkTheme):
    """Light on dark."""

    bokeh_theme: Any = param.Parameter(default=figure_theme(dark=True))


class Look(Native):
    """Panel's plain design with the app's style sheet in every part."""

    modifiers: ClassVar[dict[Any, Any]] = {Viewable: {"stylesheets": [Inherit, "app.css"]}}
    _themes: ClassVar[dict[str, Any]] = {"default": Light, DARK: Dark}

    def dress(self, viewable: Any, root: Any, changed: Any, old_models: Any = None) -> None:
        """Apply itself to what is on a page without a document of its own: a hook of its outermost part.

        In a notebook style sheets are sent along: it would ask another host for those that are named.
        """
        self._apply_hooks(viewable, root, changed, old_models)
        send_style_sheets(viewable, root)
