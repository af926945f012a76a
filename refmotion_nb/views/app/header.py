"""The top of a page: the data, what is going on, who looks on."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn

from refmotion_nb.stages.runs import Run
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.engine import Engine, Viewer, words_of
from refmotion_nb.views.app.rights import TOLD, seat
from refmotion_nb.views.run_words import roughly

_COOKIE = "document.cookie = 'rm-theme={}; path=/; SameSite=Lax; max-age=31536000'; location.reload()"


class Header:
    """Name of the data, what is going on with its buttons, and the viewers."""

    def __init__(self, engine: Engine, viewer: Viewer, dark: bool, served: bool):
        """Make the widgets; the switch between light and dark is for pages ``served`` to a browser."""
        self.engine: Any = seat(engine, viewer)
        self.viewer = viewer
        self.data = pn.pane.HTML(
            "", sizing_mode="stretch_width", margin=(4, 5, 0, 5), styles={"flex": "1 1 300px", "min-width": "0"}
        )
        self.now = pn.pane.HTML("", width=330, margin=(2, 5, 0, 5), visible=False)
        self.pause = parts.button("Pause", self._pause, visible=False, width=80, margin=(3, 4))
        self.cancel = parts.button("Cancel", self._cancel, visible=False, width=80, margin=(3, 4), color="warning")
        self.people = parts.button("", self._unfold, width=130, margin=(3, 4), visible=served)
        self.switch = pn.widgets.Button(label="☀ Light" if dark else "☾ Dark", width=84, margin=(3, 4), visible=served)
        self.switch.js_on_click(code=_COOKIE.format("light" if dark else "dark"))
        self.menu = pn.Column(sizing_mode="stretch_width", visible=False, css_classes=["rm-card"])
        row = pn.FlexBox(
            self.data, self.now, self.pause, self.cancel, self.people, self.switch, gap="0", sizing_mode="stretch_width"
        )
        self.view = pn.Column(row, self.menu, sizing_mode="stretch_width")
        self._listed: Any = None

    def refresh(self) -> None:
        """Bring it up to date."""
        self.data.object = f'<div class="rm-header"><b>refmotion</b><span>{data_line(self.engine)}</span></div>'
        going = self.engine.going
        if going is not None:
            self.now.object = f'<div class="rm-now" role="status">{now_line(going)}</div>'
        self.now.visible = going is not None
        self.cancel.param.update(visible=going is not None and self.viewer.may_run, disabled=not self.engine.can_cancel)
        self.pause.visible = self.engine.can_pause and self.viewer.may_run
        self.pause.label = "Resume" if going is not None and going.state == "paused" else "Pause"
        people = len({one.who for one in self.engine.viewers})
        self.people.label = f"{people} viewer{'s' * (people != 1)}" if self.viewer.may_run else "Looking on"
        if self.menu.visible:
            self._list()

    def _pause(self) -> None:
        going = self.engine.going
        if going is not None and self.viewer.may_run:
            self.engine.resume() if going.state == "paused" else self.engine.pause()
            self.refresh()

    def _cancel(self) -> None:
        if self.viewer.may_run:
            self.engine.cancel()
            self.refresh()

    def _unfold(self) -> None:
        self.menu.visible = not self.menu.visible
        self._list()

    def _list(self) -> None:
        """List the viewers, each once; the owner gives and takes the right to run."""
        people = {one.who: one for one in self.engine.viewers}
        state = [(one.who, one.name, one.may_run, one.owner) for one in people.values()]
        if state == self._listed:
            return
        self._listed = state
        told = "You may run." if self.viewer.may_run else TOLD
        if self.viewer.owner:
            told = "Who runs may open data, start and stop runs and change settings; others look on."
        self.menu[:] = [parts.words(told), *map(self._line, people.values())]

    def _line(self, other: Viewer) -> Any:
        role = "owner" if other.owner else "may run" if other.may_run else "looks on"
        you = " (you)" if other.who == self.viewer.who else ""
        name = parts.words(f"{escape(other.name)}{you}: {role}", width=280, sizing_mode="fixed")
        if not self.viewer.owner or other.owner:
            return name
        give = not other.may_run
        label = "Let run" if give else "Look on only"
        return pn.Row(name, parts.button(label, lambda: self.engine.allow(other, give), width=110, margin=0))


def data_line(engine: Any) -> str:
    """Return the HTML of what is open and where results go."""
    out = escape(str(engine.out))
    where = f'results in <code title="{out}"><bdi>{out}</bdi></code>'
    session = engine.session
    if session is None:
        return f"no data open, {where}" if engine.store is not None else "no data open"
    particles = sum(session.particle_count(name) for name in session)
    n = len(session.micrographs)
    return f"{particles:,} particles on {n:,} micrograph{'s' * (n != 1)} → {where}"


def now_line(run: Run) -> str:
    """Return the HTML of what is going on: a bar over the piece of work in hand, and the time left."""
    if run.stopping:
        return parts.bar(0, 0, f"stopping {words_of(run)} …")
    if not run.snapshot.works:
        state = "starting" if run.state in ("waiting", "running") else run.state
        return parts.bar(0, 0, f"{words_of(run)}: {state} …")
    work = run.snapshot.works[-1]
    done, left = f"{work.what} {work.done:,} of {work.total:,}", work.seconds_left
    if run.state == "paused":
        return parts.bar(work.done, work.total, f"paused: {done}")
    return parts.bar(work.done, work.total, done if left is None else f"{done}, {duration_left(left)}")


def duration_left(seconds: float) -> str:
    """Return time left in words."""
    return "nearly done" if seconds < 1.5 else f"about {roughly(seconds)} left"
