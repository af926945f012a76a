"""The explorer's Bokeh figures: data sources that are replaced when sliders move, colours for light and dark pages."""

from __future__ import annotations

from typing import Any

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, HoverTool, Label, LinearColorMapper, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from refmotion_nb.numerics.rays import QUIET_A
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.explorer import ExplorerModel, Snapshot, Tried, paths_A
from refmotion_nb.views.explorer_drawing import along, drawn, score_limits
from refmotion_nb.views.explorer_words import place
from refmotion_nb.views.figure_colours import Change, dress, ramp, wear
from refmotion_nb.views.scale import round_down
from refmotion_nb.views.svg import number

SIDE = 500  # px


class MapFigure:
    """Trajectories over the micrograph, coloured by frame; those pinned beneath in grey."""

    def __init__(self, model: ExplorerModel):
        self.name, light = model.exploration.name, palette()  # ``recolour`` has the counterparts
        attrs = model.snapshot.tracks.attrs
        self.width, self.height = float(attrs["width_A"]), float(attrs["height_A"])
        foot = 0.09 * self.height  # room for the scale bar
        tall = round((SIDE - 90) * min(1.4, (self.height + foot) / self.width)) + 70
        self.figure = figure(
            width=SIDE, height=tall, x_axis_label="x (Å)", y_axis_label="y (Å)", tools="pan,wheel_zoom,box_zoom,reset",
            x_range=Range1d(0, self.width), y_range=Range1d(-foot, self.height), title=" ",
        )  # fmt: skip
        self.paths, self.pinned, self.starts, self.bar = (ColumnDataSource(data=d) for d in ({}, {}, {}, {}))
        frames = model.snapshot.tracks.sizes["frame"]
        self.colours = LinearColorMapper(palette=ramp(), low=1, high=frames)
        ends = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1"}
        self.draw(model.snapshot)
        self.beneath = self.figure.segment(**ends, source=self.pinned, line_width=1.2, line_color=light["muted"])
        self.figure.segment(
            **ends, source=self.paths, line_width=1.6, line_color={"field": "frame", "transform": self.colours}
        )
        self.dots = self.figure.scatter("x", "y", source=self.starts, size=4, color=light["text"])
        hover = HoverTool(renderers=[self.dots], tooltips=[("particle, row", "@row"), ("path", "@length{0.00} Å")])
        self.figure.add_tools(hover)
        self.rule = self.figure.segment(**ends, source=self.bar, line_width=3, line_color=light["text"])
        self.length = Label(
            x=0, y=-0.045 * self.height, text="", text_font_size="11px", text_baseline="middle", x_offset=8
        )
        self.figure.add_layout(self.length)
        self.legend = ColorBar(color_mapper=self.colours, title="Frame", width=10, padding=2, title_standoff=6)
        self.figure.add_layout(self.legend, "right")
        self.changes = _dressed(self.figure)
        self.draw(model.snapshot)

    def draw(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        paths, shown, frames = drawn(snapshot)
        at = snapshot.tracks["coordinate"].values[shown]
        number_of = np.broadcast_to((frames[1:] + 1).astype(np.float32), (len(shown), len(frames) - 1)).ravel()
        self.paths.data = {**_segments(at, paths[:, frames], snapshot.magnified), "frame": number_of}
        length = np.linalg.norm(np.diff(paths, axis=1), axis=-1).sum(1)
        self.starts.data = {"x": at[:, 0], "y": at[:, 1], "row": snapshot.tracks["row"].values[shown], "length": length}
        if snapshot.pinned_tracks is None:
            self.pinned.data = {name: np.zeros(0) for name in ("x0", "y0", "x1", "y1")}
        else:
            beneath = paths_A(snapshot.pinned_tracks, snapshot.whole)[shown][:, frames]
            self.pinned.data = _segments(at, beneath, snapshot.magnified)
        self._scale(snapshot.magnified)
        what = "All motion" if snapshot.whole else "Local motion"
        grey = "; pinned in grey" if snapshot.pinned is not None else ""
        self.figure.title.text = f"{what} × {number(snapshot.magnified)}, {self.name}{grey}"

    def _scale(self, magnified: float) -> None:
        length = round_down(0.2 * self.width / magnified)
        y, end = -0.045 * self.height, 0.02 * self.width + length * magnified
        self.bar.data = {"x0": [0.02 * self.width], "y0": [y], "x1": [end], "y1": [y]}
        if hasattr(self, "length"):
            self.length.x, self.length.text = end, f"{number(length)} Å of motion"

    def recolour(self, dark: bool) -> None:
        """Take the colours of a light or a dark page."""
        wear(self.changes, dark)


class TrailFigure:
    """The score, or the local activity, of all that was tried, over strength."""

    def __init__(self, model: ExplorerModel, what: str):
        self.what, light = what, palette()
        label = "Score (lower: better)" if what == "cv_score" else "Local activity (Å)"
        self.figure = figure(
            width=SIDE, height=165 if what == "cv_score" else 185, x_axis_type="log", tools="", toolbar_location=None,
            x_range=Range1d(*model.strengths), y_range=Range1d(0, 1), y_axis_label=label,
            x_axis_label="Strength, (e/Å²)/Å²" if what != "cv_score" else None,
        )  # fmt: skip
        self.figure.xaxis.ticker.desired_num_ticks = 7
        self.figure.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
        self.figure.yaxis.minor_tick_line_color = None
        self.tried, self.line, self.now, self.pinned, self.best = (
            ColumnDataSource(data={"x": [], "y": [], "place": []}) for _ in range(5)
        )
        self.dots = self.figure.scatter("x", "y", source=self.tried, size=4, color=light["c6"], legend_label="tried")
        self.curve = self.figure.line(
            "x", "y", source=self.line, line_width=2, color=light["c0"], legend_label="this balance, distance"
        )
        self.star = self.figure.scatter(
            "x", "y", source=self.best, size=14, marker="star", color=light["text"], legend_label="search's choice"
        )
        self.held = self.figure.scatter(
            "x", "y", source=self.pinned, size=8, marker="square", color=light["c1"], legend_label="pinned"
        )
        self.cross = self.figure.scatter(
            "x", "y", source=self.now, size=11, marker="x", line_width=2, color=light["text"], legend_label="now"
        )
        hover = HoverTool(
            renderers=[self.dots, self.star, self.held],
            tooltips=[("", "@place"), ("score", "@y{0.00000}") if what == "cv_score" else ("Å", "@y{0.00}")],
        )  # fmt: skip
        self.figure.add_tools(hover)
        (legend,) = self.figure.legend
        legend.visible = what != "cv_score"
        if legend.visible:
            legend.orientation, legend.label_text_font_size = "horizontal", "10px"
            legend.glyph_width = legend.glyph_height = 22  # marks take two fifths of it; a smaller cross is a blot
            legend.spacing, legend.padding, legend.margin, legend.border_line_alpha = 4, 0, 0, 0
            self.figure.add_layout(legend, "below")
        self._pinned_item = next(item for item in legend.items if item.label.value == "pinned")
        if model.at_best is None:
            next(item for item in legend.items if item.label.value == "search's choice").visible = False
        self.best.data = _rows([model.at_best] if model.at_best else [], what)
        self.changes = _dressed(self.figure)
        self.draw(model.snapshot)

    def draw(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self.tried.data = _rows(snapshot.trail, self.what)
        self.line.data = _rows(along(snapshot), self.what)
        self.now.data = _rows([snapshot.now], self.what)
        self.pinned.data = _rows([snapshot.pinned] if snapshot.pinned else [], self.what)
        self._pinned_item.visible = snapshot.pinned is not None
        values = [getattr(one, self.what) for one in snapshot.trail]
        low, high = (min(values), max(values)) if self.what == "cv_score" else (0.0, max(*values, 2 * QUIET_A))
        if self.what == "cv_score":
            most = score_limits(values)
            low, high = min(low, most[0]), max(high, most[1])
        room = 0.08 * (high - low)
        self.figure.y_range.update(start=low - room, end=high + room)

    def recolour(self, dark: bool) -> None:
        """Take the colours of a light or a dark page."""
        wear(self.changes, dark)


def _dressed(plot: Any) -> list[Change]:
    """Give a figure the colours of a light page and small labels; return what changes on a dark one."""
    plot.axis.axis_label_text_font_size = "12px"
    return dress(plot)


def _segments(at: np.ndarray, paths: np.ndarray, magnified: float) -> dict[str, np.ndarray]:
    place_of = (at[:, None] + magnified * paths).astype(np.float32)
    ends = place_of[:, :-1, 0], place_of[:, :-1, 1], place_of[:, 1:, 0], place_of[:, 1:, 1]
    return {name: np.ascontiguousarray(one).ravel() for name, one in zip(("x0", "y0", "x1", "y1"), ends)}


def _rows(tried: Any, what: str) -> dict[str, Any]:
    some: list[Tried] = list(tried)
    return {
        "x": [t.hyperparameters.strength for t in some], "y": [getattr(t, what) for t in some],
        "place": [place(t.hyperparameters) for t in some],
    }  # fmt: skip
