"""The hyperparameter search's geometry: where rays stand, how they step outwards, when they retire."""

from __future__ import annotations

from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import to_host, xp_of

# balance θ (degrees) and correlation distance z (Å) of the rays, for each thoroughness
RAYS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "fast": ((10.0, 50.0, 85.0), (1000.0, 4000.0, 16000.0)),
    "balanced": ((10.0, 40.0, 65.0, 80.0), (600.0, 1500.0, 4000.0, 12000.0)),
    "extensive": ((5.0, 25.0, 45.0, 65.0, 80.0, 88.0), (400.0, 1000.0, 2500.0, 6000.0, 15000.0, 40000.0)),
}
FIRST_STRENGTH = 0.03
STEPS_PER_DECADE = 4
QUIET_A = 0.05  # a ray whose local activity stays below this has no motion left
QUIET_STEPS = 2


def ray_table(thoroughness: str) -> tuple[np.ndarray, np.ndarray]:
    """Return balance (ray,) degrees and distance (ray,) Å of the predetermined rays."""
    balances, distances = RAYS[thoroughness]
    grid = np.array([(b, d) for b in balances for d in distances])
    return grid[:, 0], grid[:, 1]


def strengths(max_strength: float) -> np.ndarray:
    """Return the total prior strengths (step,) at which every ray is tried, up to ``max_strength``."""
    n = int(np.floor(np.log10(max_strength / FIRST_STRENGTH) * STEPS_PER_DECADE + 1e-9))
    return FIRST_STRENGTH * 10 ** (np.arange(n + 1) / STEPS_PER_DECADE)


def activity(displacement_A: Any) -> np.ndarray:
    """Return the 75th percentile over particles of trajectory length (set,) of displacements (set, particle, frame, 2)."""
    step = displacement_A[:, :, 1:] - displacement_A[:, :, :-1]
    length = to_host(xp_of(step).sqrt((step * step).sum(-1)).sum(-1))
    return np.percentile(length, 75, axis=1)


def retired(activity_local: np.ndarray) -> bool:
    """Return whether a ray with this history of local activity (step,) has come to rest."""
    recent = activity_local[-QUIET_STEPS:]
    return len(recent) == QUIET_STEPS and bool((recent < QUIET_A).all())


def cut_short(activity_local: np.ndarray, cv_score: np.ndarray, retired: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which rays (ray,) might have got better beyond their last step, and their local activity there (ray,) Å.

    These still moved, and their score was best within a decade of the last strength; one whose score has long risen need not
    come to rest. ``activity_local`` and ``cv_score`` (ray, step) are NaN beyond the end of a ray, ``retired`` (ray,) is true for
    those that came to rest.
    """
    n = np.isfinite(activity_local).sum(1)
    last = np.array([row[i - 1] if i else np.nan for row, i in zip(activity_local, n)])
    since_best = n - 1 - np.where(np.isfinite(cv_score), cv_score, np.inf).argmin(1)
    return ~retired.astype(bool) & (last > QUIET_A) & (since_best < STEPS_PER_DECADE), last
