"""How all plots look: the report's colours, dimensions with units, resolution under frequencies, names of runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.plots.page import load, mark

PANEL = {"frame_width": 300, "frame_height": 220}
FONTS = {"title": "10pt", "labels": "9pt", "ticks": "8pt", "legend": "8pt"}
STAR = {"marker": "star", "size": 16, "color": "white", "line_color": "black", "line_width": 1.5}
BAR = {"colorbar_opts": {"title_standoff": 8}}
_RESOLUTION = 'return tick > 0 ? tick.toFixed(2) + "\\n" + (1 / tick).toFixed(1) + " Å" : "0"'


Runs = xr.Dataset | Mapping[str, xr.Dataset]


@cache
def colours(letter: str) -> tuple[str, ...]:
    """Return the report's colours (on white) of a kind: c, categories; f, from the first frame to the last."""
    return tuple(colour for name, colour in palette().items() if re.fullmatch(rf"{letter}\d", name))


def category(i: int) -> str:
    """Return the colour of the i-th of several things without an order."""
    return colours("c")[i % len(colours("c"))]


def sequence(fraction: float) -> str:
    """Return the colour of what stands at ``fraction`` (0 to 1) of an order."""
    steps = colours("f")
    return steps[round(float(np.clip(fraction, 0, 1)) * (len(steps) - 1))]


def named(runs: Runs) -> dict[str, xr.Dataset]:
    """Return runs by name; a single one has none.

    Raises
    ------
    InputError
        There is no run, or something that is no Dataset.
    """
    several = isinstance(runs, Mapping) and not isinstance(runs, xr.Dataset)
    found = {str(name): run for name, run in runs.items()} if several else {"": runs}
    if not found:
        raise InputError("no result to plot; give a Dataset, or a mapping from names to Datasets")
    for name, run in found.items():
        if not isinstance(run, xr.Dataset):
            raise InputError(f"{name or 'the result'} is {type(run).__name__}, no Dataset; give the result of a stage")
    return found


def require(run: xr.Dataset, stage: str, *names: str) -> None:
    """Make sure that a result has what a plot needs.

    Raises
    ------
    InputError
        What is missing, and whose result to give.
    """
    missing = [name for name in names if name not in run]
    if missing:
        raise InputError(f"the result has no {', '.join(missing)}; give the Dataset of {stage}")
    if empty := [str(name) for name, size in run.sizes.items() if not size]:
        raise InputError(f"nothing is left of the result along {', '.join(empty)}; pick some")


def whole(run: xr.Dataset, *dims: str) -> xr.Dataset:
    """Return a result with the axes back that were lost where a single item was picked by its number."""
    return run.expand_dims([name for name in dims if name not in run.dims])


def joined(*parts: str) -> str:
    """Return the parts of a label that there are."""
    return " · ".join(part for part in parts if part)


def heading(*parts: str) -> str:
    """Return the parts of a title that there are, the first usually the name of a run."""
    text = joined(*parts)
    return text if not parts or parts[0] else text[:1].upper() + text[1:]


class _Dimension(hv.Dimension):
    """One whose unit has brackets of its own, so that it stands behind a comma."""

    unit_format = ", {unit}"


def dimension(variable: xr.DataArray) -> hv.Dimension:
    """Return what a variable is as an axis: its long name and unit."""
    text = str(variable.attrs.get("long_name", variable.name))
    unit = str(variable.attrs.get("units", ""))
    kind = _Dimension if "(" in unit else hv.Dimension
    return kind((str(variable.name), text[:1].upper() + text[1:]), unit=unit if unit not in ("", "1") else None)


def resolution_ticks(plot: Any, element: Any) -> None:
    """Write the resolution in Å under each frequency (a HoloViews hook)."""
    from bokeh.models import CustomJSTickFormatter

    plot.handles["xaxis"].formatter = CustomJSTickFormatter(code=_RESOLUTION)


OVER_FREQUENCY: dict[str, Any] = {"hooks": [resolution_ticks], "xlabel": "Spatial frequency (1/Å), resolution below"}


def frequency(variable: xr.DataArray) -> hv.Dimension:
    """Return the axis of spatial frequency."""
    return dimension(variable).clone(label="Spatial frequency")


def edges(centres: np.ndarray) -> np.ndarray:
    """Return where cells around ``centres`` (n,) begin and end (n + 1,)."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def styled(item: Any, kind: str, **options: Any) -> Any:
    """Return an element with options of the bokeh backend; the wheel scrolls the page until its zoom is chosen."""
    load()
    if kind != "Layout":
        options = {"active_tools": ["pan"], **options, "hooks": [mark, *options.get("hooks", [])]}
    return item.opts(getattr(hv.opts, kind)(**options), backend="bokeh")


def overlay(items: Iterable[Any], **options: Any) -> hv.Overlay:
    """Return elements in one panel, with what all panels have in common."""
    together = hv.Overlay(list(items))
    return styled(
        together, "Overlay", **{**PANEL, "fontsize": FONTS, "legend_opts": {"padding": 4, "spacing": 1}, **options}
    )


def panels(items: Iterable[Any], columns: int) -> hv.Layout:
    """Return panels side by side, ``columns`` in a row."""
    return styled(hv.Layout(list(items)).cols(columns), "Layout", toolbar="right")
