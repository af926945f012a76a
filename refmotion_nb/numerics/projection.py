"""Central slices of a masked half map, by RELION's recipe.

Half map × mask, zero-padded (×2), divided by sinc² of the trilinear kernel, transformed about the box centre, sampled
trilinearly (Scheres 2012; as relion_project).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from refmotion_nb.numerics.backend import beside, kernels_of, over_chunks, xp_of


@dataclass(frozen=True)
class FourierVolume:
    """The padded transform of a map about its centre, cut to the shells in use."""

    ft: Any  # (kz, ky, kx >= 0) complex64, kz and ky from -limit to limit, forward normalised per slice
    padding: int
    k_max: int  # highest shell (of the unpadded box) that slices may have


def prepare_volume(
    half_map: np.ndarray, mask: np.ndarray | None, k_max: int, padding: int = 2, threads: int = 1
) -> FourierVolume:
    """Transform a (z, y, x) map for slicing up to shell ``k_max``.

    Axes are transformed one by one, each only where the padded map is not zero and the result is kept, slab by slab.
    """
    n = half_map.shape[0]
    size = padding * n
    k_max = min(k_max, n // 2)
    limit = padding * k_max + 1  # trilinear sampling reaches one padded shell further
    keep = np.arange(-limit, limit + 1)
    n_x = min(limit, size // 2) + 1
    z, y, x = _support(mask) if mask is not None else (slice(0, n),) * 3
    r2_z, r2_y, r2_x = ((np.arange(axis.start, axis.stop) - n // 2) ** 2 for axis in (z, y, x))
    r2_yx = r2_y[:, None] + r2_x
    # sinc² of the distance from the centre, as the kernel is trilinear in the padded transform (RELION's correction)
    gridding = (1 / np.sinc(np.sqrt(np.arange(3 * (n // 2) ** 2 + 1)) / size) ** 2 / n**2).astype(np.float32)
    shift_z, shift_y = (_to_centre(n // 2 - axis.start, size, keep) for axis in (z, y))
    shift_x = _to_centre(n // 2 - x.start, size, np.arange(n_x))
    planes = np.empty((len(r2_z), len(keep), n_x), np.complex64)
    volume = np.empty((len(keep), len(keep), n_x), np.complex64)

    def along_x_and_y(part: slice) -> None:
        for i in range(part.start, part.stop):
            data = half_map[z.start + i, y, x] * gridding[r2_yx + r2_z[i]]
            if mask is not None:
                data *= mask[z.start + i, y, x]
            rows = fft.rfft(data, size, axis=1, workers=1)[:, :n_x] * shift_x
            planes[i] = fft.fft(rows, size, axis=0, workers=1)[keep % size] * shift_y[:, None]

    def along_z(part: slice) -> None:
        columns = fft.fft(planes[:, part], size, axis=0, workers=1)[keep % size]
        columns *= shift_z[:, None, None]
        q2 = (keep**2)[:, None, None] + (keep[part] ** 2)[:, None] + np.arange(n_x) ** 2
        columns[q2 > (padding * k_max) ** 2] = 0  # as in RELION, the last shell meets zeros beyond it
        volume[:, part] = columns

    over_chunks(len(planes), along_x_and_y, threads, chunk=4)
    over_chunks(len(keep), along_z, threads, chunk=4)
    return FourierVolume(volume, padding, k_max)


def _support(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the range along z, y and x beyond which a mask is zero (the whole of it if it is zero everywhere)."""
    zy, zx = (np.stack([plane.any(axis) for plane in mask]) for axis in (1, 0))
    where = (np.flatnonzero(inside.any(axis)) for inside, axis in ((zy, 1), (zy, 0), (zx, 0)))
    z, y, x = (slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, n) for at, n in zip(where, mask.shape))
    return z, y, x


def _to_centre(centre: int, size: int, k: np.ndarray) -> np.ndarray:
    """Return the phases that move the origin of a padded axis to pixel ``centre`` of what it begins with."""
    return np.exp(2j * np.pi * k * centre / size).astype(np.complex64)


def euler_to_matrix(euler_deg: np.ndarray) -> np.ndarray:
    """Return RELION's rotation matrices A (..., 3, 3) of (rot, tilt, psi) in degrees; image x = A[0]·r, y = A[1]·r."""
    a, b, g = np.moveaxis(np.deg2rad(np.asarray(euler_deg, np.float64)), -1, 0)
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def slice_axes(matrices: np.ndarray, scale: float = 1.0, magnification: np.ndarray | None = None) -> np.ndarray:
    """Return where steps of an image along kx and ky lead to in the map's transform (particle, 3, 2), in its steps.

    That is A^T (kx', ky', 0) with the magnification applied to (kx, ky); ``scale`` is the ratio of the map's physical
    extent to the image's.
    """
    m = np.eye(2) if magnification is None else np.asarray(magnification, np.float64)
    return np.einsum("pij,ik->pjk", matrices[:, :2, :], m) * scale


def slices(
    volume: FourierVolume,
    matrices: np.ndarray,  # (particle, 3, 3)
    origin_px: np.ndarray,  # (particle, 2) x y, px of the image: the object sits at the centre minus this
    k: int,
    scale: float = 1.0,
    magnification: np.ndarray | None = None,
    centre_px: float = 0.0,
    box: int = 0,
) -> np.ndarray:
    """Return central slices (particle, 2k + 1, k + 1), complex64, of the volume in the given orientations, where it is.

    ``scale`` is the ratio of the map's physical extent to the image's (shell k of the image is shell scale·k of the
    map). With ``box`` > 0 the object is moved from the origin to pixel ``centre_px`` of an image of that box.
    """
    to_map = slice_axes(matrices, scale, magnification)
    shift = np.zeros((len(matrices), 2))
    if box:
        shift = (centre_px - np.asarray(origin_px, np.float64)) / box
    out = xp_of(volume.ft).empty((len(matrices), 2 * k + 1, k + 1), np.complex64)
    to_map, shift = beside(out, np.ascontiguousarray(to_map)), beside(out, shift)
    kernels_of(out).slice_kernel(volume.ft, volume.padding, float(volume.k_max), to_map, shift, k, out)
    return out
