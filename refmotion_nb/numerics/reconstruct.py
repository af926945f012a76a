"""Direct Fourier reconstruction and Fourier shell correlation: arrays in, arrays out.

A map is the sum its projections are made of: image(x, y) = sum of map(x, y, z) over z, as in RELION, so that
``rfft2(image)`` is a central slice of ``fftn(map)`` without further factors. A rotation A takes map to image
coordinates (x = A[0]·r, y = A[1]·r: RELION's Euler matrix), so the slice at (kx, ky) lies at kx A[0] + ky A[1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba as nb
import numpy as np
import scipy.fft

PADDING = 2  # oversampling of the transform, as RELION's --pad 2
MIN_WEIGHT_SHARE = 1e-3  # of the mean weight of a shell, below which a voxel counts as unmeasured (RELION's floor)


@dataclass(frozen=True)
class Transform:
    """Sums of an oversampled transform, half of it (kx ≥ 0), with the origin at ``[radius + 1, radius + 1, 0]``."""

    sums: np.ndarray  # (z, y, x, 3) float32: real and imaginary part of the weighted values, weight
    size: int  # px, box of the images and of the map

    def __add__(self, other: Transform) -> Transform:
        """Sum of two transforms of one box, e.g. of two halves or of two processes."""
        return Transform(self.sums + other.sums, self.size)


def backproject(
    images_ft: np.ndarray,  # (particle, size, size//2+1) complex: rfft2, object at the origin, times the CTF
    weights_ft: np.ndarray,  # (particle, size, size//2+1) float: CTF² (over the noise variance)
    rotations: np.ndarray,  # (particle, 3, 3) Euler matrices
    *,
    symmetry: np.ndarray | None = None,  # (operator, 3, 3) rotations that leave the object as it is
    max_shell: int | None = None,  # px⁻¹ of the box; Nyquist unless given
) -> Transform:
    """Insert slices into an oversampled transform by trilinear interpolation, once per symmetry operator.

    Raises
    ------
    ValueError
        Images that are not square, or images, weights and rotations of different lengths.
    """
    count, size, half = images_ft.shape
    if half != size // 2 + 1 or weights_ft.shape != images_ft.shape or len(rotations) != count:
        raise ValueError(
            f"images {images_ft.shape}, weights {weights_ft.shape}, rotations {rotations.shape} do not fit together"
        )
    shells = min(max_shell or size // 2, size // 2)
    radius = PADDING * shells
    operators = np.eye(3)[None] if symmetry is None else np.asarray(symmetry, float)
    sums = np.zeros((2 * radius + 3, 2 * radius + 3, radius + 2, 3), np.float32)
    # f(S r) = f(r) makes F(S k) = F(k): the same slice belongs at every rotated place
    slices = np.einsum("jab,pcb->pjca", operators, np.asarray(rotations, float))[:, :, :2]
    _insert(images_ft, weights_ft, np.ascontiguousarray(slices), shells, sums)
    _complete_friedel_plane(sums)
    return Transform(sums, size)


def reconstruct(transform: Transform) -> np.ndarray:
    """Map (z, y, x) from the sums of ``backproject``: density compensation, inverse transform, gridding correction.

    The sums are divided not by the weight of each voxel, which amplifies the noise of those hardly touched, but by
    weights averaged over neighbouring voxels, iterated once (Pipe & Menon 1999): the oversampled transform varies
    little over that distance. Beyond the sphere that fits the box the map is 0.
    """
    n, radius = transform.size, transform.sums.shape[2] - 2
    big = PADDING * n
    density = _average_of_neighbours(transform.sums[..., 2].copy())
    floors = MIN_WEIGHT_SHARE * _shell_means(density, radius)
    density *= _average_of_neighbours(_ratio(transform.sums, density, floors))
    values = np.zeros((big, big, n + 1), np.complex64)
    _divide(transform.sums, density, floors, values)
    keep = (np.arange(n) - n // 2) % big  # centre of the padded map, with the origin moved to n // 2
    for axis in (0, 1):  # crop after each axis: less than half the work of one padded 3D transform
        values = np.take(scipy.fft.ifft(values, axis=axis, overwrite_x=True), keep, axis=axis)
    volume = np.take(scipy.fft.irfft(values, n=big, axis=2, overwrite_x=True), keep, axis=2)
    # trilinear insertion convolves the transform with a triangle, that is multiplies the map by sinc²
    r = np.arange(n, dtype=np.float32) - n // 2
    correction = np.sinc(r / big) ** 2
    volume /= correction[:, None, None] * correction[:, None] * correction
    volume[r[:, None, None] ** 2 + r[:, None] ** 2 + r**2 > (n / 2) ** 2] = 0
    return volume.astype(np.float32, copy=False)


def fsc(map1: np.ndarray, map2: np.ndarray) -> np.ndarray:
    """Fourier shell correlation (size//2 + 1,) of two cubic maps; shell s is at s / (size · pixel size) 1/Å."""
    return _fsc_of_transforms(scipy.fft.rfftn(map1), scipy.fft.rfftn(map2), len(map1))


@dataclass(frozen=True)
class MaskedFSC:
    """The curves of RELION's post-processing, one value per shell."""

    corrected: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray
    randomised: np.ndarray
    randomised_from: int  # first shell with random phases


def fsc_masked_corrected(half1: np.ndarray, half2: np.ndarray, mask: np.ndarray, seed: int = 0) -> MaskedFSC:
    """FSC of masked half maps, corrected for the mask by phase randomisation (Chen et al. 2013, as RELION applies it).

    Phases are random from the first shell with an unmasked FSC below 0.8; from two shells further on the corrected
    value is (masked - randomised) / (1 - randomised), and 0 where the randomised maps correlate better than the maps.
    """
    n = len(half1)
    transforms = [scipy.fft.rfftn(half) for half in (half1, half2)]
    unmasked = _fsc_of_transforms(transforms[0], transforms[1], n)
    below = np.flatnonzero(unmasked[1:] < 0.8)
    start = int(below[0]) + 1 if below.size else n // 2
    masked = fsc(half1 * mask, half2 * mask)
    shell = _shells(n)
    scrambled = []
    for transform, rng in zip(transforms, np.random.default_rng(seed).spawn(2)):
        phases = np.exp(2j * np.pi * rng.random(transform.shape, np.float32)).astype(transform.dtype)
        scrambled.append(np.where(shell >= start, np.abs(transform) * phases, transform))
    shape = (n, n, n)
    random1, random2 = (scipy.fft.irfftn(t, shape).astype(np.float32) * mask for t in scrambled)
    randomised = fsc(random1, random2)
    corrected = masked.copy()
    beyond = np.arange(len(masked)) >= start + 2
    # a randomised FSC of one would divide by zero, and then it also exceeds the masked one
    share = (masked - randomised) / np.maximum(1 - randomised, 1e-6)
    corrected[beyond] = np.where(randomised > masked, 0.0, share)[beyond]
    return MaskedFSC(corrected, unmasked, masked, randomised, start)


def _shells(n: int) -> np.ndarray:
    """Shell of each coefficient of an n³ half transform, rounded as RELION does."""
    k = np.fft.fftfreq(n, 1 / n).astype(np.float32)
    x = np.arange(n // 2 + 1, dtype=np.float32)
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x**2)).astype(np.int32)


