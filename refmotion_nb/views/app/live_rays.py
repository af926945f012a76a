"""Rays of a search as Bokeh figures that grow: data sources with all rays from the start, filled in as rays step outwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from bokeh.models import ColorBar, ColumnDataSource, HoverTool, Label, LinearColorMapper, LogTicker, Range1d, Span
from bokeh.plotting import figure

from refmotion_nb.numerics.rays import FIRST_STRENGTH, QUIET_A, strengths
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.figure_colours import dress
from refmotion_nb.views.svg import number

ROW_PX = 15  # of the map of rays, for each ray; at least
GAP = 0.8  # rows between rays of different distances
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot", (8, 2, 2, 2, 2, 2))  # of the distances
ACTIVITIES_A = (0.01, 10.0)  # drawn before there are any; none smaller is
DIM = 0.13  # opacity of rays that are not looked at
_STRENGTH = "Total prior strength, (e/Å²)/Å²"
_HOVER = [("balance", "@balance°"), ("distance", "@distance Å")]


class Rays:
    """Where the rays of a search lie on a page, and what is drawn of them so far."""

    def __init__(self, balance: np.ndarray, distance: np.ndarray, max_strength: float):
        """Take balance (ray,) degrees and distance (ray,) Å of all rays, none of which has stepped yet."""
        self.balance, self.distance, self.max_strength = balance, distance, max_strength
        self.n_steps = len(strengths(max(max_strength, FIRST_STRENGTH)))
        self.order = np.lexsort((balance, distance))
        groups = np.searchsorted(np.unique(distance), distance[self.order])
        self.row = np.empty(len(balance))
        self.row[self.order] = np.arange(len(balance)) + GAP * groups  # (ray,) height on the map

    def __len__(self) -> int:
        return len(self.balance)

    def same(self, other: Rays) -> bool:
        """Return whether the same rays are drawn the same."""
        return len(self) == len(other) and self.max_strength == other.max_strength and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("balance", "distance")
        )  # fmt: skip

    def padded(self, table: xr.Dataset | None, name: str) -> np.ndarray:
        """Return a variable (ray, step) of an unfinished or finished search; NaN for steps that were not taken."""
        values = np.zeros((len(self), 0)) if table is None else table[name].values
        out = np.full((len(self), max(self.n_steps, values.shape[1])), np.nan)
        out[:, : values.shape[1]] = values
        return out

    def steps(self, table: xr.Dataset | None) -> dict[str, np.ndarray]:
        """Return every step of every ray (ray · step), for the map."""
        strength = self.padded(table, "strength")
        each = {"y": self.row, "balance": self.balance, "distance": self.distance}
        return {
            "x": strength.ravel(), **{name: np.repeat(values, strength.shape[1]) for name, values in each.items()},
            "score": self.padded(table, "cv_score").ravel(), "activity": self.padded(table, "activity_local").ravel(),
        }  # fmt: skip

    def curves(self, table: xr.Dataset | None, shown: float | None = None) -> dict[str, list[Any]]:
        """Return a curve for each ray; all but those of the distance ``shown`` are dimmed."""
        alpha = [1.0 if shown is None or z == shown else DIM for z in self.distance]
        return {
            "x": list(self.padded(table, "strength")), "score": list(self.padded(table, "cv_score")),
            "activity": list(self.padded(table, "activity_local")), "alpha": alpha,
        }  # fmt: skip

    def ends(self, table: xr.Dataset | None) -> dict[str, list[Any]]:
        """Return for each ray its last step and why it ended; NaN and nothing while it walks."""
        strength, score, activity = (self.padded(table, name) for name in ("strength", "cv_score", "activity_local"))
        taken = np.isfinite(strength).sum(1)
        reason = [""] * len(self) if table is None else [str(one) for one in table["reason"].values]
        retired = np.zeros(len(self), bool) if table is None else table["retired"].values.astype(bool)
        ended = [bool(why) and n > 0 for why, n in zip(reason, taken)]
        last = np.arange(len(self)), np.maximum(taken - 1, 0)
        at = {"x": strength[last], "score": score[last], "activity": activity[last], "y": self.row}
        return {
            **{name: np.where(ended, values, np.nan).tolist() for name, values in at.items()},
            "reason": [why.removesuffix(" reached") if over else "" for why, over in zip(reason, ended)],  # has little room
            "marker": ["x" if gone else "triangle" for gone in retired],
        }  # fmt: skip

    def best(self, table: xr.Dataset | None) -> dict[str, list[float]]:
        """Return the best step so far; nothing before there is one."""
        ray, step = (
            (-1, -1) if table is None else (int(table.attrs.get(f"best_{name}", -1)) for name in ("ray", "step"))
        )
        if table is None or not (0 <= ray < len(self) and 0 <= step < table.sizes["step"]):
            return {name: [] for name in ("x", "y", "score", "activity", "balance", "distance")}
        one = table.isel(ray=ray, step=step)
        return {
            "x": [float(one["strength"])], "y": [float(self.row[ray])], "score": [float(one["cv_score"])],
            "activity": [float(one["activity_local"])], "balance": [float(self.balance[ray])],
            "distance": [float(self.distance[ray])],
        }  # fmt: skip


class LiveRays:
    """A map of the rays, and their scores and activities against strength: one session's figures."""

    def __init__(self, rays: Rays, dark: bool = False):
        """Draw rays that have not stepped yet, in the colours of a light or a dark page."""
        self.rays = rays
        self.look = palette(dark)
        self.ramp = [self.look[f"f{i}"] for i in range(8)]
        self.shown: float | None = None
        self.table: xr.Dataset | None = None
        self.steps, self.ends, self.star = (ColumnDataSource(one(None)) for one in (rays.steps, rays.ends, rays.best))
        balances, distances = np.unique(rays.balance), np.unique(rays.distance)
        rank = np.searchsorted(balances, rays.balance) / max(len(balances) - 1, 1)
        self._fixed = {
            "colour": [self.ramp[round(6 * one)] for one in rank], "balance": rays.balance, "distance": rays.distance,
            "dash": [DASHES[i % len(DASHES)] for i in np.searchsorted(distances, rays.distance)],
        }  # fmt: skip
        self.lines = ColumnDataSource({**rays.curves(None), **self._fixed})
        self.map = self._map()
        self.score = self._curves("score", "Score (lower is better)", "linear", Range1d(-0.05, 0.0))
        self.activity = self._curves("activity", "Local activity (Å)", "log", Range1d(*ACTIVITIES_A))
        self._below()
        for plot in (self.map, self.score, self.activity):
            plot.xaxis.ticker = LogTicker(desired_num_ticks=8, num_minor_ticks=0)
            dress(plot, dark)
        self._fit()

    def update(self, table: xr.Dataset | None, shown: float | None = None) -> None:
        """Draw what was found so far, with the rays of the distance ``shown`` before the others."""
        if table is self.table and shown == self.shown:
            return
        if table is not self.table:
            self.steps.data, self.ends.data, self.star.data = (
                one(table) for one in (self.rays.steps, self.rays.ends, self.rays.best)
            )
        self.table, self.shown = table, shown
        self.lines.data = {**self.rays.curves(table, shown), **self._fixed}
        self._fit()

    def _fit(self) -> None:
        """Let axes and colours hold what there is."""
        score, activity = (one[np.isfinite(one)] for one in (self.steps.data["score"], self.steps.data["activity"]))
        if not score.size:
            self.bar.visible = False
            return
        low, high = float(score.min()), max(float(np.percentile(score, 95)), float(score.min()) + 1e-9)
        self.mapper.update(low=low, high=high)
        self.bar.visible = True
        room = 0.08 * max(float(np.ptp(score)), 1e-9)
        self.score.y_range.update(start=low - 1.5 * room, end=float(score.max()) + room)
        least, most = max(float(activity.min()), ACTIVITIES_A[0]), float(activity.max())
        self.activity.y_range.update(start=min(least, QUIET_A) / 1.6, end=max(most, 2 * QUIET_A) * 1.6)

    def _map(self) -> Any:
        rays = self.rays
        room = 2000.0  # of strength, for why rays end
        plot = figure(
            height=int(max(470, 95 + ROW_PX * (rays.row.max() + 2))), sizing_mode="stretch_width", x_axis_type="log",
            x_range=Range1d(FIRST_STRENGTH / 1.6, rays.max_strength * room), tools="",
            y_range=Range1d(-1, float(rays.row.max()) + 1), x_axis_label=_STRENGTH, toolbar_location=None,
            y_axis_label="Ray: balance, correlation distance", output_backend="canvas",
        )  # fmt: skip
        plot.yaxis.ticker = rays.row.tolist()
        plot.yaxis.major_label_overrides = {
            float(y): f"{number(b)}°, {number(z)} Å" for y, b, z in zip(rays.row, rays.balance, rays.distance)
        }
        plot.ygrid.grid_line_alpha = 0.6
        plot.xgrid.grid_line_color = None
        self.mapper = LinearColorMapper(palette=self.ramp, low=-1.0, high=0.0)
        dots = plot.scatter(
            "x",
            "y",
            source=self.steps,
            size=9,
            line_color=None,
            fill_color={"field": "score", "transform": self.mapper},
        )
        ends = plot.scatter(
            "x",
            "y",
            marker="marker",
            source=self.ends,
            size=11,
            fill_color=None,
            line_color=self.look["text"],
            line_width=2,
        )
        plot.text(
            "x", "y", text="reason", source=self.ends, x_offset=10, text_baseline="middle", text_font_size="11px",
            text_color=self.look["muted"],
        )  # fmt: skip
        self._star(plot, "y")
        self.bar = ColorBar(
            color_mapper=self.mapper, title="Score of a step (lower is better)", orientation="horizontal", height=8,
            title_standoff=2, padding=4, margin=0, location=(0, 0),
        )  # fmt: skip
        plot.add_layout(self.bar, "above")
        values = [("strength", "@x{0.000}"), ("score", "@score{0.00000}"), ("local activity", "@activity{0.000} Å")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[*_HOVER, *values]),
                       HoverTool(renderers=[ends], tooltips=[("ended", "@reason")]))  # fmt: skip
        return plot

    def _curves(self, what: str, label: str, scale: Any, heights: Range1d) -> Any:
        plot = figure(
            height=224, sizing_mode="stretch_width", x_axis_type="log", y_axis_type=scale, tools="", toolbar_location=None,
            x_range=Range1d(FIRST_STRENGTH / 1.6, self.rays.max_strength * 1.6),
            x_axis_label=_STRENGTH, y_axis_label=label, y_range=heights,
        )  # fmt: skip
        lines = plot.multi_line(
            "x", what, source=self.lines, line_color="colour", line_dash="dash", line_alpha="alpha", line_width=2,
            hover_line_alpha=1.0, hover_line_color="colour",
        )  # fmt: skip
        plot.scatter(
            "x",
            what,
            marker="marker",
            source=self.ends,
            size=8,
            fill_color=None,
            line_color=self.look["text"],
            line_width=1.5,
        )
        self._star(plot, what)
        plot.add_tools(HoverTool(renderers=[lines], tooltips=_HOVER, line_policy="nearest"))
        return plot

    def _star(self, plot: Any, height: str) -> None:
        star = plot.scatter(
            "x", height, marker="star", source=self.star, size=20, fill_color=self.look["card"],
            line_color=self.look["text"], line_width=1.6,
        )  # fmt: skip
        values = [
            ("best", "score @score{0.00000}"),
            ("strength", "@x{0.000}"),
            ("local activity", "@activity{0.000} Å"),
        ]
        plot.add_tools(HoverTool(renderers=[star], tooltips=[*values, *_HOVER]))

    def _below(self) -> None:
        """Mark below which activity rays retire."""
        line = Span(location=QUIET_A, dimension="width", line_dash="dashed", line_color=self.look["muted"])
        text = Label(
            x=FIRST_STRENGTH, y=QUIET_A, y_offset=3, text=f"rays retire below {QUIET_A} Å", text_font_size="11px",
            text_color=self.look["muted"],
        )  # fmt: skip
        self.activity.renderers.extend([line, text])


