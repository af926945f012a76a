"""Half-plane Fourier grids: frequencies, shells, radial sums, cropping.

A half plane is what ``rfft2`` returns: (..., box, box // 2 + 1), ky in FFT order, kx >= 0. Transforms are forward
normalised (divided by the number of pixels), so that cropping them changes the sampling but not the grey scale. A *band*
is the centre of it: (..., 2 * k + 1, k + 1) with ky from -k to k and kx from 0 to k, for all shells up to k.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside


def half_plane_indices(box: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integer frequencies (ky (box, 1), kx (1, box // 2 + 1)) of a half plane."""
    ky = np.fft.fftfreq(box, 1 / box).round().astype(int)[:, None]
    return ky, np.arange(box // 2 + 1)[None, :]


def band_indices(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integer frequencies (ky (2k + 1, 1), kx (1, k + 1)) of a band."""
    return np.arange(-k, k + 1)[:, None], np.arange(k + 1)[None, :]


def shell_floor(ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """Return the shell int(|k|) of every pixel: RELION's shells for the noise spectrum."""
    return np.sqrt(kx**2 + ky**2).astype(np.int32)


def shell_round(ky: np.ndarray, kx: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return the shell round(scale |k|) of every pixel: RELION's shells for the FCC."""
    return np.floor(scale * np.sqrt(kx**2 + ky**2) + 0.5).astype(np.int32)


def hermitian_weight(kx: np.ndarray, box: int = 0) -> np.ndarray:
    """Return how often a column of a half plane stands for the full plane: 2 for 0 < kx < box / 2, else 1.

    Without a ``box`` they are columns of a band, which ends below box / 2.
    """
    return np.where((kx == 0) | (2 * kx == box), 1.0, 2.0)


def band_of(half: Any, k: int) -> Any:
    """Return the band (..., 2k + 1, k + 1) of a half plane."""
    box = half.shape[-2]
    rows = np.arange(-k, k + 1) % box
    return half[..., beside(half, rows), : k + 1]


def raised_cosine(shell: np.ndarray, edge: float) -> np.ndarray:
    """Return 1 up to the shell before ``edge``, 0 from the one after it on, a raised cosine between."""
    t = np.clip((shell - (edge - 1)) / 2, 0, 1)
    return 0.5 * (1 + np.cos(np.pi * t))


def first_shell_below(fsc: np.ndarray, level: float) -> int:
    """Return the first shell with an FSC below ``level`` (the last shell if none is); the mean, shell 0, says nothing."""
    below = np.flatnonzero(np.asarray(fsc)[1:] < level)
    return int(below[0]) + 1 if below.size else len(fsc) - 1
