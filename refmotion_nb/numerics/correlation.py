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

from refmotion_nb.numerics.backend import beside, in_cache, kernels_of, one_blas_thread, over_chunks, xp_of
from refmotion_nb.numerics.device_sizes import window_work_bytes
from refmotion_nb.numerics.fourier import hermitian_weight
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


def spline_grid(k: int, box: int, reach_px: float) -> WindowGrid:
    """Return the coarsest grid that interpolates a band up to shell ``k`` with an error below 1 % of the peak."""
    step = box / (4.0 * k)  # half of what the band needs
    return WindowGrid(int(np.ceil(reach_px / step)) + 2, step, B_SPLINE_TAPS, True)


def pixel_grid(reach_px: float, step_px: float = 1.0) -> WindowGrid:
    """Return RELION's grid: whole pixels of its images, ``step_px`` of the patch's wide, Keys' cubic convolution."""
    return WindowGrid(int(np.ceil(reach_px / step_px)) + 2, step_px, KEYS_TAPS, False)


def _axis_matrix(grid: WindowGrid, k: np.ndarray, box: int) -> np.ndarray:
    """Return exp(2πi k s / box) (size, k) for the samples s, divided by the B-spline's response if it is a spline grid."""
    s = grid.step_px * np.arange(-grid.half, grid.half + 1)
    matrix = np.exp(2j * np.pi * s[:, None] * k[None, :] / box)
    if grid.spline:
        matrix /= (2 + np.cos(2 * np.pi * k * grid.step_px / box)) / 3
    return matrix


def waves(grid: WindowGrid, k: int, box: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the waves of a window's samples along ky and along kx (size, k + 1), for components from 0 to ``k``.

    Of the half plane those along kx count twice, for what is not in it.
    """
    ks = np.arange(k + 1)
    along_y = _axis_matrix(grid, ks, box)
    return along_y, along_y * hermitian_weight(ks)


def _folded_windows(cross: Any, fold: Any, across: Any) -> Any:
    """Return windows (particle, frame, y, x) float32 of folded cross terms (2, k + 1, particle, frame, 2, k + 1).

    Folded as ``cross_kernel`` does, so that samples y and -y are sum and difference of the same two real products: a
    quarter of the operations of a complex product for each sample.

    Parameters
    ----------
    fold : (2, y from 0 on, k + 1) cosines and sines along ky
    across : (2 · (k + 1), x) what real and imaginary parts contribute to each sample
    """
    xp = xp_of(cross)
    _, columns, n, n_frames = cross.shape[:4]
    half, size = fold.shape[1] - 1, across.shape[1]
    even, odd = xp.matmul(fold, cross.reshape(2, columns, -1))
    rows = xp.empty((size, even.shape[1]), np.float32)
    rows[half:], rows[half::-1] = even + odd, even - odd
    return xp.moveaxis((rows.reshape(-1, 2 * columns) @ across).reshape(size, n, n_frames, size), 0, 2)


def correlation_windows(
    spectra: PatchSpectra,
    predicted: Any,  # (particle, 2K + 1, K + 1) complex64, CTF applied
    weight: np.ndarray,  # (particle or 1, frame, floor shell): spectral weight, dose decay and 1 / noise power
    k: int,  # highest shell of the band
    grid: WindowGrid,
    threads: int = 1,
) -> Any:
    """Return the windows (particle, frame, y, x) float32 of every patch of a micrograph, where its spectra are."""
    stored, scale = spectra.stored, spectra.scale
    kernels, xp = kernels_of(stored), xp_of(stored)
    n, n_frames = spectra.n_particles, spectra.n_frames
    out = xp.empty((n, n_frames, grid.size, grid.size), np.float32)
    shells = int(np.ceil(np.sqrt(2) * k)) + 1
    padded = np.zeros((weight.shape[0], n_frames, shells), np.float32)
    padded[..., : k + 1] = weight[..., : k + 1]
    shared = xp.broadcast_to(beside(stored, padded), (n, n_frames, shells))
    along_y, along_x = waves(grid, k, spectra.box)
    fold = beside(stored, np.stack([along_y.real, along_y.imag])[:, grid.half :].astype(np.float32))
    across = beside(stored, np.concatenate([along_x.real, -along_x.imag], 1).T.astype(np.float32))
    patch_bytes = window_work_bytes(k, grid.size)

    def work(part: slice) -> None:
        for some in in_cache(n_frames, patch_bytes, stored):
            patches, size = stored[part, some], scale[part, some]
            cross = xp.empty((2, k + 1, *patches.shape[:2], 2, k + 1), np.float32)
            kernels.cross_kernel(patches, size, predicted[part], shared[part, some], cross)
            out[part, some] = _folded_windows(cross, fold, across)

    with one_blas_thread():
        over_chunks(n, work, threads, chunk=1, like=stored, item_bytes=n_frames * patch_bytes)
    return out
