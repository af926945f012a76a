"""Motion-corrected, dose-weighted particles: shift by phase, weight, sum, crop, transform back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, irfft2, kernels_of, over_chunks, xp_of
from refmotion_nb.numerics.device_sizes import image_work_bytes
from refmotion_nb.numerics.fourier import band_of, half_plane_indices, shell_round
from refmotion_nb.numerics.patches import PatchSpectra


def recombine(
    spectra: PatchSpectra,
    displacement_px: np.ndarray,  # (particle, frame, 2) from the coordinate, patch px
    weight: np.ndarray,  # (frame, shell) normalised over frames at each shell
    box_out: int,
    threads: int = 1,
) -> Any:
    """Return images (particle, box_out, box_out) float32: frames moved back by their displacement, weighted and summed.

    They are where the spectra are. Shells beyond the last of ``weight`` take its weights.
    """
    out = xp_of(spectra.stored).empty((spectra.n_particles, box_out, box_out), np.float32)

    def work(part: slice, total: Any) -> None:
        out[part] = irfft2(total, box_out)

    _sums(spectra, displacement_px, weight, box_out, threads, work)
    return out


def recombined_band(
    spectra: PatchSpectra, displacement_px: np.ndarray, weight: np.ndarray, k: int, threads: int = 1
) -> Any:
    """Return the band (particle, 2k + 1, k + 1) complex64 of what ``recombine`` returns."""
    out = xp_of(spectra.stored).empty((spectra.n_particles, 2 * k + 1, k + 1), np.complex64)

    def work(part: slice, total: Any) -> None:
        out[part] = band_of(total, k)

    _sums(spectra, displacement_px, weight, min(2 * k + 2, spectra.box), threads, work)
    return out


def _sums(
    spectra: PatchSpectra, displacement_px: np.ndarray, weight: np.ndarray, box_out: int, threads: int,
    use: Callable[[slice, Any], None],
) -> None:  # fmt: skip
    """Hand on the weighted sums of frames (particle, box_out, box_out // 2 + 1) complex64, chunk by chunk."""
    stored, kernels, xp = spectra.stored, kernels_of(spectra.stored), xp_of(spectra.stored)
    ky, kx = half_plane_indices(box_out)
    shell = np.minimum(shell_round(ky, kx), weight.shape[1] - 1)
    shift = beside(stored, displacement_px - spectra.offset_px)
    share = beside(stored, np.take(weight.astype(np.float32), shell, 1))

    def work(part: slice) -> None:
        total = xp.zeros((part.stop - part.start, box_out, box_out // 2 + 1, 2), np.float32)
        kernels.recombine_kernel(stored[part], spectra.scale[part], shift[part], share, total)
        use(part, total.view(np.complex64)[..., 0])

    over_chunks(spectra.n_particles, work, threads, chunk=8, like=stored, item_bytes=image_work_bytes(box_out))


def normalise(images: Any, radius_px: float, threads: int = 1) -> Any:
    """Return images with mean 0 and standard deviation 1 outside a circle: what refinement programs expect."""
    box, xp = images.shape[-1], xp_of(images)
    r = np.arange(box) - box // 2
    ring = beside(images, np.flatnonzero(r[:, None] ** 2 + r[None] ** 2 > radius_px**2))
    out = xp.empty(images.shape, np.float32)

    def work(part: slice) -> None:
        some = images[part]
        background = some.reshape(len(some), -1)[:, ring]
        mean, std = background.mean(1, dtype=np.float64), background.std(1, dtype=np.float64)
        mean, std = mean.astype(np.float32), xp.where(std > 0, std, 1).astype(np.float32)
        out[part] = (some - mean[:, None, None]) / std[:, None, None]

    over_chunks(len(images), work, threads, chunk=8, like=images, item_bytes=8 * image_work_bytes(box))
    return out