def legend(rays: Rays) -> str:
    """Return the HTML of what colours, dashes and marks mean."""
    balances, distances = np.unique(rays.balance), np.unique(rays.distance)
    steps = [f"var(--f{round(6 * i / max(len(balances) - 1, 1))})" for i in range(len(balances))]
    coloured = [_chip(f"{number(b)}°", colour) for b, colour in zip(balances, steps)]
    arrays = ("", "6 4", "2 3", "2 3 6 3", "6 3 2 3", "8 2 2 2 2 2")
    dashed = [_chip(f"{number(z)} Å", "var(--text)", arrays[i % len(arrays)]) for i, z in enumerate(distances)]
    marks = "★ best step, from which the prior is refined &ensp; × retired, no motion left &ensp; △ maximum strength reached"
    return f"<small>Balance: {' '.join(coloured)} &emsp;Distance: {' '.join(dashed)}<br>{marks}</small>"


def _chip(text: str, colour: str, dash: str = "") -> str:
    line = f'<line x1="0" x2="26" y1="5" y2="5" stroke="{colour}" stroke-width="2.2" stroke-dasharray="{dash}"/>'
    return f'<span style="white-space: nowrap"><svg width="26" height="10" aria-hidden="true">{line}</svg> {text}</span>&ensp;'
