"""Radiation damage: correlation of frames with the reference, the model of it, the weights that follow."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.stages.dose_weights import per_dose
from refmotion_nb.views import svg
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.plots import look
from refmotion_nb.views.plots.look import Runs
from refmotion_nb.views.report_dose import fitted, resolutions
from refmotion_nb.views.scale import percentile, spread

CURVES = 6  # frames shown as curves


def fcc(dose: Runs, group: str | None = None) -> hv.Layout:
    """Draw the Fourier cylinder correlation (frequency, dose) as an image; the colours span the fitted frequencies."""
    runs = _runs(dose, group, "fcc")
    inside = np.concatenate([run["fcc"].values[:, fitted(run)].ravel() for run in runs.values()])
    limits = min(0.0, percentile(inside, 0.5)), max(percentile(inside, 99.5), 1e-6)
    runs = {
        name: run.assign(fcc=run["fcc"].where(run["frequency"] > 0)) for name, run in runs.items()
    }  # none at the origin
    shown = [(look.heading(name, "FCC (grey: not measured)"), run) for name, run in runs.items()]
    return _images(shown, "fcc", limits, "FCC")


def fcc_curves(dose: Runs, group: str | None = None) -> hv.Layout:
    """Draw the Fourier cylinder correlation of some frames against frequency: points as measured, lines as modelled."""
    return look.panels([_fcc_curves(name, run) for name, run in _runs(dose, group, "fcc").items()], 2)


def weights(dose: Runs, group: str | None = None) -> hv.Layout:
    """Draw weights per e/Å² against dose at a few resolutions: each run with its confidence band, and the standard curve.

    Runs of other doses per frame can be compared: what a curve encloses is 1.
    """
    runs = {name: per_dose(run) for name, run in _runs(dose, group, "weight").items()}
    first = next(iter(runs.values()))
    frequencies = first["frequency"].values[resolutions(first)]
    return look.panels([_weights(runs, k, i == 0) for i, k in enumerate(frequencies)], 2)


def weight_map(dose: Runs, group: str | None = None) -> hv.Layout:
    """Draw weights per e/Å² (frequency, dose) as images in the same colours: of each run, and of the standard curve."""
    runs = {name: per_dose(run) for name, run in _runs(dose, group, "weight").items()}
    first = next(iter(runs.values()))
    shown = [(look.heading(name, "weights"), run) for name, run in runs.items()]
    if "reference_weight" in first:
        standard = first.assign(weight=first["reference_weight"].assign_attrs(first["weight"].attrs))
        shown.append(("Standard curve (Grant & Grigorieff)", standard))
    most = max(percentile(run["weight"].values, 99.5) for _, run in shown)
    return _images(shown, "weight", (0.0, max(most, 1e-6)), "Weight per e/Å²")


def b_factors(dose: Runs, group: str | None = None) -> hv.Layout:
    """Draw B-factor and scale of each frame, relative to the best frame."""
    runs = _runs(dose, group, "b_factor", "frame_scale")
    return look.panels([_per_frame(runs, name) for name in ("b_factor", "frame_scale")], 2)


def _runs(dose: Runs, group: str | None, *names: str) -> dict[str, xr.Dataset]:
    """Return one row (frame, frequency) of each run's table: that of ``group``, or the pool."""
    return {name: _row(run, group, names) for name, run in look.named(dose).items()}


def _row(run: xr.Dataset, group: str | None, names: tuple[str, ...]) -> xr.Dataset:
    look.require(run, "DoseWeights", "dose", *names)
    run = look.whole(run, "group")
    known = [str(one) for one in run["group"].values] if "group" in run.coords else []
    if group is not None and group not in known:
        raise InputError(
            f"there is no group {group!r} of dose weights; known: {', '.join(known) or 'one without a name'}"
        )
    return run.isel(group=known.index(group) if group else 0).dropna("frame", subset=["dose"])


def _images(shown: list[tuple[str, xr.Dataset]], what: str, limits: tuple[float, float], name: str) -> hv.Layout:
    """Draw a table (frame, frequency) of each run in the same colours; ``name`` stands at the scale, at the end of a row."""
    last = min(len(shown), 2) - 1
    return look.panels([_image(*one, what, limits, name if i % 2 == last else "") for i, one in enumerate(shown)], 2)


