"""How the app looks: the report's colours, light and dark, for the page, its widgets and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar

import param
from bokeh.themes import Theme as FigureTheme
from panel.reactive import ReactiveHTML
from panel.theme.base import DarkTheme, DefaultTheme, Inherit
from panel.theme.native import Native
from panel.viewable import Viewable

from refmotion_nb.views.drawing_style import DARK as DARK_PAGES
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.plots.look import send_style_sheets

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


def figure_theme(dark: bool = False) -> FigureTheme:
    """Return how Bokeh draws figures on the page's cards."""
    c = palette(dark)
    text = {"text_color": c["text"], "text_font": "system-ui, sans-serif"}
    axis = {"axis_label_text_color": c["text"], "major_label_text_color": c["muted"]} | {
        f"{line}_line_color": c["muted"] for line in ("axis", "major_tick", "minor_tick")
    }
    back = {"background_fill_color": c["card"]}
    fonts = {f"{part}_text_font": "system-ui, sans-serif" for part in ("axis_label", "major_label")}
    fonts["axis_label_text_font_style"] = "normal"
    bar = back | {
        "title_text_color": c["text"],
        "title_text_font_style": "normal",
        "major_label_text_color": c["muted"],
    }
    return FigureTheme(json={"attrs": {
        "Toolbar": {"logo": None},
        "Plot": back | {"border_fill_color": c["card"], "outline_line_color": c["line"]},
        "Axis": axis | fonts, "Grid": {"grid_line_color": c["grid"]}, "Title": text, "Label": text,
        "Legend": back | {"label_text_color": c["text"], "title_text_color": c["text"], "border_line_color": c["line"],
                          "background_fill_alpha": 0.85},
        "BaseColorBar": bar, "ColorBar": bar,
    }})  # fmt: skip


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
