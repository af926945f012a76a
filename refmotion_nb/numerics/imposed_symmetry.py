"""The point group that was imposed on half maps: its rotations leave them the same, noise included."""

from __future__ import annotations

import finufft
import numpy as np
import scipy.fft

from refmotion_nb.numerics.fourier import first_shell_below
from refmotion_nb.numerics.reconstruct import fsc
from refmotion_nb.numerics.symmetry import POLYHEDRAL, generators, operators, rotation

POINTS = 2000  # at which transforms are compared: a correlation of them is known to 0.02
LAST_SHELL = 80  # of those compared: transforms of so many shells take 0.2 GB
HIGHEST_ORDER = 40  # of cyclic and dihedral groups
ROUNDING = 0.04  # of a correlation: symmetry is imposed by interpolation


def imposed_symmetry(half1: np.ndarray, half2: np.ndarray, threads: int = 1) -> str:
    """Return the largest point group that was imposed on both half maps (z, y, x), C1 if none was.

    It is looked for in the shells in which the half maps cease to agree: there a half map agrees with its rotated self no
    better than with the other half map, whatever the symmetry of the molecule, unless its noise is symmetric too.
    """
    last = max(min(first_shell_below(fsc(half1, half2, threads), 0.143), LAST_SHELL, len(half1) // 2 - 1), 1)
    points = _points(0.75 * last, last)
    orders = range(2, min(last, HIGHEST_ORDER) + 1)  # a smaller turn moves these shells by less than they vary over
    groups = ["C1", *(f"{kind}{order}" for kind in "CD" for order in orders), *POLYHEDRAL]
    turns = [(name, turn) for name in groups for turn in _turns(name)]
    turned = points @ np.stack([np.eye(3), *(turn for _, turn in turns)]).transpose(0, 2, 1)
    still, *of_turns = _transform_at(half1, last, turned, threads)
    other = _transform_at(half2, last, points, threads)
    least = 1 - max(0.5 * (1 - _correlation(still, other)), ROUNDING)
    broken = {name for (name, _), values in zip(turns, of_turns) if _correlation(still, values) < least}
    return max((name for name in groups if name not in broken), key=lambda name: len(operators(name)))


def _turns(name: str) -> list[np.ndarray]:
    """Return all turns (3, 3) about the axes that generate a group: one alone may be near those of a group of another order."""
    return [rotation(order / i, axis) for order, axis in generators(name) for i in range(1, order // 2 + 1)]


def _points(low: float, high: float) -> np.ndarray:
    """Return points (point, xyz) all over the shells from ``low`` to ``high``, always the same."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((POINTS, 3))
    return directions * (rng.uniform(low, high, POINTS) / np.linalg.norm(directions, axis=1))[:, None]


def _transform_at(volume: np.ndarray, last: int, points: np.ndarray, threads: int) -> np.ndarray:
    """Return the Fourier transform (..., point) of a map (z, y, x), its centre at the origin, up to shell ``last``."""
    size = min(2 * last + 2, len(volume))
    k = np.fft.fftfreq(size, 1 / size).astype(int)
    transform = scipy.fft.rfftn(volume, workers=threads)[np.ix_(k, k, np.arange(size // 2 + 1))]
    small = scipy.fft.irfftn(transform, (size,) * 3, workers=threads).astype(np.complex64)
    z, y, x = np.ascontiguousarray((2 * np.pi / size * points.reshape(-1, 3)[:, ::-1]).T, np.float32)
    values = finufft.nufft3d2(z, y, x, small, eps=1e-4, isign=-1, nthreads=threads, showwarn=0)
    beyond = len(volume) // 2 / len(volume) - 0.5  # the centre of an odd map is half a pixel before its middle
    return values.reshape(points.shape[:-1]) * np.exp(2j * np.pi * beyond * points.sum(-1))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    power = float(np.vdot(first, first).real * np.vdot(second, second).real)
    return float(np.vdot(first, second).real / np.sqrt(power)) if power else 0.0
