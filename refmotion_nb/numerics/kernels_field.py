"""The inner loops over the pixels of a camera on the CPU: hot pixels, levels of blocks, repair; part of ``kernels_cpu``."""

from __future__ import annotations

import numpy as np

from refmotion_nb.numerics.compiled import njit

LEAST, MOST = 1e-6, 1e6  # mean counts that limits are tabulated for, in equal steps of the logarithm


@njit(nogil=True, cache=True)
def repair_kernel(counts, pixel, sources, n_sources, salt):
    """Give each bad pixel (n,) of counts (height · width,) the count of one of its ``sources`` (n, 24), chosen by a hash."""
    for i in range(pixel.size):
        z = np.uint64(pixel[i]) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        pick = np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(33)) % n_sources[i]
        counts[pixel[i]] = counts[sources[i, pick]]


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def block_kernel(total, gain, bad, y, x, first_row, end_row, wanted, out):
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
def hot_kernel(total, gain, bad, y, x, first_row, end_row, wanted, level, variance, threshold, limits, counts, out):
    """Mark the hot pixels of the blocks ``wanted`` in some rows of them: out (height, width) bool."""
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
    at = (np.log(level * level / variance) - np.log(LEAST)) / (np.log(MOST) - np.log(LEAST)) * (limits.size - 1)
    if at >= limits.size - 1:
        return threshold
    left = max(int(at), 0)
    part = max(at, 0.0) - left
    return limits[left] + part * (limits[left + 1] - limits[left])
