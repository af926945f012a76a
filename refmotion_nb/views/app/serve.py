"""The app as a server, or within a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import panel as pn

from refmotion_nb.data.schema import Dataset
from refmotion_nb.stages.session import Session
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
    return Page(engine, Viewer("notebook", True)).follow().layout


def serve(engine: Engine, port: int = 5006, address: str = "127.0.0.1", show: bool = False) -> None:
    """Serve the app until it is stopped; every browser session has a page of its own on the one engine."""

    def page() -> Any:
        return Page(engine, Viewer("viewer", True)).follow().layout

    pn.serve({"/": page}, port=port, address=address, show=show, title="refmotion")
