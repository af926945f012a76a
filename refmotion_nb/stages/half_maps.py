"""Half maps of particles while their movies are in memory: what each adds, and the grid all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft

from refmotion_nb.data.maps import load_reference
from refmotion_nb.data.schema import Reference
from refmotion_nb.data.transfer import Transfer
from refmotion_nb.numerics.backend import over_chunks
from refmotion_nb.numerics.fourier import half_plane_indices
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.numerics.projection import euler_to_matrix, slice_axes
from refmotion_nb.numerics.reconstruct import Transform, reconstruct, sampling_density
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.micrograph import Micrograph, particle_images
from refmotion_nb.stages.session import Session


@dataclass(frozen=True)
class Grid:
    """The box of all maps: particles from movies of other pixel sizes are of one extent and go onto the finest."""

    size: int  # px
    pixel_size_A: float

    @classmethod
    def of(cls, session: Session, settings: Alignment) -> Grid:
        """Return the grid of a dataset."""
        finest = min(movie.pixel_size_A for movie, _ in session.micrographs.values())
        return cls(movie_box(session.extent_A(settings), finest), finest)

    @property
    def extent_A(self) -> float:
        """Physical width."""
        return self.size * self.pixel_size_A

    def mask(self, reference: Reference) -> np.ndarray:
        """Return the mask of a reference on this grid (z, y, x); InputError if its files cannot be used."""
        loaded = load_reference(reference)
        n = movie_box(loaded.box_size * loaded.pixel_size_A, self.pixel_size_A)
        return _centred(_resampled(loaded.mask, n), self.size)


def slices_of(
    m: Micrograph, part: slice, chosen: list[tuple[np.ndarray, np.ndarray]], session: Session, grid: Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what some particles of a micrograph add to maps on a grid.

    That is, their images for each of the displacements (particle, frame, 2) px and weights (frame, shell) of ``chosen``:
    transforms times the CTF (particle, choice, box, box//2+1), all else that the microscope did undone and the object at the
    first pixel; the CTF² (particle, box, box//2+1); the axes of the slices (particle, 2, 3).
    """
    box, threads = m.spectra.box, session.threads
    ky, kx = half_plane_indices(box)
    centre = box // 2 - m.placement.origin_A[part] / m.pixel_size_A
    # noise of one pixel is 1 in all images: per Fourier component it is, too, once transforms are divided by their box
    ramp = np.exp(2j * np.pi / box * kx[None] * centre[:, 0, None, None]).astype(np.complex64) * np.float32(
        grid.size / box
    )
    ramp = ramp * np.exp(2j * np.pi / box * ky[None] * centre[:, 1, None, None]).astype(np.complex64)
    power = np.empty(ramp.shape, np.float32)
    axes = np.empty((len(ramp), 2, 3))
    matrices = euler_to_matrix(m.particles["euler"].values[part])
    group = m.particles["optics"].values[part]
    for g in np.unique(group):
        mine = np.flatnonzero(group == g)
        transfer = Transfer.of(session.data.optics[g], ky, kx, m.extent_A)

        def modulate(some: slice, mine: np.ndarray = mine, transfer: Transfer = transfer) -> None:
            value = transfer.ctf(m.particles, part.start + mine[some])
            power[mine[some]] = value**2
            ramp[mine[some]] *= value if transfer.response is None else value * (1 / transfer.response)

        over_chunks(len(mine), modulate, threads, chunk=4)
        scale = grid.extent_A / m.extent_A
        axes[mine] = slice_axes(matrices[mine], scale, transfer.magnification).transpose(0, 2, 1)
    images = np.empty((len(ramp), len(chosen), *ramp.shape[1:]), np.complex64)
    for i, (displacement_px, weight) in enumerate(chosen):
        seen = particle_images(m, displacement_px, weight, box, threads, part)

        def transform(some: slice, i: int = i, seen: np.ndarray = seen) -> None:
            # since SciPy 1.18 last bits depend on how many threads share a transform, and on how many images it is of
            np.multiply(fft.rfft2(seen[some], workers=1), ramp[some], out=images[some, i])

        over_chunks(len(seen), transform, threads, chunk=8)
    return images, power, axes


def half_maps(halves: list[Transform], threads: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both half maps of each combination, made from the transforms of half sets."""
    density = [sampling_density(half, threads) for half in halves]
    for i in range(halves[0].n_maps):
        first, second = (reconstruct(half, i, d, threads) for half, d in zip(halves, density))
        yield first, second


def _resampled(mask: np.ndarray, box: int) -> np.ndarray:
    """Return the mask sampled on another box of the same extent and centre, by Fourier cropping or padding."""
    n = len(mask)
    if n == box:
        return mask
    m = min(n, box)
    kept = np.r_[: (m + 1) // 2, -(m // 2) : 0]  # frequencies along z and y that both have
    transform = fft.rfftn(fft.ifftshift(mask))  # from the centre: that of an odd box lies half a pixel elsewhere
    out = np.zeros((box, box, box // 2 + 1), transform.dtype)
    out[np.ix_(kept, kept, range(m // 2 + 1))] = transform[np.ix_(kept, kept, range(m // 2 + 1))]
    back = fft.fftshift(fft.irfftn(out, (box,) * 3, overwrite_x=True))
    return np.clip(back * np.float32((box / n) ** 3), 0, 1).astype(np.float32, copy=False)


def _centred(mask: np.ndarray, box: int) -> np.ndarray:
    """Return the mask in another box of the same pixel, cut or filled up with zeros about the centre."""
    n, m = len(mask), min(len(mask), box)
    if n == box:
        return mask
    out = np.zeros((box,) * 3, mask.dtype)
    a, b = n // 2 - m // 2, box // 2 - m // 2
    out[b : b + m, b : b + m, b : b + m] = mask[a : a + m, a : a + m, a : a + m]
    return out