def _image(title: str, run: xr.Dataset, what: str, limits: tuple[float, float], bar: str) -> hv.Image:
    dose, frequency, table = run["dose"].values, run["frequency"].values, run[what]
    y, x = look.edges(dose), look.edges(frequency)
    dims = [look.frequency(run["frequency"]), look.dimension(run["dose"])]
    number = np.broadcast_to(np.arange(1, len(dose) + 1)[:, None], table.shape)
    image = hv.Image(
        np.dstack([table.values, number])[::-1], dims,
        [look.dimension(table), hv.Dimension(("number", "Frame"), unit="number")],
        bounds=(x[0], y[0], x[-1], y[-1]),
    )  # fmt: skip
    return look.styled(
        image, "Image", cmap="viridis", clim=limits, colorbar=bool(bar), tools=["hover"], **look.OVER_FREQUENCY,
        clabel=bar, **look.BAR, clipping_colors={"NaN": palette()["line"]}, fontsize=look.FONTS,
        title=title, **look.PANEL, xlim=(0, x[-1]),
    )  # fmt: skip


def _fcc_curves(name: str, run: xr.Dataset) -> hv.Overlay:
    run = run.isel(frequency=fitted(run, beyond=1.3))
    dims = [look.frequency(run["frequency"]), look.dimension(run["fcc"])]
    x, dose = run["frequency"].values, run["dose"].values
    unit = run["dose"].attrs.get("units", "")
    items: list[Any] = []
    for f in spread(len(dose), CURVES):
        colour = look.sequence(f / max(len(dose) - 1, 1))
        text = f"frame {f + 1}, {svg.number(dose[f])} {unit}"
        items.append(look.styled(hv.Scatter((x, run["fcc"].values[f]), *dims, label=text), "Scatter", color=colour, size=4,
                                 alpha=0.75, tools=["hover"]))  # fmt: skip
        if "fcc_model" in run:
            items.append(look.styled(hv.Curve((x, run["fcc_model"].values[f]), *dims, label=text), "Curve", color=colour,
                                     line_width=1.5))  # fmt: skip
    return look.overlay(items, title=look.heading(name, "measured (dots) and modelled (lines)"), legend_position="top_right",
                        **look.OVER_FREQUENCY)  # fmt: skip


def _weights(runs: dict[str, xr.Dataset], frequency: float, legend: bool) -> hv.Overlay:
    items: list[Any] = []
    standard = {name: tuple(run["dose"].values) for name, run in runs.items() if "reference_weight" in run}
    own = len(set(standard.values())) > 1  # runs of other doses per frame have other standard curves
    for i, (name, run) in enumerate(runs.items()):
        at = run.interp(frequency=frequency)
        x, colour = at["dose"].values, look.category(i)
        dims = [look.dimension(run["dose"]), look.dimension(run["weight"])]
        label = name or "measured"
        if "weight_lo" in at and np.isfinite(at["weight_lo"].values).any():
            low, high = (look.dimension(run[v]) for v in ("weight_lo", "weight_hi"))
            band = hv.Area((x, at["weight_lo"].values, at["weight_hi"].values), dims[0], [low, high])
            items.append(look.styled(band, "Area", color=colour, alpha=0.18, line_alpha=0))
        if name in standard and (own or name == next(iter(standard))):
            text = look.joined("Grant & Grigorieff", label if own else "")
            curve = hv.Curve((x, at["reference_weight"].values), *dims, label=text)
            items.append(look.styled(curve, "Curve", color=colour if own else "#5a6675", line_dash="dashed", line_width=1.5,
                                     tools=["hover"]))  # fmt: skip
        items.append(look.styled(hv.Curve((x, at["weight"].values), *dims, label=label), "Curve", color=colour,
                                 line_width=2, tools=["hover"]))  # fmt: skip
    return look.overlay(items, title=f"Weight at {1 / frequency:.1f} Å", show_legend=legend, legend_position="top_right",
                        ylabel="Weight per e/Å²")  # fmt: skip


def _per_frame(runs: dict[str, xr.Dataset], what: str) -> hv.Overlay:
    items = []
    for i, (name, run) in enumerate(runs.items()):
        frames = np.arange(1, run.sizes["frame"] + 1)
        dims = [look.dimension(run["dose"]), look.dimension(run[what])]
        extra = hv.Dimension(("number", "Frame"), unit="number")
        values = run["dose"].values, run[what].values
        line = hv.Curve(values, *dims, label=name)
        dots = hv.Points((*values, frames), dims, extra, label=name)
        items += [look.styled(line, "Curve", color=look.category(i), line_width=1.5),
                  look.styled(dots, "Points", color=look.category(i), size=5, tools=["hover"])]  # fmt: skip
    titles = {"b_factor": "B-factor of each frame", "frame_scale": "Scale of each frame"}
    corner = {"b_factor": "top_left", "frame_scale": "bottom_left"}[what]  # where the curves are not
    return look.overlay(items, title=titles[what], show_legend=len(runs) > 1, legend_position=corner, padding=0.05)
