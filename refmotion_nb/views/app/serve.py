"""The app as a server, or within a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import panel as pn

from refmotion_nb.data.schema import Dataset
from refmotion_nb.stages.session import Session
from refmotion_nb.views.app.design import DARK, Dark, Light, Look, variables
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.page import Page
from refmotion_nb.views.app.roots import Roots


def app(
    data: Dataset | Session | None = None, out: str | Path | None = None, browse: Iterable[str | Path] = (".",)
) -> Any:
    """Return the app on a session, or on data, as something to display: what it computes, the session holds.

    ``out`` is where results are written, ``browse`` names the folders that may be read and written.
    """
    pn.extension()
    engine = Engine(Roots(browse), out=None if out is None else Path(out).resolve())
    if data is not None:
        engine.take(data)
    return Page(engine, Viewer("notebook", True, True), pn.config.theme == DARK).follow().layout


@cache
def _html() -> str:
    return resources.files("refmotion_nb.views.app").joinpath("page.html").read_text(encoding="utf-8")


def document(page: Page, dark: bool) -> Any:
    """Return the whole HTML document of a page."""
    template = pn.Template(_html(), design=Look, theme=Dark if dark else Light)
    template.add_variable("rm_variables", variables(dark))
    template.add_panel("app", page.layout)
    return template


def serve(engine: Engine, port: int = 5006, address: str = "127.0.0.1", show: bool = False) -> None:
    """Serve the app until it is stopped; every browser session has a page of its own on the one engine."""

    def page() -> Any:
        dark = pn.state.cookies.get("rm-theme") == DARK
        return document(Page(engine, Viewer("viewer", True, True), dark, served=True).follow(), dark)

    pn.serve({"/": page}, port=port, address=address, show=show, title="refmotion")
