"""Dose weights changed by hand: frames turned down or left out, the standard curve taken beyond a resolution or mixed in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import InputError

MOST_FRAMES = 100_000  # no movie has more


@dataclass(frozen=True)
class WeightEdits:
    """What is changed; the defaults change nothing."""

    factors: Mapping[int, float] = field(default_factory=dict)  # by frame, from 0: its weights are multiplied by this
    standard_beyond_A: float | None = None  # finer than this (Å) the standard curve is taken
    standard_share: float = 0.0  # of the standard curve, mixed in everywhere


def edit_weights(table: xr.Dataset, edits: WeightEdits) -> xr.Dataset:
    """Return a table of dose weights (group, frame, frequency) with ``edits`` made and normalised over frames again.

    Raises
    ------
    InputError
        A frame that does not exist, a factor below 0, a share or resolution that is none, nothing left at some frequency, or
        no standard curve to mix in.
    """
    n_frames = table.sizes["frame"]
    factor = np.ones(n_frames)
    for frame, value in edits.factors.items():
        if not 0 <= frame < n_frames:
            raise InputError(f"there is no frame {frame + 1}; the weights are of {n_frames} frames")
        if not 0 <= value < np.inf:
            raise InputError(f"frame {frame + 1} is to be weighted by {value}; give 0 (leave it out) or more")
        factor[frame] = value
    if not 0 <= edits.standard_share <= 1:
        raise InputError(f"{edits.standard_share:g} of the standard curve cannot be mixed in; give a share from 0 to 1")
    if (beyond_A := edits.standard_beyond_A) is not None and not beyond_A > 0:
        raise InputError(f"the standard curve is to be taken beyond {beyond_A:g} Å; give a resolution above 0")
    weight = table["weight"].values
    share = np.full(table.sizes["frequency"], float(edits.standard_share))
    if beyond_A is not None:
        share[table["frequency"].values > 1 / beyond_A] = 1.0
    if share.any():
        if "reference_weight" not in table:
            raise InputError(
                "these weights came without the standard curve, so it cannot be mixed in; measure them here"
            )
        weight = (1 - share) * weight + share * table["reference_weight"].values
    weight = weight * factor[:, None]
    total = np.nansum(weight, axis=1, keepdims=True)
    if not (total > 0).all():
        raise InputError("no frame is left; leave at least one with a weight above 0")
    edited = table.assign(weight=(table["weight"].dims, weight / total, table["weight"].attrs))
    edited = edited.drop_vars(
        [name for name in ("weight_lo", "weight_hi") if name in edited]
    )  # those are of measured ones
    return edited.assign_attrs(edited=str(edits))


def factors_of(text: str) -> dict[int, float]:
    """Return factors by frame (from 0) of text such as ``1: 0, 2-4: 0.5`` (frames from 1).

    Raises
    ------
    InputError
        A part that is no frame, or range of frames, with a factor.
    """
    factors: dict[int, float] = {}
    for part in filter(None, (one.strip() for one in text.replace(";", ",").split(","))):
        found = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?\s*:\s*(\d+\.?\d*|\.\d+)", part)
        if not found:
            raise InputError(f"{part!r} is no frame with a factor; write for example 1: 0, 2-4: 0.5")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last <= MOST_FRAMES:
            raise InputError(f"{part!r} is no range of frames; they count from 1 upwards")
        factors.update(dict.fromkeys(range(first - 1, last), float(found[3])))
    return factors
