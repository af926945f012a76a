"""Particle patches: where they are cut, their transforms, and the compact store the later passes read.

Transforms are kept as 16-bit integers with one scale per patch: the rounding is below 1e-3 of a patch's RMS, and a
micrograph takes half the memory and bandwidth (ADR 0004).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, kernels_of, over_chunks, rfft2, to_host, xp_of
from refmotion_nb.numerics.device_sizes import cut_work_bytes, power_work_bytes
from refmotion_nb.numerics.fourier import half_plane_indices, hermitian_weight, shell_floor
from refmotion_nb.numerics.room import Room

_CACHE_BYTES = 1 << 20  # of patches cut and transformed at a time by one thread


def movie_box(extent_A: float, movie_pixel_A: float) -> int:
    """Return the even box in movie px that covers a physical extent."""
    return 2 * int(0.5 * extent_A / movie_pixel_A + 0.5)


def integer_coordinate(coordinate_A: np.ndarray, pixel_A: float) -> np.ndarray:
    """Return coordinates truncated to a pixel (..., 2): the zero point of RELION's tracks.

    The tiny offset undoes rounding errors of a coordinate that was a whole number of pixels before it became Å.
    """
    return np.floor(np.asarray(coordinate_A) / pixel_A + 1e-4).astype(np.int64)


def patch_corners(centre_px: np.ndarray, box: int, offset_px: np.ndarray) -> np.ndarray:
    """Return the first pixel (..., 2) x y of boxes about ``centre_px``, moved by whole-pixel offsets."""
    return centre_px - box // 2 + offset_px


@dataclass
class PatchSpectra:
    """Transforms of all patches of a micrograph, forward normalised, origin 0, contrast inverted (protein bright).

    All steps that use them are done where they are, in the host's memory or on a GPU. Patches may be Fourier-cropped: their
    pixels are larger than the movie's then.
    """

    stored: Any  # (particle, frame, box, box // 2 + 1, 2) int16
    scale: Any  # (particle, frame) float32: grey value of one step
    offset_px: np.ndarray  # (particle, frame, 2) x y px of the patch by which it was cut away from the coordinate

    @classmethod
    def empty(
        cls, n_particles: int, n_frames: int, box: int, xp: ModuleType = np, room: Room | None = None
    ) -> PatchSpectra:
        """Make room for the patches of ``n_particles`` in ``n_frames``; on the CPU in the ``room`` given, if one is."""
        shape = (n_particles, n_frames, box, box // 2 + 1, 2)
        stored = room.empty(shape, np.int16) if room is not None and xp is np else xp.empty(shape, np.int16)
        scale = xp.ones((n_particles, n_frames), np.float32)
        return cls(stored, scale, np.zeros((n_particles, n_frames, 2)))

    @property
    def box(self) -> int:
        """Box size, px of the patch."""
        return self.stored.shape[2]

    @property
    def n_particles(self) -> int:
        """Number of particles."""
        return self.stored.shape[0]

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return self.stored.shape[1]

    def add_frame(
        self, f: int, frame: Any, gain: Any, corners: np.ndarray, background: np.ndarray | None = None, cut_px: int = 0
    ) -> None:
        """Cut, transform and store the patches of frame ``f`` at ``corners`` (particle, 2); safe from several threads.

        Frame and gain (height, width) are where the spectra are. A ``background`` on a coarse grid (ky, kx), in units of
        the mean count, is subtracted. Patches are ``cut_px`` px of the frame wide, if that is more than ``box``.
        """
        xp, kernels = xp_of(self.stored), kernels_of(self.stored)
        cut_px = cut_px or self.box
        level = None if background is None else beside(frame, background) * mean_count(frame, gain)
        # on the CPU neighbours go one after another, few at a time: what they share, and their patches, stay in the cache
        order = np.lexsort((corners[:, 0], corners[:, 1] // cut_px)) if xp is np else None
        chunk = max(1, _CACHE_BYTES // (4 * cut_px**2))

        def work(some: slice) -> None:
            part = some if order is None else order[some]
            patches = cut_patches(frame, gain, corners[part], cut_px, level)
            spectrum = rfft2(patches, self.box)
            spectrum[:, 0, 0] = 0
            packed = xp.empty((*spectrum.shape, 2), np.int16)
            scale = xp.empty(len(patches), np.float32)
            values = spectrum.view(np.float32).reshape(len(patches), -1)
            kernels.quantise_kernel(values, packed.reshape(len(patches), -1), scale)
            self.stored[part, f] = packed
            self.scale[part, f] = scale

        over_chunks(self.n_particles, work, 1, chunk, like=self.stored, item_bytes=cut_work_bytes(cut_px))

    def spectrum(self, p: int, f: int) -> np.ndarray:
        """Return one transform (box, box // 2 + 1) complex64, on the host."""
        pair = to_host(self.stored[p, f]).astype(np.float32) * to_host(self.scale[p, f])
        return pair[..., 0] + 1j * pair[..., 1]


def cut_patches(frame: Any, gain: Any, corners: np.ndarray, box: int, background: Any | None) -> Any:
    """Return the patches (particle, box, box) float32 of a frame at ``corners`` (particle, 2), contrast inverted.

    A ``background`` on a coarse grid (ky, kx), in counts, is subtracted.
    """
    corners = beside(frame, corners)
    patches = xp_of(frame).empty((len(corners), box, box), np.float32)
    kernels_of(frame).cut_patches_kernel(frame, gain, corners, patches)
    if background is not None:  # contrast is inverted
        height, width = frame.shape
        kernels_of(frame).add_background_kernel(beside(frame, background, np.float32), height, width, corners, patches)
    return patches


def mean_count(frame: Any, gain: Any) -> Any:
    """Return the mean count of a frame (height, width) times gain, from every 49th of its pixels: one float32."""
    some = xp_of(frame).multiply(frame[::7, ::7], gain[::7, ::7], dtype=np.float32)
    return some.mean(dtype=np.float64).astype(np.float32)


def particle_power(
    spectra: PatchSpectra, threads: int = 1, half_plane: bool = False, image_box: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ |X|² per particle and floor shell (particle, shell), and the number of pixels per frame (shell,), on the host.

    Sums run over the full plane, or (as RELION's noise spectrum) over the pixels of the half plane; with ``image_box`` over
    those that patches have when they are Fourier-cropped to it.
    """
    box, stored, kernels = spectra.box, spectra.stored, kernels_of(spectra.stored)
    ky, kx = half_plane_indices(box)
    shell = shell_floor(ky, kx)
    outside = np.maximum(np.abs(ky), kx) > (image_box or box) // 2
    shell[outside] = last = shell[~outside].max() + 1  # of what is left out
    hermitian = np.ones(box // 2 + 1) if half_plane else hermitian_weight(kx, box)[0]
    n_shells = int(last) + 1
    count = np.bincount(shell.ravel(), np.broadcast_to(hermitian, shell.shape).ravel(), n_shells)
    power = xp_of(stored).zeros((spectra.n_particles, n_shells))
    shell, hermitian = beside(stored, shell), beside(stored, hermitian)

    def work(part: slice) -> None:
        kernels.power_kernel(stored[part], spectra.scale[part], shell, hermitian, power[part])

    over_chunks(spectra.n_particles, work, threads, like=stored, item_bytes=power_work_bytes(box))
    return to_host(power)[:, :last], count[:last]
