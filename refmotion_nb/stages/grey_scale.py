"""Several references on one grey scale, found by comparing each with its own particles in a few movies.

Maps of one refinement program, box and pixel size share their scale; others do not, and the scale of a reference decides
how strongly its particles pull against the prior.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Movie
from refmotion_nb.numerics.backend import beside
from refmotion_nb.numerics.energy import band_power, inverse_noise
from refmotion_nb.stages.alignment import Alignment, alignment_windows
from refmotion_nb.stages.micrograph import Micrograph

ENOUGH_PARTICLES = 20  # of each reference
MOST_MICROGRAPHS = 8
CERTAIN = 4.0  # standard errors from 0, below which a scale is not known


def scale_factors(micrographs: Iterable[Micrograph], n_references: int, threads: int) -> tuple[np.ndarray, list[str]]:
    """Return what brings each reference to the grey scale of the first (reference,) float32, and warnings.

    There is a warning, and a factor of 1, for each reference whose scale cannot be told.
    """
    cross, power = np.zeros(n_references), np.zeros(n_references)
    for m in micrographs:
        for number in np.unique(m.particles["reference"].values):
            sums = scale_sums(m, int(number), threads)
            cross[number] += sums[0]
            power[number] += sums[1]
        del m  # the next one may need its room
    known = cross > CERTAIN * np.sqrt(power)
    scale = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    warnings = [
        f"reference {number + 1} has too few particles, or resembles them too little, to find its grey scale; it is taken "
        "to be that of the others (half maps of one refinement program, box and pixel size)"
        for number in np.flatnonzero(~known)
    ]
    if not known.any():
        return np.ones(n_references, np.float32), warnings
    return np.where(known, scale / scale[int(np.argmax(known))], 1.0).astype(np.float32), warnings


def bring_to_scale(m: Micrograph, factors: np.ndarray) -> None:
    """Multiply, in place, the predicted views of a micrograph by the factors of their references."""
    mine = factors[m.particles["reference"].values][:, None, None]
    for views in (m.own, m.opposite):
        views *= beside(views, mine)


def choose(micrographs: Mapping[str, tuple[Movie, xr.Dataset]], n_references: int) -> list[str]:
    """Return the names of a few micrographs that together have enough particles of every reference."""
    left = {name: np.bincount(p["reference"].values, minlength=n_references) for name, (_, p) in micrographs.items()}
    chosen: list[str] = []
    total = np.zeros(n_references, int)
    while left and len(chosen) < MOST_MICROGRAPHS and total.min() < ENOUGH_PARTICLES:
        rarest = int(np.argmin(total))
        name = max(left, key=lambda one: int(left[one][rarest]))
        chosen.append(name)
        total = total + left.pop(name)
    return chosen


def scale_sums(m: Micrograph, number: int, threads: int) -> tuple[float, float]:
    """Return Σ X V* / σ² and Σ |V|² / σ² over one reference's particles, for the signal in V: their ratio is its scale.

    They are in grey units: particles of one reference may be on movies of another camera than those of the others.

    V is from the opposite half map, which holds no noise of the particle; FSC · |V|² is what of its power is signal.
    """
    rows = np.flatnonzero(m.particles["reference"].values == number)
    mine = m.subset(rows)
    mine = replace(mine, own=mine.opposite)
    settings = Alignment(remove_own_noise=False)  # there is none in these windows
    cross = alignment_windows(mine, settings, False, threads, reach_A=1.0).cross * m.grey_unit
    band = settings.band(mine, False)
    k = min(int(np.flatnonzero(band.max(0) > 0)[-1]), m.own.shape[2] - 1)
    signal = band_power(mine.own, k, threads) * band[:, : k + 1] * np.clip(mine.fsc[:, : k + 1], 0, 1)
    kept = (settings.decay(mine, k + 1) ** 2).sum(0) * inverse_noise(m.noise_power)[: k + 1]
    return cross, float((signal * kept).sum()) * m.grey_unit**2
