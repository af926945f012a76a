"""Curves over spatial frequency: FSC of the reconstructions, noise of the micrographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.maps import read_map
from refmotion_nb.data.schema import InputError
from refmotion_nb.views.plots import look
from refmotion_nb.views.plots.look import Runs
from refmotion_nb.views.scale import percentile

LEVELS = (0.143, 0.5)
_WIDE = {"frame_width": 460, "frame_height": 300}
_SIDE = 270  # px of a section: two of them with their colour bars fit a notebook


def fsc(validation: Runs, reference: int = 0) -> hv.Overlay:
    """Draw half-map FSC: of one run every combination; of several what each began (dashed) and ended with.

    Raises
    ------
    InputError
        There is no such reference.
    """
    runs = {name: look.whole(run, "reference", "combination") for name, run in look.named(validation).items()}
    items: list[Any] = []
    for i, (name, run) in enumerate(runs.items()):
        look.require(run, "Validation", "fsc_corrected")
        if not 0 <= reference < run.sizes["reference"]:
            raise InputError(f"there is no reference {reference}; {name or 'the run'} has "
                             f"{run.sizes['reference']}, counted from 0")  # fmt: skip
        count = run.sizes["combination"]
        shown = range(count) if len(runs) == 1 else sorted({0, count - 1})
        for j in shown:
            colour = look.category(j if len(runs) == 1 else i)
            items.append(_fsc_curve(name, run.isel(reference=reference, combination=j), colour, j == 0 < count - 1))
    lines = [
        look.styled(hv.HLine(level), "HLine", color="#5a6675", line_dash="dotted", line_width=1) for level in LEVELS
    ]
    several = max(run.sizes["reference"] for run in runs.values()) > 1
    title = look.heading("Fourier shell correlation", f"reference {reference + 1}" if several else "")
    return look.overlay(
        [*items, *lines], title=title, legend_position="right", **look.OVER_FREQUENCY,
        yticks=[0, *LEVELS, 1], ylim=(-0.1, 1.05), **_WIDE,
    )  # fmt: skip


def _fsc_curve(name: str, one: xr.Dataset, colour: str, first: bool) -> hv.Curve:
    combination = str(one["combination"].values)
    cut = f"{float(one['resolution_0143']):.2f} Å" if "resolution_0143" in one else ""
    curve = hv.Curve(
        (one["frequency"].values, one["fsc_corrected"].values), look.frequency(one["frequency"]),
        look.dimension(one["fsc_corrected"]), label=look.joined(name, combination, cut),
    )  # fmt: skip
    return look.styled(
        curve, "Curve", color=colour, line_dash="dashed" if first else "solid", line_width=2, tools=["hover"]
    )


def slices(maps: Mapping[str, str | Path], width_A: float | None = None) -> hv.Layout:
    """Draw the section through the middle of each of several maps (MRC files, by name), ``width_A`` of it or all.

    Raises
    ------
    InputError
        No map is named, or a file that is none.
    """
    if not isinstance(maps, Mapping) or not maps:
        raise InputError("no map to draw; give a mapping from names to MRC files, as {'map': 'map.mrc'}")
    return look.panels([_slice(str(name), Path(path), width_A) for name, path in maps.items()], 2)


def _slice(name: str, path: Path, width_A: float | None) -> hv.Image:
    volume, pixel_A = read_map(path)
    box = volume.shape[0]
    middle = box // 2
    reach = middle if width_A is None else max(1, min(middle, round(0.5 * width_A / pixel_A)))
    section = volume[middle, middle - reach : middle + reach, middle - reach : middle + reach]
    dims = [hv.Dimension((f"section_{axis}", axis), unit="Å") for axis in "xy"]
    edge = reach * pixel_A
    image = hv.Image(section[::-1], dims, hv.Dimension(("density", "Density")), bounds=(-edge, -edge, edge, edge))
    limits = percentile(section, 0.5), percentile(section, 99.8)
    return look.styled(image, "Image", cmap="gray", clim=limits, tools=["hover"], title=name, frame_width=_SIDE,
                       frame_height=_SIDE, colorbar=True, clabel="Density", **look.BAR, fontsize=look.FONTS)  # fmt: skip


def noise(spectra: Runs) -> hv.Overlay:
    """Draw noise power of one or several micrographs and the median of them."""
    runs = look.named(spectra)
    items = []
    for name, run in runs.items():
        look.require(run, "the store's noise groups", "noise_power")
        run = run.isel(frequency=run["frequency"].values > 0)
        dims = [look.frequency(run["frequency"]), look.dimension(run["noise_power"])]
        extra = hv.Dimension(("micrograph", "Micrograph"))
        power = run["noise_power"].values
        table = (run["frequency"].values, power, [name] * len(power))
        label = "one micrograph" if len(runs) > 1 else name
        items.append(look.styled(hv.Curve(table, dims[0], [dims[1], extra], label=label), "Curve", color=look.category(0),
                                 line_width=1, alpha=0.5 if len(runs) > 1 else 1, tools=["hover"]))  # fmt: skip
    if len(runs) > 1 and len({run.sizes["frequency"] for run in runs.values()}) == 1:
        median = np.median([run["noise_power"].values for run in runs.values()], 0)
        x = next(iter(runs.values()))["frequency"].values
        items.append(look.styled(hv.Curve((x[x > 0], median[x > 0]), *dims, label="median"), "Curve",
                                 color=look.category(1), line_width=2.5, tools=["hover"]))  # fmt: skip
    title = f"Noise of {len(runs)} micrographs" if len(runs) > 1 else "Noise"
    return look.overlay(
        items, logy=True, yformatter="%.2g", title=title, legend_position="top_right", **look.OVER_FREQUENCY, **_WIDE
    )
