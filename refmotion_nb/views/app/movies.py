"""Movies and particles to browse: one micrograph at a time, read when it is looked at."""

from __future__ import annotations

from typing import Any

import panel as pn

from refmotion_nb.views import plots  # here: an import in two threads at once fails
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.engine import Engine
from refmotion_nb.views.app.figure import Figure

SUM, FRAME = "sum of frames", "one frame"


class MovieBrowser:
    """A micrograph's picture with its particles, and steps to the next."""

    def __init__(self, engine: Engine, figure: Figure):
        """Make the widgets; nothing is read before data are open and the tab is looked at. ``figure`` is for the picture."""
        self.engine = engine
        self.figure = figure
        self.name = pn.widgets.Select(label="micrograph", options=[], width=300, margin=(2, 5))
        self.back = parts.button("◀ Previous", lambda: self._step(-1), width=100, margin=(23, 3, 2, 3))
        self.on = parts.button("Next ▶", lambda: self._step(1), width=90, margin=(23, 3, 2, 3))
        self.what = pn.widgets.RadioButtonGroup(options=[SUM, FRAME], value=SUM, width=200, margin=(23, 3, 2, 3))
        self.frame = pn.widgets.IntSlider(label="frame", start=1, end=2, value=1, width=220, visible=False)
        row = pn.FlexBox(self.name, self.back, self.on, self.what, self.frame, sizing_mode="stretch_width")
        self.about = parts.words("")
        self.view = parts.card("Movies and particles", row, self.about, self.figure.view, visible=False)
        for widget in (self.name, self.what):
            widget.param.watch(lambda _: self.refresh(), "value")
        self.frame.param.watch(lambda _: self.refresh(), "value_throttled")
        self._session: Any = None

    def refresh(self) -> None:
        """Show the picture that is chosen; it is made in a thread."""
        session = self.engine.session
        self.view.visible = session is not None
        if session is None:
            self.figure.clear()
            return
        if session is not self._session:
            self._session = session
            names = list(session)
            self.name.param.update(options=names, value=names[0] if names else None)
        name = self.name.value
        if name is None:
            return
        movie, particles = session.micrographs[name]
        at = self.name.options.index(name)
        self.back.disabled, self.on.disabled = at == 0, at == len(self.name.options) - 1
        one = self.what.value == FRAME
        self.frame.param.update(
            end=max(movie.n_frames, 2), value=min(int(self.frame.value or 1), movie.n_frames), visible=one
        )
        dose = movie.n_frames * movie.dose_per_frame_e_A2
        self.about.object = (
            f"<small>{at + 1} of {len(self.name.options)}: {particles.sizes['particle']} particles, "
            f"{movie.width} × {movie.height} px of {movie.pixel_size_A:.4g} Å, {movie.n_frames} frames, "
            f"{dose:.3g} e/Å² in all</small>"
        )
        number = int(self.frame.value or 1) if one else 0
        self.figure.show((session, name, number), lambda: _picture(session, name, number))

    def _step(self, by: int) -> None:
        at = self.name.options.index(self.name.value) + by
        self.name.value = self.name.options[min(max(at, 0), len(self.name.options) - 1)]


def _picture(session: Any, name: str, number: int) -> Any:
    return plots.frame(session, name, number) if number else plots.micrograph(session, name)
