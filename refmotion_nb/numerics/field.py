"""The field of view as a whole: how its brightness varies, and which pixels count far too much.

Both are read off a sum of frames, ``total`` (height, width) raw counts times ``gain``, block by block of some 64 px.
Counts need not be electrons: their variance is measured in each block, per unit of gain. A pixel of expected level λ and
variance v then counts as a Poisson variable of mean m = λ²/v does, in units of v/λ, and is hot where the probability of
its count is below that of ``threshold`` standard deviations of a normal distribution.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.special import gammainc, ndtr

from refmotion_nb.numerics.backend import one_blas_thread, over_chunks

BLOCK = 64  # px
_ROUNDS = 4  # of finding hot pixels: the variance of a block is overestimated as long as some are in it
_LEAST, _MOST, _STEPS = 1e-6, 1e6, 241  # mean counts that limits are tabulated for
_ORDER = 3  # of the waves that a background is made of: none is shorter than two thirds of the field


def blocks_of(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges (block + 1,) of blocks along y and x: equal but for rounding, as backgrounds have them."""
    y, x = (np.arange(n + 1) * size // n for size in shape for n in [max(1, size // BLOCK)])
    return y, x


def block_level(
    total: np.ndarray, gain: np.ndarray, bad: np.ndarray, threads: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level, variance per gain, and number of good pixels of each block (ky, kx); NaN where there is none."""
    y, x = blocks_of(total.shape)
    out = np.zeros((3, len(y) - 1, len(x) - 1))
    _measure(total, gain, bad, np.ones(out.shape[1:], bool), out, threads)
    return out[0], out[1], out[2]


def _measure(
    total: np.ndarray, gain: np.ndarray, bad: np.ndarray, wanted: np.ndarray, out: np.ndarray, threads: int
) -> None:
    """Fill in what ``block_level`` returns, (3, ky, kx), for the blocks in ``wanted`` (ky, kx) bool."""
    y, x = blocks_of(total.shape)
    over_chunks(
        len(wanted), lambda rows: _block_kernel(total, gain, bad, y, x, rows.start, rows.stop, wanted, out), threads
    )


def find_hot_pixels(
    total: np.ndarray, gain: np.ndarray, bad: np.ndarray, threshold: float, threads: int = 1
) -> np.ndarray:
    """Return the hot pixels (n, 2) x y; ``bad`` (height, width) bool are known already.

    A hot pixel exceeds both the level of its blocks and the median of the 24 pixels around it: particles and edges of the
    ice are no hot pixels.
    """
    limits, counts = _limits(threshold), bool(total.min() >= 0)
    if not counts:  # a level about zero then says nothing of how values are distributed
        limits = np.full_like(limits, threshold)
    y, x = blocks_of(total.shape)
    bad, found = bad.copy(), [np.zeros((0, 2), np.int64)]
    blocks = np.zeros((3, len(y) - 1, len(x) - 1))
    changed = np.ones(blocks.shape[1:], bool)
    new = np.zeros(total.shape, bool)
    for _ in range(_ROUNDS):
        _measure(total, gain, bad, changed, blocks, threads)
        level, variance = _smoothed(blocks[0]), _smoothed(blocks[1])
        # a new hot pixel changes what is expected in the blocks next to its own, and no farther
        near = np.lib.stride_tricks.sliding_window_view(np.pad(changed, 1), (3, 3)).any((2, 3))
        hot = np.zeros(changed.shape, np.int64)

        def mark(rows: slice, near=near, level=level, variance=variance, hot=hot) -> None:
            _hot_kernel(total, gain, bad, y, x, rows.start, rows.stop, near, level, variance, threshold, limits, counts,
                        new, hot)  # fmt: skip

        over_chunks(len(hot), mark, threads)
        changed = hot > 0
        if not changed.any():
            break
        for by, bx in np.argwhere(changed):
            block = slice(y[by], y[by + 1]), slice(x[bx], x[bx + 1])
            found.append(np.argwhere(new[block])[:, ::-1] + (x[bx], y[by]))
            bad[block] |= new[block]
            new[block] = False
    all_found = np.concatenate(found)
    return all_found[np.lexsort((all_found[:, 0], all_found[:, 1]))]


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


def _limits(threshold: float) -> np.ndarray:
    """Return by how many standard deviations a Poisson count exceeds its mean as rarely as a normal one by ``threshold``.

    For means from 1e-6 to 1e6 in equal steps of the logarithm: solves P(N ≥ k) = gammainc(k, m) for k by bisection.
    """
    rare = ndtr(-threshold)
    mean = np.geomspace(_LEAST, _MOST, _STEPS)
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


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _block_kernel(total, gain, bad, y, x, first_row, end_row, wanted, out):
    """Level, variance per gain and number of good pixels of the blocks ``wanted`` in some rows of them: out (3, ky, kx)."""
    for by in range(first_row, end_row):
        for bx in range(x.size - 1):
            if not wanted[by, bx]:
                continue
            n = first = second = gains = 0.0
            for i in range(y[by], y[by + 1]):
                columns = slice(x[bx], x[bx + 1])
                values, factors, out_of_use = total[i, columns], gain[i, columns], bad[i, columns]
                for j in range(values.size):
                    good = np.float32(0) if out_of_use[j] else np.float32(1)
                    factor = float(factors[j] * good)
                    value = float(values[j]) * factor
                    n += float(good)
                    first += value
                    second += value * value
                    gains += factor
            out[2, by, bx] = n
            out[0, by, bx] = first / n if n > 0 else np.nan
            out[1, by, bx] = max(second - first * first / n, 0.0) / gains if n > 0 else np.nan


@njit(nogil=True, cache=True)
def _hot_kernel(
    total, gain, bad, y, x, first_row, end_row, wanted, level, variance, threshold, limits, counts, out, found
):
    """Mark the hot pixels of the blocks ``wanted`` in some rows of them: out (height, width), number found (ky, kx)."""
    height, width = total.shape
    around = np.empty(24, np.float64)
    for by in range(first_row, end_row):
        for bx in range(x.size - 1):
            mean = level[by, bx]
            if not wanted[by, bx] or variance[by, bx] <= 0:
                continue
            # float32 with a margin for its rounding says of most rows that nothing in them is hot
            about = np.float32(mean)
            least = np.float32(0.999 * threshold * np.sqrt(variance[by, bx]))
            margin = np.float32(1e-5 * abs(mean))
            for i in range(y[by], y[by + 1]):
                columns = slice(x[bx], x[bx + 1])
                if not _any_above(total[i, columns], gain[i, columns], about - margin, least):
                    continue
                for j in range(x[bx], x[bx + 1]):
                    spread = variance[by, bx] * float(gain[i, j])
                    excess = float(total[i, j]) * float(gain[i, j]) - mean
                    if bad[i, j] or spread <= 0 or excess <= threshold * np.sqrt(spread):
                        continue
                    n = 0
                    for di in range(-2, 3):
                        for dj in range(-2, 3):
                            ii, jj = i + di, j + dj
                            if (di != 0 or dj != 0) and 0 <= ii < height and 0 <= jj < width and not bad[ii, jj]:
                                around[n] = float(total[ii, jj]) * float(gain[ii, jj])
                                n += 1
                    near = np.median(around[:n]) if n > 0 else mean
                    if near > mean:
                        spread *= near / mean if counts and mean > 0 else 1.0
                        excess -= near - mean
                        expected = near
                    else:
                        expected = mean
                    if excess > _limit(expected, spread, threshold, limits) * np.sqrt(spread):
                        out[i, j] = True
                        found[by, bx] += 1


@njit(nogil=True, cache=True)
def _any_above(values, factors, level, least):
    """Whether any value times its factor exceeds ``level`` by ``least`` times the root of the factor; all float32."""
    n = 0
    for j in range(values.size):
        n += values[j] * factors[j] - level > least * np.sqrt(factors[j])
    return n > 0


@njit(nogil=True, cache=True)
def _limit(level, variance, threshold, limits):
    """Return how many standard deviations a pixel may exceed its level by."""
    if level <= 0 or variance <= 0:
        return threshold
    at = (np.log(level * level / variance) - np.log(_LEAST)) / (np.log(_MOST) - np.log(_LEAST)) * (limits.size - 1)
    if at >= limits.size - 1:
        return threshold
    left = max(int(at), 0)
    part = max(at, 0.0) - left
    return limits[left] + part * (limits[left + 1] - limits[left])
