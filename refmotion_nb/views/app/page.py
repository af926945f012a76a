"""A page of the app: what one browser (or one notebook cell) shows of the engine."""

from __future__ import annotations

from functools import cache
from html import escape
from importlib import resources
from typing import Any

import panel as pn

from refmotion_nb.stages.runs import Run
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.tabs import TABS

POLL_MS = 250
HASH = "tab"  # of the address: which tab is in front


class Page:
    """Header and tabs; looks at the engine four times a second and redraws what is in front when something changed."""

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        self.engine = engine
        self.viewer = viewer
        self.tabs = [kind(engine, viewer) for kind in TABS]
        self.header = pn.pane.HTML("", sizing_mode="stretch_width", css_classes=["rm-header"])
        self.cancel = pn.widgets.Button(label="Cancel", color="warning", visible=False, width=90)
        self.cancel.on_click(lambda _: self.engine.cancel() if self.viewer.may_run else None)
        self.front = pn.Tabs(
            *((tab.title, tab.view) for tab in self.tabs),
            dynamic=True,
            sizing_mode="stretch_width",
            css_classes=["rm-tabs"],
        )
        self.front.param.watch(lambda _: self.refresh(force=True), "active")
        self.layout = pn.Column(
            pn.Row(self.header, self.cancel, sizing_mode="stretch_width"), self.front,
            sizing_mode="stretch_width", css_classes=["rm-app"], stylesheets=[style()],
        )  # fmt: skip
        self._seen: dict[int, Any] = {}
        self.refresh(force=True)

    def refresh(self, force: bool = False) -> None:
        """Bring the header and the tab in front up to date, if something changed since they were drawn."""
        for run in self.engine.runs[-20:]:
            run.watched = True
        stamp, active = self.engine.stamp(), self.front.active
        if not force and self._seen.get(active) == stamp:
            return
        self._seen[active] = stamp
        with pn.io.hold():
            self._head()
            self.tabs[active].refresh()

    def follow(self) -> Page:
        """Keep the page up to date from now on."""
        self.engine.viewers.append(self.viewer)
        pn.state.add_periodic_callback(self.refresh, period=POLL_MS)
        if pn.state.curdoc is not None and pn.state.curdoc.session_context is not None:
            pn.state.on_session_destroyed(lambda _: self.engine.viewers.remove(self.viewer))
        return self

    def _head(self) -> None:
        live = self.engine.live or self.engine.opened
        going = live is not None and not live.snapshot.ended
        data, now = escape(_data_line(self.engine)), escape(run_line(live))
        self.header.object = f"<b>refmotion</b> <span>{data}</span> <span class='rm-now'>{now}</span>"
        self.cancel.visible = going and self.viewer.may_run


def run_line(run: Run | None) -> str:
    """Return in words what is going on."""
    if run is None or run.snapshot.ended:
        return ""
    if not run.snapshot.works:
        return f"{run.name}: {run.state}"
    work = run.snapshot.works[-1]
    left = work.seconds_left
    more = f", about {left:.0f} s left" if left is not None and left >= 1 else ""
    paused = "paused: " if run.state == "paused" else ""
    return f"{paused}{work.what} {work.done} of {work.total}{more}"


def _data_line(engine: Engine) -> str:
    if engine.session is None:
        return "no data open"
    particles = sum(engine.session.particle_count(name) for name in engine.session)
    return f"{particles} particles on {len(engine.session.micrographs)} micrographs → {engine.out}"


@cache
def style() -> str:
    """Return the style sheet of the app."""
    return resources.files("refmotion_nb.views.app").joinpath("app.css").read_text(encoding="utf-8")
