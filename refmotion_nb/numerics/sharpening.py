"""Fall-off of a map with resolution (Guinier B-factor), and the map with it undone, as RELION's post-processing does."""

from __future__ import annotations

import numpy as np
import scipy.fft

from refmotion_nb.numerics.fourier import raised_cosine
from refmotion_nb.numerics.reconstruct import half_transform_shells

FIT_FROM_A = 10.0  # below this resolution the fall-off is that of the particle's shape
FEWEST_SHELLS = 3  # to fit a line to


def fsc_weight(fsc: np.ndarray) -> np.ndarray:
    """Return the weight of every shell, sqrt(2 FSC / (1 + FSC)) (Rosenthal & Henderson 2003): 0 once the FSC was below 0."""
    falls = np.flatnonzero(np.asarray(fsc) < 1e-4)
    used = np.arange(len(fsc)) < (falls[0] if falls.size else len(fsc))
    known = np.clip(fsc, 0, 1)
    return np.where(used, np.sqrt(2 * known / (1 + known)), 0.0)


def guinier_b_factor(volume: np.ndarray, fsc: np.ndarray, pixel_size_A: float, threads: int = 1) -> float:
    """Return the B-factor (Å²) by which a map falls off, exp(-B / (4 d²)): positive, RELION's with the other sign.

    A straight line is fitted to the logarithm of the FSC-weighted mean amplitude of shells against 1/d², from 10 Å to the
    last shell before the FSC (shell,) falls below 0.143; NaN where there are fewer than three.
    """
    n = len(volume)
    shell = half_transform_shells(n).ravel()
    amplitude = np.abs(scipy.fft.rfftn(volume, workers=threads)).ravel()
    total = np.bincount(shell, amplitude)[: len(fsc)]
    below = np.flatnonzero(np.asarray(fsc) < 0.143)
    last = int(below[0]) if below.size else len(fsc)
    used = np.arange(int(np.ceil(n * pixel_size_A / FIT_FROM_A)), last)
    if len(used) < FEWEST_SHELLS:
        return float("nan")
    mean = total / np.bincount(shell)[: len(fsc)] * fsc_weight(fsc)
    slope = np.polyfit((used / (n * pixel_size_A)) ** 2, np.log(mean[used]), 1)[0]
    return float(-4 * slope)


def sharpened(
    volume: np.ndarray, fsc: np.ndarray, b_factor_A2: float, pixel_size_A: float, threads: int = 1
) -> np.ndarray:
    """Return a map weighted by its FSC (shell,), its fall-off by ``b_factor_A2`` undone, up to an FSC of 0.143."""
    n = len(volume)
    shells = np.arange(len(fsc))
    below = np.flatnonzero(np.asarray(fsc) < 0.143)
    last = int(below[0]) if below.size else len(fsc)
    weight = (
        fsc_weight(fsc) * raised_cosine(shells, last) * np.exp(b_factor_A2 / 4 * (shells / (n * pixel_size_A)) ** 2)
    )
    transform = scipy.fft.rfftn(volume, workers=threads)
    transform *= np.append(weight, 0).astype(np.float32)[np.minimum(half_transform_shells(n), len(fsc))]
    return scipy.fft.irfftn(transform, volume.shape, workers=threads).astype(np.float32)
