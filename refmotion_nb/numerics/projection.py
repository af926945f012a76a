"""Central slices of a masked half map, by RELION's recipe.

Half map × mask, zero-padded (×2), divided by sinc² of the trilinear kernel, transformed about the box centre, sampled
trilinearly (Scheres 2012; as relion_project).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from refmotion_nb.numerics.kernels_cpu import slice_kernel


@dataclass(frozen=True)
class FourierVolume:
    """The padded transform of a map about its centre, cut to the shells in use."""

    ft: np.ndarray  # (kz, ky, kx >= 0) complex64, kz and ky from -limit to limit, forward normalised per slice
    padding: int
    box: int  # px of the map
    k_max: int  # highest shell (of the unpadded box) that slices may have


def prepare_volume(
    half_map: np.ndarray, mask: np.ndarray | None, k_max: int, padding: int = 2, threads: int = 1
) -> FourierVolume:
    """Transform a (z, y, x) map for slicing up to shell ``k_max``; axes are transformed one by one, only where non-zero."""
    n = half_map.shape[0]
    size = padding * n
    k_max = min(k_max, n // 2)
    limit = padding * k_max + 1  # trilinear sampling reaches one padded shell further
    r = np.arange(n) - n // 2
    # sinc² of the distance from the centre, as the kernel is trilinear in the padded transform (RELION's gridding correction)
    radius = np.sqrt((r**2)[:, None, None] + (r**2)[None, :, None] + (r**2)[None, None, :]).astype(np.float32)
    data = half_map.astype(np.float32) / np.sinc(radius / size) ** 2
    if mask is not None:
        data *= mask
    keep = np.arange(-limit, limit + 1)
    volume = _rfft_about_centre(data, size, min(limit, size // 2), threads)
    for axis in (1, 0):
        volume = _fft_about_centre(volume, axis, size, keep, threads)
    volume *= np.float32(1.0 / n**2)
    return FourierVolume(np.ascontiguousarray(volume), padding, n, k_max)


def _phase(n: int, size: int, k: np.ndarray) -> np.ndarray:
    """Return the phase that moves the origin of a length-``n`` axis to its centre n // 2."""
    return np.exp(2j * np.pi * k * (n // 2) / size).astype(np.complex64)


def _rfft_about_centre(data: np.ndarray, size: int, limit: int, threads: int) -> np.ndarray:
    n = data.shape[-1]
    ft = fft.rfft(data, size, axis=-1, workers=threads)[..., : limit + 1]
    return ft * _phase(n, size, np.arange(limit + 1))


def _fft_about_centre(data: np.ndarray, axis: int, size: int, keep: np.ndarray, threads: int) -> np.ndarray:
    n = data.shape[axis]
    ft = np.take(fft.fft(data, size, axis=axis, workers=threads), keep % size, axis=axis)
    shape = [1, 1, 1]
    shape[axis] = -1
    ft *= _phase(n, size, keep).reshape(shape)
    return ft


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
    """Return central slices (particle, 2k + 1, k + 1), complex64, of the volume in the given orientations.

    ``scale`` is the ratio of the map's physical extent to the image's (shell k of the image is shell scale·k of the
    map). With ``box`` > 0 the object is moved from the origin to pixel ``centre_px`` of an image of that box.
    """
    m = np.eye(2) if magnification is None else np.asarray(magnification, np.float64)
    # frequency in the map = A^T (kx', ky', 0), with the magnification applied to (kx, ky)
    to_map = np.einsum("pij,ik->pjk", matrices[:, :2, :], m) * scale
    shift = np.zeros((len(matrices), 2))
    if box:
        shift = (centre_px - np.asarray(origin_px, np.float64)) / box
    out = np.empty((len(matrices), 2 * k + 1, k + 1), np.complex64)
    slice_kernel(volume.ft, volume.padding, float(volume.k_max), np.ascontiguousarray(to_map), shift, k, out)
    return out
