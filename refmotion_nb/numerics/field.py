"""The field of view as a whole: how its brightness varies, and which pixels count far too much.

Both are read off a sum of frames, ``total`` (height, width) raw counts times ``gain``, block by block of some 64 px.
Counts need not be electrons: their variance is measured in each block, per unit of gain. A pixel of expected level λ and
variance v then counts as a Poisson variable of mean m = λ²/v does, in units of v/λ, and is hot where the probability of
its count is below that of ``threshold`` standard deviations of a normal distribution.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.special import gammainc, ndtr

from refmotion_nb.numerics.backend import beside, kernels_of, one_blas_thread, over_chunks, to_host, xp_of
from refmotion_nb.numerics.device_sizes import block_work_bytes
from refmotion_nb.numerics.kernels_field import LEAST, MOST

BLOCK = 64  # px
_ROUNDS = 4  # of finding hot pixels: the variance of a block is overestimated as long as some are in it
_STEPS = 241  # of mean counts that limits are tabulated for
_ORDER = 3  # of the waves that a background is made of: none is shorter than two thirds of the field


def blocks_of(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges (block + 1,) of blocks along y and x: equal but for rounding, as backgrounds have them."""
    y, x = (np.arange(n + 1) * size // n for size in shape for n in [max(1, size // BLOCK)])
    return y, x


def block_level(total: Any, gain: Any, bad: Any, threads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level, variance per gain, and number of good pixels of each block (ky, kx), on the host; NaN where there is none."""
    y, x = blocks_of(total.shape)
    out = xp_of(total).zeros((3, len(y) - 1, len(x) - 1))
    _measure(total, gain, bad, np.ones(out.shape[1:], bool), out, threads)
    level, variance, count = to_host(out)
    return level, variance, count


def _measure(total: Any, gain: Any, bad: Any, wanted: np.ndarray, out: Any, threads: int) -> None:
    """Fill in what ``block_level`` returns, (3, ky, kx), for the blocks in ``wanted`` (ky, kx) bool."""
    y, x, some = (beside(total, one) for one in (*blocks_of(total.shape), wanted))

    def work(rows: slice) -> None:
        kernels_of(total).block_kernel(total, gain, bad, y, x, rows.start, rows.stop, some, out)

    over_chunks(len(wanted), work, threads, like=total, item_bytes=block_work_bytes(total.shape[1]))


def find_hot_pixels(total: Any, gain: Any, bad: Any, threshold: float, threads: int = 1) -> np.ndarray:
    """Return the hot pixels (n, 2) x y, on the host; ``bad`` (height, width) bool are known already.

    A hot pixel exceeds both the level of its blocks and the median of the 24 pixels around it: particles and edges of the
    ice are no hot pixels. The three arrays are in one place, and the work is done there.
    """
    xp, kernels, width = xp_of(total), kernels_of(total), total.shape[1]
    limits, counts = _limits(threshold), bool(total.min() >= 0)
    if not counts:  # a level about zero then says nothing of how values are distributed
        limits = np.full_like(limits, threshold)
    edges = blocks_of(total.shape)
    y, x, limits = (beside(total, one) for one in (*edges, limits))
    bad, found = bad.copy(), [np.zeros(0, np.int64)]
    new = xp.zeros(total.shape, bool)
    blocks = xp.zeros((3, len(y) - 1, len(x) - 1))
    changed = np.ones(blocks.shape[1:], bool)
    for _ in range(_ROUNDS):
        _measure(total, gain, bad, changed, blocks, threads)
        # a new hot pixel changes what is expected in the blocks next to its own, and no farther
        near = np.asarray(np.lib.stride_tricks.sliding_window_view(np.pad(changed, 1), (3, 3)).any((2, 3)))
        expected = (beside(total, one) for one in (near, *map(_smoothed, to_host(blocks)[:2])))

        def mark(rows: slice, expected=tuple(expected)) -> None:
            kernels.hot_kernel(
                total, gain, bad, y, x, rows.start, rows.stop, *expected, threshold, limits, counts, new
            )  # fmt: skip

        over_chunks(len(near), mark, threads, like=total, item_bytes=block_work_bytes(width))
        at = xp.flatnonzero(new)
        found.append(to_host(at))
        if not len(found[-1]):
            break
        bad.reshape(-1)[at], new.reshape(-1)[at] = True, False
        changed[:] = False
        changed[tuple(np.searchsorted(e, i, "right") - 1 for e, i in zip(edges, np.divmod(found[-1], width)))] = True
    every_y, every_x = np.divmod(np.sort(np.concatenate(found)), width)
    return np.stack([every_x, every_y], 1)


def smooth_background(level: np.ndarray, count: np.ndarray) -> np.ndarray | None:
    """Return the slow variation of the level of blocks (ky, kx) with mean 1, float32; None where the level is not positive.

    It is a sum of cosines along y and x, of orders up to 3 in all, fitted by weighted least squares with Tukey's weights,
    so that particles, ice and holes which are not the rule do not bend it.
    """
    known = count > 0
    y, x = (np.cos(np.pi * np.arange(min(_ORDER, n - 1) + 1)[:, None] * (np.arange(n) + 0.5) / n) for n in level.shape)
    order = np.add.outer(np.arange(len(y)), np.arange(len(x)))
    waves = np.einsum("ay,bx->abyx", y, x)[order <= _ORDER]  # (wave, ky, kx)
    design, values = waves[:, known].T, level[known]
    if len(values) < 2 * design.shape[1]:
        design, waves = design[:, :1], waves[:1]
    weight = np.sqrt(count[known] / count.max())
    robust = np.ones(len(values))
    for _ in range(6):
        root = weight * np.sqrt(robust)
        with one_blas_thread():
            coefficients = np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]
        residual = np.abs(values - design @ coefficients) * weight
        robust = np.clip(1 - (residual / max(6 * np.median(residual), 1e-30)) ** 2, 0, None) ** 2
    field = np.tensordot(coefficients, waves, 1)
    mean = field.mean()
    if not mean > 0:
        return None
    return np.clip(field / mean, 0, None).astype(np.float32)


@cache
def _limits(threshold: float) -> np.ndarray:
    """Return by how many standard deviations a Poisson count exceeds its mean as rarely as a normal one by ``threshold``.

    For means from 1e-6 to 1e6 in equal steps of the logarithm: solves P(N ≥ k) = gammainc(k, m) for k by bisection.
    """
    rare = ndtr(-threshold)
    mean = np.geomspace(LEAST, MOST, _STEPS)
    low, high = mean.copy(), mean + threshold**2 + 2 * threshold * np.sqrt(mean) + 60
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = gammainc(middle, mean) > rare
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum((high - mean) / np.sqrt(mean), threshold)


def _smoothed(blocks: np.ndarray) -> np.ndarray:
    """Median of 3 × 3 blocks, those without pixels left out: a block full of hot pixels takes after its neighbours."""
    padded = np.pad(blocks, 1, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*blocks.shape, 9)
    known = np.isfinite(around).any(-1)
    out = np.zeros(blocks.shape)  # nothing is hot where nothing is known
    out[known] = np.nanmedian(around[known], axis=-1)
    return out
