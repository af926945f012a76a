"""Motion of particles carried over to the whole field, by the prior that it was found under."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from refmotion_nb.numerics.prior import exponential

NUGGET = 1e-3  # of the variance: keeps the solution proper where particles are close to each other
_AT_ONCE = 4096  # positions, to bound memory


def motion_field(
    position_A: np.ndarray,  # (particle, 2)
    local_A: np.ndarray,  # (particle, frame, 2)
    at_A: np.ndarray,  # (position, 2)
    distance_A: float,
) -> np.ndarray:
    """Return the expected local motion (position, frame, 2) Å at other positions, given that of particles.

    Motion has covariance exp(-d / distance) over the micrograph and mean 0, as in the spatial prior: k(x, X) K⁻¹ L(X),
    simple kriging. Far from all particles it goes to 0.
    """
    n, n_frames = local_A.shape[:2]
    covariance = exponential(_apart(position_A, position_A) / distance_A) + NUGGET * np.eye(n)
    shares = linalg.solve(covariance, local_A.reshape(n, -1), assume_a="pos")
    out = np.empty((len(at_A), 2 * n_frames))
    for start in range(0, len(at_A), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        out[part] = exponential(_apart(at_A[part], position_A) / distance_A) @ shares
    return out.reshape(-1, n_frames, 2)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one[:, None] - other[None], axis=-1)
