"""Correlation of particles with the reference, for all displacements they can have."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.plots import look
from refmotion_nb.views.plots.look import Runs

_SIDE = 165  # px of a panel: three of them with their colour bars fit a notebook
_COLUMNS = 3


def correlation(windows: Runs) -> hv.Layout:
    """Draw ``correlation`` (y, x) as an image, its highest point marked.

    Pick a particle and a frame of what ``rm.correlation`` gave, or add some up, before: ``windows.isel(particle=0, frame=3)``,
    ``windows.isel(frame=3).sum("particle")``. Where there is a ``truth`` (axis,), it is marked too.

    Raises
    ------
    InputError
        More than one particle or frame is left.
    """
    runs = look.named(windows)
    for name, run in runs.items():
        look.require(run, "rm.correlation", "correlation", "x", "y")
        if more := set(run["correlation"].dims) - {"x", "y"}:
            raise InputError(
                f"{name or 'the correlation'} still has {', '.join(sorted(map(str, more)))}; pick one by isel, or add them up"
            )
    items = [_panel(name, run) for name, run in runs.items()]
    shared = {"yaxis": "bare"}  # as the first of a row has it
    items = [look.styled(item, "Overlay", **shared) if i % _COLUMNS else item for i, item in enumerate(items)]
    return look.panels(items, _COLUMNS)


def _panel(name: str, run: xr.Dataset) -> hv.Overlay:
    x, y = run["x"].values, run["y"].values
    values = run["correlation"].transpose("y", "x").values
    dims = [hv.Dimension((f"from_rigid_{axis}", f"{axis}, from rigid motion"), unit="Å") for axis in "xy"]
    (left, *_, right), (low, *_, high) = look.edges(x), look.edges(y)
    image = hv.Image(
        values[::-1], dims, hv.Dimension(("correlation", "Log-likelihood")), bounds=(left, low, right, high)
    )
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    items: list[Any] = [
        look.styled(image, "Image", cmap="viridis", tools=["hover"], colorbar=True, clabel="Log-likelihood", **look.BAR,
                    frame_width=_SIDE, frame_height=_SIDE, clim=(float(values.min()), float(values.max()))),
        _mark(x[column], y[row], dims, "highest", marker="cross", color="#ffffff", size=13, line_width=2),
    ]  # fmt: skip
    if "truth" in run:
        true_x, true_y = (float(run["truth"].sel(axis=axis)) for axis in "xy")
        items.append(
            _mark(
                true_x, true_y, dims, "truth", marker="circle", color="#ff7a45", fill_alpha=0, size=15, line_width=2.5
            )
        )
    words = "+ highest" + (", ○ truth" if "truth" in run else "")
    return look.overlay(
        items, title=name or "Correlation", frame_width=_SIDE, frame_height=_SIDE, show_legend=False,
        xlabel=f"{dims[0].pprint_label}\n{words}",
    )  # fmt: skip


def _mark(x: float, y: float, dims: list[hv.Dimension], label: str, **options: Any) -> hv.Points:
    return look.styled(hv.Points([(x, y)], dims, label=label), "Points", tools=["hover"], **options)
