"""The prior explorer as a part of a Panel app: sliders beside Bokeh figures that are sent what changes only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import panel as pn
import param
from bokeh.models import CustomJSTickFormatter
from tornado.ioloop import IOLoop

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.views import explorer_drawing as drawing
from refmotion_nb.views.app.engine import Viewer
from refmotion_nb.views.app.explorer_figures import MapFigure, TrailFigure
from refmotion_nb.views.app.rights import seat
from refmotion_nb.views.explorer import ExplorerModel
from refmotion_nb.views.explorer_sliders import RELION, Slider, Sliders
from refmotion_nb.views.explorer_style import style_sheet
from refmotion_nb.views.svg import number

_UNITS = {"strength": "(e/Å²)/Å²", "distance_A": "Å", "s_vel": "Å per e/Å²", "s_div": "Å", "s_acc": "Å per e/Å²"}


def explorer_pane(model: ExplorerModel, dark: bool | None = None, viewer: Viewer | None = None) -> ExplorerPane:
    """Return a view of an explorer for one browser session; ``dark`` is the session's theme unless given.

    A ``viewer`` who looks on moves nothing; without one, everybody does.
    """
    return ExplorerPane(model, viewer, dark=pn.config.theme == "dark" if dark is None else dark)


class ExplorerPane(pn.viewable.Viewer):
    """One session's view; several may show one model, and are in step then."""

    dark = param.Boolean(default=False, doc="Colours for a dark page.")

    def __init__(self, model: ExplorerModel, viewer: Viewer | None = None, **params: Any):
        super().__init__(**params)
        self.model = model
        self.hand: Any = model if viewer is None else seat(model, viewer)  # the model as the viewer may move it
        self.places = Sliders(self.hand)
        self._placing = False  # sliders of this session are moved by us, on its own loop
        self._told, self._lock = False, Lock()
        self._served: tuple[IOLoop, Any] | None = None  # the loop and the document of a page that a server shows
        self.map = MapFigure(model)
        self.trails = TrailFigure(model, "cv_score"), TrailFigure(model, "activity_local")
        self.sliders = {name: _slider(name, one) for name, one in self.places.all.items()}
        self.best = pn.widgets.Button(label="Back to best", width=120)
        self.pin = pn.widgets.Toggle(label="Pin", width=90)
        self.motion = pn.widgets.RadioButtonGroup(options={"Local motion": False, "All motion": True}, width=230)
        self.magnified = pn.widgets.Select(
            label="Magnified", width=110,
            options={f"× {number(m)}": m for m in model.magnifications}, value=model.snapshot.magnified,
        )  # fmt: skip
        self.numbers, self.text = (pn.pane.HTML(sizing_mode="stretch_width") for _ in range(2))
        self._layout = self._arranged()
        self._connect()
        self._recolour()
        self.draw()

    def __panel__(self) -> Any:
        return self._layout

    def _arranged(self) -> Any:
        ours = [self.sliders[name] for name in self.sliders if name not in RELION]
        relion = [self.sliders[name] for name in RELION]
        shown = pn.Row(self.motion, self.magnified, align="end")
        left = pn.Column(shown, self.map.figure, width=515)
        sliders = pn.Row(pn.Column(*ours, width=250), pn.Column(*relion, width=250))
        right = pn.Column(
            sliders, pn.Row(self.best, self.pin), self.numbers, *(trail.figure for trail in self.trails), width=510
        )
        beside = pn.Column(self.text, styles={"flex": "1 1 240px", "min-width": "240px"})  # beneath, where it is narrow
        return pn.FlexBox(left, right, beside, gap="0 12px", sizing_mode="stretch_width")

    def _connect(self) -> None:
        for name, slider in self.sliders.items():
            slider.param.watch(self._by_hand(partial(self._moved, name)), "value")
        self.best.param.watch(self._by_hand(lambda _: self._place(self.hand.back_to_best())), "clicks")
        self.pin.param.watch(self._by_hand(lambda new: self.hand.pin() if new else self.hand.unpin()), "value")
        self.motion.param.watch(self._by_hand(lambda new: self.hand.show(whole=new)), "value")
        self.magnified.param.watch(self._by_hand(lambda new: self.hand.show(magnified=new)), "value")
        document = pn.state.curdoc
        if document is not None and document.session_context is not None:
            self._served = IOLoop.current(), document
            document.on_session_destroyed(lambda _: self.stop())
        self.stop = self.model.watch(self._tell)  # ends following the model

    def _by_hand(self, act: Callable[[Any], Any]) -> Callable[[Any], None]:
        def changed(event: Any) -> None:
            if not self._placing:
                try:
                    act(event.new)
                except InputError:  # the viewer looks on
                    self.draw()

        return changed

    def _moved(self, name: str, position: float) -> None:
        h = self.places.by_hand(name, position)
        if h is not None:
            self._place(h, but=name)

    def _place(self, h: Hyperparameters, but: str = "") -> None:
        self._placing = True
        try:
            for name, position in self.places.to_place(h, but).items():
                self.sliders[name].value = position
        finally:
            self._placing = False

    def _tell(self) -> None:
        """Have the newest snapshot drawn on this session's loop; from any thread.

        The document is asked on that loop: what it is asked by another thread just when it is held no more, it forgets.
        """
        if self._served is None:
            self.draw()
            return
        with self._lock:
            if self._told:
                return
            self._told = True
        loop, document = self._served
        loop.add_callback(document.add_next_tick_callback, partial(self._drawn, document))

    def _drawn(self, document: Any) -> None:
        with self._lock:
            self._told = False
        with pn.io.server.set_curdoc(document):
            self.draw()

    def draw(self) -> None:
        """Show the newest snapshot, in this session; all is sent in one message."""
        with pn.io.hold():
            self._draw()

    def _draw(self) -> None:
        snapshot = self.model.snapshot
        if snapshot.now.hyperparameters == self.model.wanted:  # else a slider is being moved
            self._place(self.model.wanted)
        self._placing = True  # what another session chose is shown here too
        try:
            self.pin.value = snapshot.pinned is not None
            self.motion.value, self.magnified.value = snapshot.whole, snapshot.magnified
        finally:
            self._placing = False
        self.map.draw(snapshot)
        for trail in self.trails:
            trail.draw(snapshot)
        self.numbers.object = self._styled(f'<div class="numbers">{drawing.numbers(snapshot)}</div>')
        self.text.object = self._styled("", drawing.text(self.model, snapshot))

    def _styled(self, body: str, more: str = "") -> str:
        return f"{style_sheet(self.dark)}{drawing.html(body) if body else ''}{more}"

    @param.depends("dark", watch=True)
    def _recolour(self) -> None:
        for figure in (self.map, *self.trails):
            figure.recolour(self.dark)
        if self.numbers.object:
            self.draw()


def _slider(name: str, one: Slider) -> Any:
    low, high = one.ends
    unit = _UNITS.get(name, "")
    whole = "v < 9999.5 ? v.toFixed(0) : v.toLocaleString('en', {maximumFractionDigits: 0})"
    code = f"const v = 10 ** tick; return (v < 1000 ? v.toPrecision(3) : {whole}) + ' {unit}'"
    formatter = CustomJSTickFormatter(code=code if one.log else "return tick.toFixed(0) + '°'")
    return pn.widgets.FloatSlider(
        label=one.label, start=low, end=high, step=one.step, value=low, format=formatter, width=235
    )
