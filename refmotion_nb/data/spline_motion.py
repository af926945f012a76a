"""CryoSPARC's smooth local motion: a cubic B-spline over frame, y and x, evaluated by Structura's published convention.

Coefficients (2, KZ, KY, KX), x then y, in movie px. Knot k of K along an axis of M samples lies at k (M - 1)/(K - 1);
beyond the ends coefficients go on by odd reflection, c(-1) = 2 c(0) - c(1). Source: Structura's ``patch_to_local``
notebook, where it is ``numpy.pad(..., 1, "reflect", reflect_type="odd")`` and ``map_coordinates(prefilter=False)``.
"""

from __future__ import annotations

import numpy as np


def spline_displacement(
    coefficients: np.ndarray, xy_px: np.ndarray, n_frames: int, shape: tuple[int, int], time: np.ndarray
) -> np.ndarray:
    """Evaluate local motion at positions (position, 2) x y px of a movie of ``shape``: (position, time, 2) px.

    The spline spans ``n_frames`` frames; ``time`` (time,) may be between and beyond them, where it goes on straight.
    """
    c = np.asarray(coefficients, float)
    _, kz, ky, kx = c.shape
    height, width = shape
    xy = np.asarray(xy_px, float).reshape(-1, 2)
    z = _straight_on(np.asarray(time, float), n_frames, kz)
    y, x = _basis(xy[:, 1], height, ky), _basis(xy[:, 0], width, kx)
    return np.einsum("azyx,fz,py,px->pfa", c, z, y, x, optimize=True)


def mirrored(coefficients: np.ndarray) -> np.ndarray:
    """Return the spline of the movie with its rows in reverse order: positions and displacements change sign in y."""
    flipped = np.array(coefficients)[:, :, ::-1]
    flipped[1] *= -1
    return flipped


def _straight_on(at: np.ndarray, samples: int, knots: int) -> np.ndarray:
    """Weights as of ``_basis``; outside the samples the tangent, since odd reflection leaves no curvature at the ends."""
    basis = _basis(at, samples, knots)
    u = at * (knots - 1) / max(samples - 1, 1)
    beyond = u - u.clip(0, knots - 1)
    inner = min(1, knots - 1)
    for outside, end, next_to in ((beyond < 0, 0, inner), (beyond > 0, knots - 1, knots - 1 - inner)):
        basis[outside, end] += np.abs(beyond[outside])
        basis[outside, next_to] -= np.abs(beyond[outside])
    return basis


def _basis(at: np.ndarray, samples: int, knots: int) -> np.ndarray:
    """Weights (position, knot) of the coefficients at sample positions; outside the samples those of the nearest."""
    u = (np.asarray(at, float) * (knots - 1) / max(samples - 1, 1)).clip(0, knots - 1)
    first = np.floor(u).astype(int)
    t = u - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    padded = np.zeros((len(u), knots + 3))  # knots -1 to K + 1, the last of which only ever has weight 0
    for j, weight in enumerate(weights):
        padded[np.arange(len(u)), first + j] += weight
    basis = padded[:, 1 : knots + 1].copy()
    inner = min(1, knots - 1)
    basis[:, 0] += 2 * padded[:, 0]
    basis[:, inner] -= padded[:, 0]
    basis[:, -1] += 2 * padded[:, knots + 1]
    basis[:, knots - 1 - inner] -= padded[:, knots + 1]
    return basis
