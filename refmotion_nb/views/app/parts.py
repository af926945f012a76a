"""Small parts that all tabs are put together from, so that they look alike."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn


def empty(text: str) -> Any:
    """Return what stands where there is nothing yet: ``text`` says what to do next."""
    return pn.pane.HTML(escape(text), css_classes=["rm-empty"], sizing_mode="stretch_width")


def words(html: str) -> Any:
    """Return a paragraph; ``html`` is safe already."""
    return pn.pane.HTML(html, css_classes=["rm-words"], sizing_mode="stretch_width")


def card(title: str, *children: Any, **options: Any) -> Any:
    """Return children on a card with a title."""
    heading = pn.pane.HTML(f"<h3>{escape(title)}</h3>", sizing_mode="stretch_width", margin=(0, 5))
    return pn.Column(heading, *children, css_classes=["rm-card"], **{"sizing_mode": "stretch_width", **options})


def progress(done: int, total: int, text: str) -> Any:
    """Return a bar with words beneath it, percent for screen readers."""
    bar = pn.indicators.Progress(value=done, max=max(total, 1), sizing_mode="stretch_width", margin=(4, 5, 0, 5))
    return pn.Column(bar, words(escape(text)), sizing_mode="stretch_width")