def _fsc_of_transforms(ft1: np.ndarray, ft2: np.ndarray, n: int) -> np.ndarray:
    cross, power1, power2 = _shell_sums(ft1, ft2, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(cross / np.sqrt(power1 * power2))


@nb.njit(nogil=True, cache=True)
def _shell_sums(ft1, ft2, n):  # pragma: no cover - compiled
    sums = np.zeros((3, n // 2 + 1))
    for z in range(n):
        kz = z if z <= n // 2 else z - n
        for y in range(n):
            ky = y if y <= n // 2 else y - n
            for x in range(n // 2 + 1):
                shell = round(math.sqrt(kz * kz + ky * ky + x * x))
                if shell <= n // 2:
                    share = 1.0 if x == 0 or 2 * x == n else 2.0  # the half plane stands for both signs of kx
                    a, b = ft1[z, y, x], ft2[z, y, x]
                    sums[0, shell] += share * (a.real * b.real + a.imag * b.imag)
                    sums[1, shell] += share * (a.real * a.real + a.imag * a.imag)
                    sums[2, shell] += share * (b.real * b.real + b.imag * b.imag)
    return sums


@nb.njit(nogil=True, cache=True)
def _insert(images, weights, slices, shells, sums):  # pragma: no cover - compiled
    size = images.shape[1]
    origin = sums.shape[0] // 2
    for p in range(images.shape[0]):
        for j in range(slices.shape[1]):
            axes = slices[p, j]
            for iy in range(size):
                ky = iy if iy < (size + 1) // 2 else iy - size
                for kx in range(images.shape[2]):
                    # the column kx = 0 holds each value twice; Nyquist columns have no definite sign
                    if kx * kx + ky * ky > shells * shells or (kx == 0 and ky < 0):
                        continue
                    if 2 * kx >= size or 2 * abs(ky) >= size:
                        continue
                    x = PADDING * (kx * axes[0, 0] + ky * axes[1, 0])
                    y = PADDING * (kx * axes[0, 1] + ky * axes[1, 1])
                    z = PADDING * (kx * axes[0, 2] + ky * axes[1, 2])
                    real, imag = images[p, iy, kx].real, images[p, iy, kx].imag
                    if x < 0:
                        x, y, z, imag = -x, -y, -z, -imag
                    x0, y0, z0 = math.floor(x), math.floor(y), math.floor(z)
                    fx, fy, fz = x - x0, y - y0, z - z0
                    weight = weights[p, iy, kx]
                    for dz in range(2):
                        wz = fz if dz else 1 - fz
                        for dy in range(2):
                            wzy = wz * (fy if dy else 1 - fy)
                            row = sums[z0 + dz + origin, y0 + dy + origin]
                            for dx in range(2):
                                share = np.float32(wzy * (fx if dx else 1 - fx))
                                row[x0 + dx, 0] += share * real
                                row[x0 + dx, 1] += share * imag
                                row[x0 + dx, 2] += share * weight


@nb.njit(nogil=True, cache=True)
def _complete_friedel_plane(sums):  # pragma: no cover - compiled
    """Give each half of the plane kx = 0 what was inserted into the other."""
    last = sums.shape[0] - 1
    for z in range(last // 2 + 1):
        for y in range(last + 1):
            if z == last // 2 and y > last // 2:
                break
            here, there = sums[z, y, 0], sums[last - z, last - y, 0]
            for part in range(3):
                sign = np.float32(-1.0 if part == 1 else 1.0)
                here[part] += sign * there[part]
                there[part] = sign * here[part]


@nb.njit(nogil=True, cache=True)
def _average_of_neighbours(values):  # pragma: no cover - compiled
    """Convolve a half transform of even symmetry with (1/4, 1/2, 1/4) along each axis, in place."""
    nz, ny, nx = values.shape
    quarter, half = np.float32(0.25), np.float32(0.5)
    for y in range(ny):
        before = np.zeros(nx, np.float32)
        for z in range(nz):
            for x in range(nx):
                now = values[z, y, x]
                after = values[z + 1, y, x] if z + 1 < nz else np.float32(0)
                values[z, y, x] = quarter * (before[x] + after) + half * now
                before[x] = now
    for z in range(nz):
        before = np.zeros(nx, np.float32)
        for y in range(ny):
            for x in range(nx):
                now = values[z, y, x]
                after = values[z, y + 1, x] if y + 1 < ny else np.float32(0)
                values[z, y, x] = quarter * (before[x] + after) + half * now
                before[x] = now
    mirror = values[::-1, ::-1, 1].copy()  # what stands at kx = -1
    for z in range(nz):
        for y in range(ny):
            left = mirror[z, y]
            for x in range(nx):
                now = values[z, y, x]
                right = values[z, y, x + 1] if x + 1 < nx else np.float32(0)
                values[z, y, x] = quarter * (left + right) + half * now
                left = now
    return values


@nb.njit(nogil=True, cache=True)
def _shell_means(weight, radius):  # pragma: no cover - compiled
    total, count = np.zeros(radius + 1), np.zeros(radius + 1)
    for z in range(weight.shape[0]):
        for y in range(weight.shape[1]):
            for x in range(radius + 1):
                r2 = (z - radius - 1) ** 2 + (y - radius - 1) ** 2 + x * x
                if r2 <= radius * radius:
                    r = round(math.sqrt(r2))
                    total[r] += weight[z, y, x]
                    count[r] += 1
    return total / np.maximum(count, 1)


@nb.njit(nogil=True, cache=True)
def _ratio(sums, density, floors):  # pragma: no cover - compiled
    """Weight over the density around it (z, y, x): how uneven the first compensation leaves the transform."""
    out = np.zeros(density.shape, np.float32)
    radius = len(floors) - 1
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                r = math.sqrt((z - radius - 1) ** 2 + (y - radius - 1) ** 2 + x * x)
                if density[z, y, x] > floors[min(round(r), radius)]:
                    out[z, y, x] = sums[z, y, x, 2] / density[z, y, x]
    return out


@nb.njit(nogil=True, cache=True)
def _divide(sums, density, floors, out):  # pragma: no cover - compiled
    big, radius = out.shape[0], len(floors) - 1
    for z in range(-radius, radius + 1):
        for y in range(-radius, radius + 1):
            for x in range(radius + 1):
                r2 = z * z + y * y + x * x
                if r2 > radius * radius or 2 * abs(z) >= big or 2 * abs(y) >= big:
                    continue
                there = sums[z + radius + 1, y + radius + 1, x]
                d = max(density[z + radius + 1, y + radius + 1, x], np.float32(floors[round(math.sqrt(r2))]))
                if d > 0:
                    out[z % big, y % big, x] = complex(there[0] / d, there[1] / d)
