"""How simulated particles really moved, as tables like those of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.data.schema import AXES
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
