"""How simulated particles really moved, as tables like those of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.data.schema import AXES, InputError
from refmotion_nb.data.synthetic.settings import SimulationSettings

if TYPE_CHECKING:
    import xarray as xr


def true_tracks(settings: SimulationSettings, truth: Mapping[str, np.ndarray]) -> dict[str, xr.Dataset]:
    """Return the tables that ``truth`` (the arrays of truth.npz) holds, by micrograph: as ``tracks`` groups, in Å."""
    import xarray as xr

    height, width = settings.shape
    size = {"width_A": width * settings.pixel_size_A, "height_A": height * settings.pixel_size_A}
    found = {}
    for name in sorted(key.removesuffix("_total") for key in truth if key.endswith("_total")):
        total = truth[f"{name}_total"]
        whole = total.mean(0)  # what whole-frame alignment is after
        found[name] = xr.Dataset(
            {
                "shift": (("particle", "frame", "axis"), total, {"units": "Å", "long_name": "true displacement"}),
                "rigid": (("frame", "axis"), whole, {"units": "Å", "long_name": "true motion of all particles"}),
                "common": (("frame", "axis"), np.zeros_like(whole), {"units": "Å", "long_name": "common motion"}),
                "coordinate": (("particle", "axis"), truth[f"{name}_pos"] * settings.pixel_size_A,
                               {"units": "Å", "long_name": "position"}),
                "reference": ("particle", truth.get(f"{name}_species", np.zeros(len(total), int))),
                "dose": ("frame", truth["dose_mid"], {"units": "e/Å²", "long_name": "accumulated dose"}),
            },
            coords={"axis": list(AXES)},
            attrs=size,
        )  # fmt: skip
    return found


def tracks_error_A(tracks: Mapping[str, xr.Dataset], truth: Mapping[str, xr.Dataset]) -> float:
    """Return the RMS error of tracks, by micrograph, over the particles that they have, Å (see ``squared_errors``).

    Raises
    ------
    InputError
        A micrograph that was not simulated, or other frames.
    """
    squares: list[np.ndarray] = []
    for name, found in tracks.items():
        if name not in truth:
            raise InputError(f"{name} was not simulated; there are {', '.join(truth)}")
        true = truth[name]
        if found.sizes["frame"] != true.sizes["frame"]:
            raise InputError(
                f"{name} was simulated with {true.sizes['frame']} frames; the tracks have {found.sizes['frame']}; give those "
                "of all frames"
            )
        squares.append(
            squared_errors(found["shift"].values, true["shift"].values[_nearest(found, true)], true["dose"].values)
        )
    if not squares:
        raise InputError("there are no tracks; give those of at least one micrograph, by its name")
    return float(np.sqrt(np.concatenate(squares).mean()))


def squared_errors(tracks_A: np.ndarray, truth_A: np.ndarray, dose: np.ndarray) -> np.ndarray:
    """Return the mean squared error (particle,) Å² of tracks (particle, frame, xy).

    Frames at ``dose`` (frame,) e/Å² are weighted by exp(-dose/16), and each track may be off by a constant.
    """
    weight = np.exp(-dose / 16)
    weight = (weight / weight.sum())[:, None]
    off = tracks_A - truth_A
    off = off - (weight * off).sum(axis=1, keepdims=True)
    return (weight * off**2).sum(axis=(1, 2))


def _nearest(found: xr.Dataset, true: xr.Dataset) -> np.ndarray:
    """Return which true particle each is, by place: tables of several references list them in another order."""
    apart = found["coordinate"].values[:, None] - true["coordinate"].values
    return (apart**2).sum(-1).argmin(1)
