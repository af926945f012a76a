"""Numbers that every kind of drawing needs: round scales, some of many, limits that outliers do not move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_PARTICLES = 300  # drawn on one micrograph
MOST_FRAMES = 60  # points of a path


def round_down(value: float, factors: Sequence[float] = (1, 2, 5)) -> float:
    """Return the largest of ``factors``, times powers of ten, that is not above ``value``, which is positive."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * max(factor for factor in factors if factor * power <= value * 1.0001))


def spread(n: int, most: int) -> np.ndarray:
    """Return which of ``n`` items to show where there is room for ``most``: all, or some from the first to the last."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def percentile(values: np.ndarray, percent: float) -> float:
    """Return a percentile of the finite values; 0 if there are none."""
    found = values[np.isfinite(values)]
    return float(np.percentile(found, percent)) if found.size else 0.0
