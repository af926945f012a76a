"""Motion-corrected, dose-weighted particles: shift by phase, weight, sum, crop, transform back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import fft

from refmotion_nb.numerics.backend import over_chunks
from refmotion_nb.numerics.fourier import band_of, half_plane_indices, shell_round
from refmotion_nb.numerics.kernels_cpu import recombine_kernel
from refmotion_nb.numerics.patches import PatchSpectra


def recombine(
    spectra: PatchSpectra,
    displacement_px: np.ndarray,  # (particle, frame, 2) from the coordinate, patch px
    weight: np.ndarray,  # (frame, shell) normalised over frames at each shell
    box_out: int,
    threads: int = 1,
) -> np.ndarray:
    """Return images (particle, box_out, box_out) float32: frames moved back by their displacement, weighted and summed.

    Shells beyond the last of ``weight`` take its weights.
    """
    out = np.empty((spectra.n_particles, box_out, box_out), np.float32)

    def work(part: slice, total: np.ndarray) -> None:
        out[part] = fft.irfft2(total, (box_out, box_out), norm="forward", workers=1)

    _sums(spectra, displacement_px, weight, box_out, threads, work)
    return out


def recombined_band(
    spectra: PatchSpectra, displacement_px: np.ndarray, weight: np.ndarray, k: int, threads: int = 1
) -> np.ndarray:
    """Return the band (particle, 2k + 1, k + 1) complex64 of what ``recombine`` returns."""
    out = np.empty((spectra.n_particles, 2 * k + 1, k + 1), np.complex64)

    def work(part: slice, total: np.ndarray) -> None:
        out[part] = band_of(total, k)

    _sums(spectra, displacement_px, weight, min(2 * k + 2, spectra.box), threads, work)
    return out


def _sums(
    spectra: PatchSpectra, displacement_px: np.ndarray, weight: np.ndarray, box_out: int, threads: int,
    use: Callable[[slice, np.ndarray], None],
) -> None:  # fmt: skip
    """Hand on the weighted sums of frames (particle, box_out, box_out // 2 + 1) complex64, chunk by chunk."""
    ky, kx = half_plane_indices(box_out)
    shell = np.minimum(shell_round(ky, kx), weight.shape[1] - 1)
    shift = displacement_px - spectra.offset_px
    share = np.ascontiguousarray(weight[:, shell], np.float32)

    def work(part: slice) -> None:
        total = np.zeros((part.stop - part.start, box_out, box_out // 2 + 1, 2), np.float32)
        recombine_kernel(spectra.stored[part], spectra.scale[part], shift[part], share, total)
        use(part, total.view(np.complex64)[..., 0])

    over_chunks(spectra.n_particles, work, threads, chunk=8)


def normalise(images: np.ndarray, radius_px: float, threads: int = 1) -> np.ndarray:
    """Return images with mean 0 and standard deviation 1 outside a circle: what refinement programs expect."""
    box = images.shape[-1]
    r = np.arange(box) - box // 2
    ring = r[:, None] ** 2 + r[None] ** 2 > radius_px**2
    out = np.empty(images.shape, np.float32)

    def work(part: slice) -> None:
        background = images[part, ring].astype(np.float64)
        mean, std = background.mean(1), background.std(1)
        out[part] = (images[part] - mean[:, None, None]) / np.where(std > 0, std, 1)[:, None, None]

    over_chunks(len(images), work, threads, chunk=8)
    return out
