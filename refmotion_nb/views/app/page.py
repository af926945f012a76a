"""A page of the app: what one browser (or one notebook cell) shows of the engine."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import panel as pn
from bokeh.models import CustomJS

from refmotion_nb.views.app import parts
from refmotion_nb.views.app.design import DARK, Look, Surroundings, making, variables
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.header import Header
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.app.tabs import TABS

POLL_MS = 250
AGAIN_S = 2.0  # until what could not be read is looked at again
SENT_MS = 20  # in which a browser is sent what there is
QUERY = "tab"  # of the address: which tab is in front, also when the page is reloaded
_NOTED = f"""
const address = new URL(location);
address.searchParams.set("{QUERY}", cb_obj.labels[cb_obj.active]);
history.replaceState(null, "", address);
scrollTo(0, 0);  // not where the tab before was
"""
_LOST = "document.querySelector('.rm-lost').hidden = false"


class Page:
    """Header and tabs; looks at the engine four times a second and redraws what is in front when something changed."""

    def __init__(self, engine: Engine, viewer: Viewer, dark: bool = False, served: bool = False):
        """Make the widgets; ``served`` to a browser of its own, not into a notebook."""
        self.engine = engine
        self.viewer = viewer
        self.dark = dark
        self._tabs: dict[int, Tab] = {}
        self.header = Header(engine, viewer, dark, served)
        self.front = pn.widgets.RadioButtonGroup(
            options={kind.title: i for i, kind in enumerate(TABS)},
            value=0,
            css_classes=["rm-tabs"],
            margin=(2, 0, 0, 0),
        )
        self.front._debounce = 0  # ms; Panel would wait for 50 whether more is clicked
        self.front.param.watch(lambda _: self._turn(), "value")
        if served:
            self.front.jscallback(value=_NOTED)
        self.opening = parts.words("opening …", visible=False)
        self.body = pn.Column(self.opening, sizing_mode="stretch_width", css_classes=["rm-main"])
        look = Look(theme=DARK if dark else "default")  # a document of ours applies it by itself
        self.layout = pn.Column(
            pn.Column(self.header.view, self.front, sizing_mode="stretch_width", css_classes=["rm-top"]), self.body,
            sizing_mode="stretch_width", css_classes=["rm-app"], design=look, hooks=[] if served else [look.dress],
            stylesheets=[f":host {{ {variables(dark)} }} :host(.rm-dark) {{ {variables(dark=True)} }}"],
        )  # fmt: skip
        if not served and not dark:
            around = Surroundings(width=0, height=0, margin=0)
            around.param.watch(lambda event: self.recolour(event.new), "dark")
            self.layout.append(around)
        self._seen: dict[int, Any] = {}
        self._looked = 0.0  # when something was last brought up to date, s
        self._served = served
        self._turn()

    @property
    def active(self) -> int:
        """Which tab is in front."""
        return int(self.front.value)

    def tab(self, i: int) -> Tab:
        """Return a tab, made when it is first looked at."""
        if i not in self._tabs:
            with making(self.dark):
                self._tabs[i] = TABS[i](self.engine, self.viewer)
            self._tabs[i].served = self._served
        return self._tabs[i]

    def _turn(self) -> None:
        """Bring another tab to the front; those that were there once are only hidden, so that they come back at once.

        One that is new takes a while to make: a browser is told so first.
        """
        new = self.active not in self._tabs
        with pn.io.hold():
            self.opening.visible = new
            for i, tab in self._tabs.items():
                tab.view.visible = i == self.active
            if not new:
                self.refresh(force=True)
        if new:
            self._soon(self._fill)

    def _soon(self, call: Callable[[], None]) -> None:
        """Call once the browser has been sent what there is now; at once where there is no browser of its own."""
        doc = pn.state.curdoc
        if not self._served or doc is None or doc.session_context is None:
            call()
        elif pn.state.loaded:
            doc.add_timeout_callback(call, SENT_MS)  # at the next tick nothing is sent yet
        else:
            pn.state.onload(call)

    def _fill(self) -> None:
        """Put the tab in front into the page, if it is not there yet."""
        if self.active in self._tabs:
            return
        view = self.tab(self.active).view
        with pn.io.hold():
            self.refresh(
                force=True
            )  # before it is sent: what changes under a hand that clicks already undoes the click
            self.body.append(view)
            self.opening.visible = False

    def refresh(self, force: bool = False) -> None:
        """Bring the header and the tab in front up to date, if something changed since they were drawn."""
        for run in self.engine.runs[-20:]:
            run.watched = True
        stamp, active = (self.engine.stamp(), self.viewer.may_run), self.active
        if not (force or self._seen.get(active) != stamp or self._again(active)):
            return
        self._seen[active], self._looked = stamp, monotonic()
        with pn.io.hold():
            self.header.refresh()
            if active in self._tabs:
                self._tabs[active].update()

    def _again(self, active: int) -> bool:
        """Return whether it is time to look again at what could not be read: files come back without the engine's doing."""
        tab = self._tabs.get(active)
        return tab is not None and tab.unread and monotonic() - self._looked > AGAIN_S

    def follow(self) -> Page:
        """Keep the page up to date from now on, until its browser goes away."""
        named = pn.state.session_args.get(QUERY, [self.engine.first_tab.encode()])[0].decode(errors="replace")
        self.front.value = self.front.options.get(named, self.active)
        self.callback = pn.state.add_periodic_callback(self.refresh, period=POLL_MS)
        if pn.state.curdoc is not None and pn.state.curdoc.session_context is not None:
            pn.state.onload(lambda: self.engine.join(self.viewer))  # not before a browser is really there
            pn.state.on_session_destroyed(lambda _: self.close())
            pn.state.curdoc.js_on_event("connection_lost", CustomJS(code=_LOST))
        else:
            self.engine.join(self.viewer)
        return self

    def recolour(self, dark: bool) -> None:
        """Make everything anew for a dark notebook, or a light one."""
        self.dark, self.layout.css_classes = dark, ["rm-app", *(["rm-dark"] if dark else [])]
        for tab in self._tabs.values():
            tab.close()
        self._tabs, self.body[:] = {}, [self.opening]
        self._fill()

    def end(self) -> None:
        """Look at the engine no more, and say so; what runs goes on."""
        self.callback.stop()
        self.close()
        self.layout[:] = [parts.words("The app was opened again on these data; it goes on there.")]

    def close(self) -> None:
        """Forget the viewer; what runs goes on."""
        self.engine.leave(self.viewer)
        for tab in self._tabs.values():
            tab.close()
