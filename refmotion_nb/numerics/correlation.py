"""Correlation windows: how well a patch matches its predicted view, for all displacements a particle can have.

C(s) = Σ_k w(k) Re[X(k) V*(k) exp(2πi k·s)] over the full plane, for s on a small grid about the patch's centre. The sum
runs over a band only and is done as two small matrix products, so that a window costs no transform of the whole box. The
grid holds cubic B-spline coefficients (the division by the spline's response is exact in Fourier space), or plain samples
for Keys' interpolation as in RELION.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, kernels_of, one_blas_thread, over_chunks, xp_of
from refmotion_nb.numerics.device_sizes import window_work_bytes
from refmotion_nb.numerics.patches import PatchSpectra

# weight of tap t (at -1, 0, 1, 2) is Σ_n TAPS[t, n] u^n
B_SPLINE_TAPS = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]], np.float32) / 6
KEYS_TAPS = np.array([[0, -1, 2, -1], [2, 0, -5, 3], [0, 1, 4, -3], [0, 0, -1, 1]], np.float32) / 2


@dataclass(frozen=True)
class WindowGrid:
    """The displacements at which windows are sampled: ``size`` points from ``-half`` · step to +``half`` · step."""

    half: int  # samples on either side of the centre, those for interpolation included
    step_px: float  # patch px per sample
    taps: np.ndarray  # (4, 4) interpolation weights
    spline: bool

    @property
    def size(self) -> int:
        """Samples along one axis."""
        return 2 * self.half + 1

    @property
    def reach_px(self) -> float:
        """Largest displacement (patch px) the window can answer for."""
        return (self.half - 2) * self.step_px


def spline_grid(k: int, box: int, reach_px: float, oversampling: float = 2.0) -> WindowGrid:
    """Return the coarsest grid that interpolates a band up to shell ``k`` with an error below 1 % of the peak."""
    step = box / (2.0 * oversampling * k)
    return WindowGrid(int(np.ceil(reach_px / step)) + 2, step, B_SPLINE_TAPS, True)


def pixel_grid(reach_px: float) -> WindowGrid:
    """Return RELION's grid: whole pixels, Keys' cubic convolution."""
    return WindowGrid(int(np.ceil(reach_px)) + 2, 1.0, KEYS_TAPS, False)


def _axis_matrix(grid: WindowGrid, k: np.ndarray, box: int) -> np.ndarray:
    """Return exp(2πi k s / box) (size, k) for the samples s, divided by the B-spline's response if it is a spline grid."""
    s = grid.step_px * np.arange(-grid.half, grid.half + 1)
    matrix = np.exp(2j * np.pi * s[:, None] * k[None, :] / box)
    if grid.spline:
        matrix /= (2 + np.cos(2 * np.pi * k * grid.step_px / box)) / 3
    return matrix


def windows_from_cross(cross: Any, grid: WindowGrid, box: int) -> Any:
    """Return windows (n, size, size) float32, y then x, of cross terms (n, 2k + 1, k + 1) complex64."""
    xp = xp_of(cross)
    n, rows, columns = cross.shape
    k = columns - 1
    kx = np.arange(k + 1)
    hermitian = np.where(kx == 0, 1.0, 2.0)
    ex = (_axis_matrix(grid, kx, box) * hermitian).T.astype(np.complex64)  # (kx, x)
    ey = _axis_matrix(grid, np.arange(-k, k + 1), box).astype(np.complex64)  # (y, ky)
    inner = (cross.reshape(n * rows, columns) @ beside(cross, ex)).reshape(n, rows, grid.size)
    both = xp.concatenate([inner.real, inner.imag], 1)
    return xp.matmul(beside(cross, np.concatenate([ey.real, -ey.imag], 1))[None], both)


def correlation_windows(
    spectra: PatchSpectra,
    predicted: Any,  # (particle, 2K + 1, K + 1) complex64, CTF applied
    weight: np.ndarray,  # (particle or 1, frame, floor shell): spectral weight, dose decay and 1 / noise power
    k: int,  # highest shell of the band
    grid: WindowGrid,
    threads: int = 1,
) -> Any:
    """Return the windows (particle, frame, y, x) float32 of every patch of a micrograph, where its spectra are."""
    stored, kernels, xp = spectra.stored, kernels_of(spectra.stored), xp_of(spectra.stored)
    n, n_frames = spectra.n_particles, spectra.n_frames
    out = xp.empty((n, n_frames, grid.size, grid.size), np.float32)
    shells = int(np.ceil(np.sqrt(2) * k)) + 1
    padded = np.zeros((weight.shape[0], n_frames, shells), np.float32)
    padded[..., : k + 1] = weight[..., : k + 1]
    shared = xp.broadcast_to(beside(stored, padded), (n, n_frames, shells))

    def work(part: slice) -> None:
        cross = xp.empty((part.stop - part.start, n_frames, 2 * k + 1, k + 1), np.complex64)
        kernels.cross_kernel(stored[part], spectra.scale[part], predicted[part], shared[part], cross)
        flat = cross.reshape(-1, 2 * k + 1, k + 1)
        out[part] = windows_from_cross(flat, grid, spectra.box).reshape(out[part].shape)

    with one_blas_thread():
        over_chunks(n, work, threads, chunk=4, like=stored, item_bytes=n_frames * window_work_bytes(k, grid.size))
    return out
