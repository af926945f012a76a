"""Fall-off of a map with resolution (Guinier B-factor), and the map with it undone, as RELION's post-processing does."""

from __future__ import annotations

import numpy as np
import scipy.fft

from refmotion_nb.numerics.fourier import first_shell_below, raised_cosine
from refmotion_nb.numerics.reconstruct import half_transform_radii

FIT_FROM_A = 10.0  # below this resolution the fall-off is that of the particle's shape
FEWEST_SHELLS = 3  # to fit a line to


def fsc_weight(fsc: np.ndarray) -> np.ndarray:
    """Return the weight of every shell, sqrt(2 FSC / (1 + FSC)) (Rosenthal & Henderson 2003): 0 once the FSC was below 0."""
    used = np.arange(len(fsc)) < _shells_above(fsc, 1e-4)
    known = np.clip(fsc, 0, 1)
    return np.where(used, np.sqrt(2 * known / (1 + known)), 0.0)


def _shells_above(fsc: np.ndarray, level: float) -> int:
    """Return how many shells there are before the first with an FSC below ``level``, the mean aside."""
    first = first_shell_below(fsc, level)
    return first if fsc[first] < level else len(fsc)


def guinier_b_factor(
    volume: np.ndarray,
    fsc: np.ndarray,
    pixel_size_A: float,
    threads: int = 1,
    *,
    from_A: float = FIT_FROM_A,
    to_fsc: float = 0.143,
) -> float:
    """Return the B-factor (Å²) by which a map falls off, exp(-B / (4 d²)): positive, RELION's with the other sign.

    A straight line is fitted to the logarithm of the FSC-weighted mean amplitude of shells against 1/d², from
    ``from_A`` to the last shell before the FSC (shell,) falls below ``to_fsc``; NaN where there are fewer than three.
    """
    n = len(volume)
    shell = np.rint(half_transform_radii(n)).astype(np.int32).ravel()
    amplitude = np.abs(scipy.fft.rfftn(volume, workers=threads)).ravel()
    total = np.bincount(shell, amplitude)[: len(fsc)]
    used = np.arange(int(np.ceil(n * pixel_size_A / from_A)), _shells_above(fsc, to_fsc))
    if len(used) < FEWEST_SHELLS:
        return float("nan")
    mean = total / np.bincount(shell)[: len(fsc)] * fsc_weight(fsc)
    slope = np.polyfit((used / (n * pixel_size_A)) ** 2, np.log(mean[used]), 1)[0]
    return float(-4 * slope)


def sharpened(
    volume: np.ndarray, fsc: np.ndarray, b_factor_A2: float, pixel_size_A: float, threads: int = 1
) -> np.ndarray:
    """Return a map weighted by its FSC (shell,), its fall-off by ``b_factor_A2`` undone, up to an FSC of 0.143."""
    n, edge = len(volume), _shells_above(fsc, 0.143)
    weight = fsc_weight(fsc) * raised_cosine(np.arange(len(fsc)), edge)
    radius = half_transform_radii(n)
    shell = np.minimum(np.rint(radius).astype(np.int32), len(fsc))
    # no farther than what is kept: the corners of a map of small pixels would be raised beyond what numbers hold
    frequency = np.minimum(radius, edge + 1) / (n * pixel_size_A)
    transform = scipy.fft.rfftn(volume, workers=threads)
    transform *= np.append(weight, 0).astype(np.float32)[shell] * np.exp(b_factor_A2 / 4 * frequency**2)
    return scipy.fft.irfftn(transform, volume.shape, workers=threads).astype(np.float32)
