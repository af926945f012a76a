"""Direct Fourier reconstruction and Fourier shell correlation: arrays in, arrays out.

A map is the sum its projections are made of: image(x, y) = sum of map(x, y, z) over z, as in RELION, so that
``rfft2(image)`` is a central slice of ``fftn(map)`` without further factors. A rotation A takes map to image
coordinates (x = A[0]·r, y = A[1]·r: RELION's Euler matrix), so the slice at (kx, ky) lies at kx A[0] + ky A[1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from refmotion_nb.numerics.backend import over_chunks
from refmotion_nb.numerics.fourier import first_shell_below
from refmotion_nb.numerics.kernels_maps import (
    complete_friedel_plane,
    divide_kernel,
    insert_kernel,
    randomise_phases_kernel,
    ratio_kernel,
    shell_sums_kernel,
    shell_totals_kernel,
    smooth_yx_kernel,
    smooth_z_kernel,
    symmetrise_kernel,
)
from refmotion_nb.numerics.symmetry import grid_cosets

PADDING = 2  # oversampling of the transform, as RELION's --pad 2
MIN_WEIGHT_SHARE = 1e-3  # of the mean weight of a shell, below which a voxel counts as unmeasured (RELION's floor)


@dataclass(frozen=True)
class Transform:
    """Sums of an oversampled transform, half of it (kx ≥ 0), with the origin at ``[radius + 1, radius + 1, 0]``.

    Several maps of the same particles may share one: their weights are the same.
    """

    sums: np.ndarray  # (z, y, x, 2 maps + 1) float32: real and imaginary part of each map's weighted values, weight
    size: int  # px, box of the maps

    @property
    def n_maps(self) -> int:
        """Number of maps."""
        return self.sums.shape[3] // 2

    @property
    def radius(self) -> int:
        """Last shell of the oversampled transform."""
        return self.sums.shape[2] - 2

    def __add__(self, other: Transform) -> Transform:
        """Sum of two transforms of one box, e.g. of two halves or of two processes."""
        return Transform(self.sums + other.sums, self.size)


class BackProjector:
    """Slices of projections, inserted into an oversampled transform by trilinear interpolation under a symmetry."""

    def __init__(self, size: int, n_maps: int, symmetry: np.ndarray | None = None, threads: int = 1):
        """Make room for maps of ``size`` px up to the Nyquist limit under operators (operator, 3, 3)."""
        self.size, self.n_maps, self.threads = size, n_maps, threads
        self.radius = PADDING * (size // 2)
        # what maps the grid onto itself is added up at the end, once for all slices
        self._on_grid, self._cosets = grid_cosets(np.eye(3)[None] if symmetry is None else np.asarray(symmetry, float))
        n = 2 * self.radius + 3
        self._sums = np.zeros((n, n, self.radius + 2, 2 * n_maps + 1), np.float32)

    @staticmethod
    def bytes_needed(size: int, n_maps: int) -> int:
        """Return the memory that a transform of maps of ``size`` px takes, while it is filled."""
        n = 2 * (PADDING * (size // 2)) + 3
        return 4 * n * n * (PADDING * (size // 2) + 2) * (2 * n_maps + 1)

    def insert(self, images_ft: np.ndarray, weights_ft: np.ndarray, axes: np.ndarray) -> None:
        """Insert slices: images (particle, map, box, box//2+1) complex, weights (particle, box, box//2+1).

        The images are rfft2 with the object at the origin, times the CTF; the weights are CTF². ``axes`` (particle, 2, 3)
        are where one step of an image along kx and ky leads to in the map's transform, in its steps: the first two rows of
        the Euler matrix, if both have one extent. Their box may differ from the map's.

        Raises
        ------
        ValueError
            Images that are not square, or images, weights and axes of different lengths.
        """
        count, maps, box, half = images_ft.shape
        if half != box // 2 + 1 or weights_ft.shape != (count, box, half) or len(axes) != count or maps != self.n_maps:
            raise ValueError(
                f"images {images_ft.shape}, weights {weights_ft.shape}, axes {axes.shape} do not fit together"
            )
        values = np.empty((count, box, half, 2 * maps + 1), np.float32)
        for m in range(maps):
            values[..., 2 * m], values[..., 2 * m + 1] = images_ft[:, m].real, images_ft[:, m].imag
        values[..., -1] = weights_ft
        # f(S r) = f(r) makes F(S k) = F(k): the same slice belongs at every rotated place
        places = np.ascontiguousarray(np.einsum("jab,pkb->pjka", self._cosets, np.asarray(axes, float)))

        edges = self._slabs()

        def work(part: slice) -> None:
            insert_kernel(values, places, PADDING, self.radius, edges[part.start], edges[part.stop], self._sums)

        over_chunks(len(edges) - 1, work, self.threads, chunk=1)

    def _slabs(self) -> list[int]:
        """Return the edges of slabs of planes, one for each thread, with equal shares of the slices of all directions."""
        share = np.arange(1, self.threads) / self.threads
        # a slice has the density R - |z| of its pixels at height z
        z = np.where(share < 0.5, np.sqrt(2 * share) - 1, 1 - np.sqrt(2 * (1 - share)))
        inner = np.rint((1 + z) * (self.radius + 1)).astype(int).tolist()
        return [0, *inner, 2 * self.radius + 3]

    def transform(self) -> Transform:
        """Return the finished sums; nothing can be inserted afterwards."""
        sums = self._sums
        del self._sums
        complete_friedel_plane(sums)
        if len(self._on_grid) > 1:
            n = len(sums)
            over_chunks(
                n, lambda part: symmetrise_kernel(sums, self._on_grid, part.start, part.stop), self.threads, chunk=8
            )
        return Transform(sums, self.size)


def backproject(
    images_ft: np.ndarray,  # (particle, size, size//2+1) complex: rfft2, object at the origin, times the CTF
    weights_ft: np.ndarray,  # (particle, size, size//2+1) float: CTF² (over the noise variance)
    rotations: np.ndarray,  # (particle, 3, 3) Euler matrices
    *,
    symmetry: np.ndarray | None = None,  # (operator, 3, 3) rotations that leave the object as it is
) -> Transform:
    """Insert the slices of one map into an oversampled transform by trilinear interpolation, in one thread.

    Raises
    ------
    ValueError
        Images that are not square, or images, weights and rotations of different lengths.
    """
    projector = BackProjector(images_ft.shape[1], 1, symmetry)
    projector.insert(images_ft[:, None], weights_ft, np.asarray(rotations)[:, :2])
    return projector.transform()


@dataclass(frozen=True)
class Density:
    """How densely a transform was sampled: what its values are divided by."""

    values: np.ndarray  # (z, y, x) float32
    floors: np.ndarray  # (shell of the oversampled transform,) below which a voxel counts as unmeasured


def sampling_density(transform: Transform, threads: int = 1) -> Density:
    """Return the density that the maps of a transform share.

    The sums are divided not by the weight of each voxel, which amplifies the noise of those hardly touched, but by
    weights averaged over neighbouring voxels, iterated once (Pipe & Menon 1999): the oversampled transform varies
    little over that distance.
    """
    sums, radius = transform.sums, transform.radius
    n = len(sums)
    density = np.ascontiguousarray(sums[..., -1])
    _average_of_neighbours(density, threads)
    total, count = np.zeros((n, radius + 1)), np.zeros((n, radius + 1))
    over_chunks(n, lambda p: shell_totals_kernel(density, radius, p.start, p.stop, total, count), threads, chunk=16)
    floors = MIN_WEIGHT_SHARE * total.sum(0) / np.maximum(count.sum(0), 1)
    ratio = np.empty_like(density)
    over_chunks(n, lambda p: ratio_kernel(sums, density, floors, p.start, p.stop, ratio), threads, chunk=16)
    _average_of_neighbours(ratio, threads)
    density *= ratio
    return Density(density, floors)


def reconstruct(transform: Transform, which: int = 0, density: Density | None = None, threads: int = 1) -> np.ndarray:
    """Map (z, y, x) from the sums of a transform: density compensation, inverse transform, gridding correction.

    ``which`` of its maps; ``density`` if it is known. Beyond the sphere that fits the box the map is 0.
    """
    density = density or sampling_density(transform, threads)
    n, radius = transform.size, transform.radius
    big = PADDING * n
    keep = (np.arange(n) - n // 2) % big  # centre of the padded map, with the origin moved to n // 2
    rows = min(radius, (big - 1) // 2)  # of kx, on either side of 0
    # axis by axis, each cropped before the next, slab by slab: what is zero is not transformed, what is not kept not stored
    planes = np.zeros((n, big, n + 1), np.complex64)
    volume = np.empty((n, n, n), np.float32)
    # trilinear insertion convolves the transform with a triangle, that is multiplies the map by sinc²
    r = np.arange(n, dtype=np.float32) - n // 2
    gridding = np.sinc(r / big).astype(np.float32) ** 2

    def along_z(part: slice) -> None:
        low, high = part.start - rows, part.stop - rows
        values = np.zeros((big, high - low, n + 1), np.complex64)
        divide_kernel(transform.sums, which, density.values, density.floors, low, high, values)
        planes[:, np.arange(low, high) % big] = scipy.fft.ifft(values, axis=0, overwrite_x=True, workers=1)[keep]

    def along_y_and_x(part: slice) -> None:
        columns = scipy.fft.ifft(planes[part], axis=1, workers=1)[:, keep]
        slab = scipy.fft.irfft(columns, n=big, axis=2, workers=1)[..., keep]
        slab /= gridding[part, None, None] * gridding[:, None] * gridding
        slab[r[part, None, None] ** 2 + r[:, None] ** 2 + r**2 > (n / 2) ** 2] = 0
        volume[part] = slab

    over_chunks(2 * rows + 1, along_z, threads, chunk=8)
    over_chunks(n, along_y_and_x, threads, chunk=4)
    return volume


def _average_of_neighbours(values: np.ndarray, threads: int) -> None:
    """Convolve a half transform of even symmetry with (1/4, 1/2, 1/4) along each axis, in place."""
    over_chunks(values.shape[1], lambda p: smooth_z_kernel(values, p.start, p.stop), threads, chunk=16)
    mirror = values[::-1, ::-1, 1].copy()
    over_chunks(len(values), lambda p: smooth_yx_kernel(values, mirror, p.start, p.stop), threads, chunk=16)


def fsc(map1: np.ndarray, map2: np.ndarray, threads: int = 1) -> np.ndarray:
    """Fourier shell correlation (size//2 + 1,) of two cubic maps; shell s is at s / (size · pixel size) 1/Å."""
    first, second = (scipy.fft.rfftn(one, workers=threads) for one in (map1, map2))
    return _fsc_of_transforms(first, second, threads)


@dataclass(frozen=True)
class MaskedFSC:
    """The curves of RELION's post-processing, one value per shell."""

    corrected: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray
    randomised: np.ndarray
    randomised_from: int  # first shell with random phases


def fsc_masked_corrected(
    half1: np.ndarray, half2: np.ndarray, mask: np.ndarray, seed: int = 0, threads: int = 1
) -> MaskedFSC:
    """FSC of masked half maps, corrected for the mask by phase randomisation (Chen et al. 2013, as RELION applies it).

    Phases are random from the first shell with an unmasked FSC below 0.8; from two shells further on the corrected
    value is (masked - randomised) / (1 - randomised), and 0 where the randomised maps correlate better than the maps.
    """
    n = len(half1)
    transforms = [scipy.fft.rfftn(half, workers=threads) for half in (half1, half2)]
    unmasked = _fsc_of_transforms(transforms[0], transforms[1], threads)
    start = first_shell_below(unmasked, 0.8)
    masked = fsc(half1 * mask, half2 * mask, threads)
    random = []
    for transform, rng in zip(transforms, np.random.default_rng(seed).spawn(2)):
        _randomise_phases(transform, start, rng, threads)
        random.append(
            scipy.fft.irfftn(transform, (n, n, n), overwrite_x=True, workers=threads).astype(np.float32) * mask
        )
    randomised = fsc(random[0], random[1], threads)
    corrected = masked.copy()
    beyond = np.arange(len(masked)) >= start + 2
    # a randomised FSC of one would divide by zero, and then it also exceeds the masked one
    share = (masked - randomised) / np.maximum(1 - randomised, 1e-6)
    corrected[beyond] = np.where(randomised > masked, 0.0, share)[beyond]
    return MaskedFSC(corrected, unmasked, masked, randomised, start)


def _randomise_phases(ft: np.ndarray, first_shell: int, rng: np.random.Generator, threads: int) -> None:
    """Turn the phases of a transform from a shell on by random angles, in place."""
    turns = rng.random(ft.shape, np.float32)
    over_chunks(len(ft), lambda p: randomise_phases_kernel(ft, turns, first_shell, p.start, p.stop), threads, chunk=8)


def half_transform_radii(n: int) -> np.ndarray:
    """Return the distance from the origin of each coefficient of an n³ half transform; its shell is that, rounded."""
    k = np.fft.fftfreq(n, 1 / n).astype(np.float32)
    x = np.arange(n // 2 + 1, dtype=np.float32)
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x**2)


def _fsc_of_transforms(ft1: np.ndarray, ft2: np.ndarray, threads: int) -> np.ndarray:
    n = len(ft1)
    sums = np.zeros((n, 3, n // 2 + 1))
    over_chunks(n, lambda p: shell_sums_kernel(ft1, ft2, p.start, p.stop, sums), threads, chunk=8)
    cross, power1, power2 = sums.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(cross / np.sqrt(power1 * power2))
