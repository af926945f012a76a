"""Trajectories over the micrograph, and the motion of the micrograph as a whole."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.views import svg
from refmotion_nb.views.figure_colours import ramp
from refmotion_nb.views.plots import look
from refmotion_nb.views.plots.look import Runs
from refmotion_nb.views.scale import MOST_PARTICLES, percentile, round_down, spread

_STAGE = "a micrograph (the store's tracks groups)"
_FACTORS = (1, 1.5, 2, 3, 5, 7)
_SIDE = 320  # px of a micrograph: two of them and a colour bar fit a notebook
_COLUMNS = 2
_WIDTH = 270  # px of a panel over frames: two of them and a legend with names of runs fit a notebook


def trajectories(tracks: Runs, magnified: float | None = None) -> hv.Layout:
    """Draw all motion of each particle over the micrograph, ``magnified`` times (or as it suits), coloured by frame.

    Circles show one standard deviation on the same scale where the result has ``shift_std``.

    Raises
    ------
    InputError
        ``magnified`` is not above 0.
    """
    return _maps(tracks, {name: run["shift"].values for name, run in _runs(tracks).items()}, "all motion", magnified)


def local_trajectories(tracks: Runs, magnified: float | None = None) -> hv.Layout:
    """Draw what each particle does beyond the mean of all particles in each frame, like ``trajectories``.

    The mean can be told apart from what particles do alone, however a run shares it out between rigid, common and local motion.
    """
    paths = {}
    for name, run in _runs(tracks).items():
        shift = run["shift"].transpose("particle", "frame", "axis").values
        paths[name] = shift - shift.mean(0)
    return _maps(tracks, paths, "local motion", magnified)


def motion(tracks: Runs) -> hv.Layout:
    """Draw rigid motion of the micrograph per frame, as motion correction found it and with the common correction to it."""
    items = []
    for axis in ("x", "y"):
        curves: list[Any] = []
        for i, (name, run) in enumerate(look.named(tracks).items()):
            look.require(run, _STAGE, "rigid", "common")
            rigid, common = (run[v].sel(axis=axis).values for v in ("rigid", "common"))
            frame = np.arange(1, len(rigid) + 1)
            dims = [hv.Dimension(("number", "Frame"), unit="number"),
                    hv.Dimension((f"whole_{axis}", f"Motion in {axis}"), unit="Å")]  # fmt: skip
            for values, text, dash in ((rigid, "rigid", "dashed"), (rigid + common, "with common correction", "solid")):
                curves.append(look.styled(hv.Curve((frame, values), *dims, label=look.joined(name, text)), "Curve",
                                          color=look.category(i), line_dash=dash, line_width=2, tools=["hover"]))  # fmt: skip
        legend = {"show_legend": axis == "y", "legend_position": "right", "frame_width": _WIDTH}
        items.append(look.overlay(curves, title=f"Whole micrograph, {axis}", padding=0.05, **legend))
    return look.panels(items, 2)


def path(tracks: Runs, particle: int = 0) -> hv.Layout:
    """Draw x and y of one particle (counted from 0) against frame, each run about its own median: where it was picked is free.

    Raises
    ------
    InputError
        There is no such particle.
    """
    runs = _runs(tracks)
    least = min(run.sizes["particle"] for run in runs.values())
    if not 0 <= particle < least:
        raise InputError(f"there is no particle {particle}; they count from 0 to {least - 1}")
    return look.panels([_along(runs, particle, axis) for axis in ("x", "y")], 2)


def _along(runs: dict[str, xr.Dataset], particle: int, axis: str) -> hv.Overlay:
    curves = []
    for i, (name, run) in enumerate(runs.items()):
        shift = run["shift"].isel(particle=particle).sel(axis=axis).values
        dims = [hv.Dimension(("number", "Frame"), unit="number"),
                hv.Dimension((f"path_{axis}", f"Displacement in {axis}, from its median"), unit="Å")]  # fmt: skip
        curve = hv.Curve((np.arange(1, len(shift) + 1), shift - np.median(shift)), *dims, label=name)
        curves.append(look.styled(curve, "Curve", color=look.category(i), line_width=2, tools=["hover"]))
    return look.overlay(curves, title=f"Particle {particle}, {axis}", padding=0.05, legend_position="right", frame_width=_WIDTH,
                        show_legend=axis == "y" and len(runs) > 1)  # fmt: skip


def _runs(tracks: Runs) -> dict[str, xr.Dataset]:
    runs = {name: look.whole(run, "particle") for name, run in look.named(tracks).items()}
    for run in runs.values():
        look.require(run, _STAGE, "shift", "coordinate")
    return runs


def _maps(tracks: Runs, paths: dict[str, np.ndarray], what: str, magnified: float | None) -> hv.Layout:
    if magnified is not None and not magnified > 0:
        raise InputError(f"magnified is {magnified}; give a number above 0, or leave it out")
    runs = _runs(tracks)
    paths = {name: one - one[:, :1] for name, one in paths.items()}
    scale = magnified or min(_suitable(runs[name], one) for name, one in paths.items())
    frames = max(run.sizes["frame"] for run in runs.values())  # colours mean the same in all panels
    items = [_map(name, runs[name], one, what, scale, frames, i % _COLUMNS == min(len(paths), _COLUMNS) - 1)
             for i, (name, one) in enumerate(paths.items())]  # fmt: skip
    return look.panels(items, _COLUMNS)


def _size(run: xr.Dataset) -> tuple[float, float]:
    most = run["coordinate"].values.max(0)
    return float(run.attrs.get("width_A", most[0])), float(run.attrs.get("height_A", most[1]))


def _suitable(run: xr.Dataset, paths: np.ndarray) -> float:
    """Return a magnification under which long trajectories span an eighth of the micrograph."""
    length = percentile(np.ptp(paths, axis=1).max(-1), 90)
    return max(1.0, round_down(0.12 * _size(run)[0] / length, _FACTORS)) if length > 0 else 1.0


def _map(name: str, run: xr.Dataset, paths: np.ndarray, what: str, scale: float, frames: int, bar: bool) -> hv.Overlay:
    shown = spread(len(paths), MOST_PARTICLES)
    at = run["coordinate"].values[shown]
    drawn = at[:, None] + scale * paths[shown]  # (particle, frame, 2) Å of the picture
    width, height = _size(run)
    x, y = (hv.Dimension((axis, axis), unit="Å") for axis in "xy")
    ends = [
        hv.Dimension(("x_end", "x of the next frame"), unit="Å"),
        hv.Dimension(("y_end", "y of the next"), unit="Å"),
    ]
    dims = [x, y, *ends]
    # on the segments too, so that they hold where the panel is laid over a picture of the micrograph
    low, high = np.nanmin(drawn, (0, 1)), np.nanmax(drawn, (0, 1))
    floor = min(0.0, low[1]) - 0.07 * height  # of the scale bar
    limits = {"xlim": (min(0, low[0]) - 0.03 * width, max(width, high[0]) + 0.03 * width),
              "ylim": (floor - 0.06 * height, max(height, high[1]) + 0.03 * height)}  # fmt: skip
    items = [
        _border(width, height, dims),
        *_uncertainty(run, shown, drawn, scale, x, y),
        look.styled(_paths(run, shown, drawn, paths, dims), "Segments", clim=(1, frames), colorbar=bar, **limits),
    ]
    starts = hv.Points((*at.T, _rows(run)[shown]), [x, y], hv.Dimension(("row", "Row of the input")))
    items.append(look.styled(starts, "Points", color="black", size=3, tools=["hover"]))
    items += _scale_bar(width, floor, scale, dims)
    grey = "grey: one standard deviation" if "shift_std" in run else ""
    count = "" if len(shown) == len(paths) else f"{len(shown)} of {len(paths)} particles"
    facts = look.heading("", f"{what} × {svg.number(scale)}", count, grey)
    return look.overlay(
        items, title="\n".join(part for part in (name, facts) if part), show_legend=False,
        frame_width=_SIDE, frame_height=round(_SIDE * min(1.6, max(0.4, 1.1 * height / width))),
        **limits,
    )  # fmt: skip


def _rows(run: xr.Dataset) -> np.ndarray:
    return run["row"].values if "row" in run else np.arange(run.sizes["particle"])


def _border(width: float, height: float, dims: list[hv.Dimension]) -> hv.Rectangles:
    return look.styled(
        hv.Rectangles([(0, 0, width, height)], dims), "Rectangles", fill_alpha=0, line_color="#b8c0ca", line_width=1
    )


def _paths(
    run: xr.Dataset, shown: np.ndarray, drawn: np.ndarray, paths: np.ndarray, dims: list[hv.Dimension]
) -> hv.Segments:
    """Return a segment from each frame to the next."""
    n, frames = drawn.shape[:2]
    ends = [drawn[:, :-1, 0], drawn[:, :-1, 1], drawn[:, 1:, 0], drawn[:, 1:, 1]]
    number = np.broadcast_to(np.arange(2, frames + 1), (n, frames - 1))
    moved = np.linalg.norm(paths[shown, 1:], axis=-1)
    row = np.broadcast_to(_rows(run)[shown][:, None], (n, frames - 1))
    facts = [hv.Dimension(("number", "Frame"), unit="number"), hv.Dimension(("moved", "Moved from the first frame"), unit="Å"),
             hv.Dimension(("row", "Row of the input"))]  # fmt: skip
    segments = hv.Segments(tuple(np.ravel(v) for v in (*ends, number, moved, row)), dims, facts)
    return look.styled(
        segments, "Segments", color="number", cmap=ramp(), line_width=1.6,
        clabel="Frame", **look.BAR, tools=["hover"],
        hover_tooltips=[("particle, row", "@row"), ("frame", "@number"), ("moved", "@moved{0.00} Å")],
    )  # fmt: skip


def _uncertainty(
    run: xr.Dataset, shown: np.ndarray, drawn: np.ndarray, scale: float, x: hv.Dimension, y: hv.Dimension
) -> list[hv.Points]:
    if "shift_std" not in run:
        return []
    std = run["shift_std"].values[shown]
    radius = scale * (std if std.ndim == 2 else np.sqrt((std**2).mean(-1)))  # (particle, frame) Å of the picture
    values = (*(drawn[..., axis].ravel() for axis in (0, 1)), radius.ravel())
    circles = hv.Points(values, [x, y], hv.Dimension(("radius", "Standard deviation on the picture"), unit="Å"))
    return [look.styled(circles, "Points", radius="radius", color="#5a6675", fill_alpha=0.1, line_alpha=0)]


def _scale_bar(width: float, floor: float, scale: float, dims: list[hv.Dimension]) -> list[Any]:
    bar = round_down(0.2 * width / scale)
    line = hv.Segments([(0, floor, bar * scale, floor)], dims)
    text = hv.Text(bar * scale + 0.02 * width, floor, f"{svg.number(bar)} Å of motion", halign="left")
    return [look.styled(line, "Segments", color="black", line_width=3),
            look.styled(text, "Text", text_font_size="8pt", text_baseline="middle")]  # fmt: skip
