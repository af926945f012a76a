"""Inner loops of whole-frame correction (numba, GIL released, one thread each: callers spread rows over threads)."""

from __future__ import annotations

import math

import numpy as np

from refmotion_nb.numerics.compiled import njit, product

_jit = njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
_vector = njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz", "reassoc"}, inline="always")

# numbers of the quintic B-spline in single precision: with plain ones numba would compute in double
_ONE, _FIVE, _TEN, _THIRTY, _SIXTY, _TOP = (np.float32(v) for v in (1, 5, 10, 30, 60, 66))
_NORM = np.float32(1 / 120)


@njit(nogil=True, cache=True, inline="always")
def _mirrored(i, n):
    """Index within 0 to n - 1 of a sample ``i`` of the image reflected at its edges."""
    while i < 0 or i >= n:
        i = -1 - i if i < 0 else 2 * n - 1 - i
    return i


@_jit
def shifted_frame_kernel(frame, gain, background, level, shift_y, shift_x, first, last, out):
    """Rows first to last of a frame times gain less level · background, moved back by whole pixels, mirrored at edges.

    out[y, x] = frame[y + shift_y, x + shift_x]; frame, gain, background, out (height, width); an empty gain counts as 1,
    an empty background as 0.
    """
    height, width = frame.shape
    has_gain = gain.size > 0
    has_background = background.size > 0
    for y in range(first, last):
        row = _mirrored(y + shift_y, height)
        for x in range(width):
            column = x + shift_x
            if column < 0 or column >= width:
                column = _mirrored(column, width)
            value = float(frame[row, column])
            if has_gain:
                value *= gain[row, column]
            if has_background:
                value -= level * background[row, column]
            out[y, x] = value


@_jit
def weigh_kernel(spectrum, width, weight, step, ramp_y, ramp_x, first, last, out, add):
    """Rows first to last of a cropped transform times radial weight and the phase ramps of a shift.

    spectrum (height, width // 2 + 1) complex64, weight (radius,) float32 at multiples of ``step`` cycles/px, ramp_y (rows
    of out), ramp_x (columns of out) complex64; out (height_out, width_out // 2 + 1) is added to or set.
    """
    height = spectrum.shape[0]
    n_rows, n_columns = out.shape
    top = weight.shape[0] - 2
    for i in range(first, last):
        ky = i if 2 * i < n_rows else i - n_rows
        source = spectrum[ky % height]
        y2 = (ky / height / step) ** 2
        per_x = 1.0 / (width * step)
        for j in range(n_columns):
            x = j * per_x
            at = math.sqrt(y2 + x * x)
            low = min(int(at), top)
            w = weight[low] + (weight[low + 1] - weight[low]) * (at - low)
            value = product(source[j], product(ramp_y[i], ramp_x[j]))
            value = complex(w * value.real, w * value.imag)
            out[i, j] = out[i, j] + value if add else value


@_vector
def _blend(t, c0, c1, c2, c3, c4, c5):
    """Blend six samples with the weights of a quintic B-spline, t in [0, 1) from the third, all in single precision."""
    s = _ONE - t
    t2 = t * t
    s2 = s * s
    # by symmetry: the weight w(t) on one side is w(1 - t) on the other
    w1 = _ONE + s * (_FIVE + s * (_TEN + s * (_TEN + s * (_FIVE - _FIVE * s))))
    w4 = _ONE + t * (_FIVE + t * (_TEN + t * (_TEN + t * (_FIVE - _FIVE * t))))
    w2 = _TOP + t2 * (t2 * (_THIRTY - _TEN * t) - _SIXTY)
    w3 = _TOP + s2 * (s2 * (_THIRTY - _TEN * s) - _SIXTY)
    return (s2 * s2 * s * c0 + w1 * c1 + w2 * c2 + w3 * c3 + w4 * c4 + t2 * t2 * t * c5) * _NORM


@njit(nogil=True, cache=True, inline="always")
def _run_end(start, slope, x, last, whole):
    """First column after x, up to last, at which start + slope · column leaves [whole, whole + 1)."""
    if slope > 0:
        end = math.ceil((whole + 1 - start) / slope)
    elif slope < 0:
        end = math.floor((whole - start) / slope) + 1
    else:
        return last
    return int(min(max(end, x + 1), last))


@njit(nogil=True, cache=True, inline="always")
def _reflected(i, n):
    """Cell [i, i + 1) of n samples, and 1; one beyond them reflected at the first or last sample, and -1."""
    side = _ONE
    if i < 0:
        i, side = -1 - i, -_ONE
    elif i > n - 2:
        i, side = 2 * n - 3 - i, -_ONE
    return min(max(i, 0), n - 2), side


@_jit
def warp_add_kernel(coefficients, grid, step, first, last, out):
    """Add an image, given by its quintic B-spline coefficients, sampled where each pixel of the output was.

    out[y, x] += image(y + dy, x + dx) for rows first to last; coefficients, out (height, width) float32, grid (gy, gx, 2)
    float32 displacement x y (px) every ``step`` px, linear between. Along columns first, then along the row: exact for
    displacements that change little over the six taps. Coefficients go on periodically, as their transform did; positions
    beyond the edges are reflected.
    """
    height, width = out.shape
    n_nodes = grid.shape[1]
    at_x, at_y, column = np.empty(n_nodes, np.float32), np.empty(n_nodes, np.float32), np.empty(width, np.float32)
    for y in range(first, last):
        gy = min(y // step, grid.shape[0] - 2)
        ty = np.float32((y - gy * step) / step)
        for g in range(n_nodes):
            at_x[g] = (_ONE - ty) * grid[gy, g, 0] + ty * grid[gy + 1, g, 0]
            at_y[g] = (_ONE - ty) * grid[gy, g, 1] + ty * grid[gy + 1, g, 1]
        for g in range(n_nodes - 1):
            # a column is used by the pixels that moved there: the displacement is theirs
            begin, end = _at_origin(at_x, at_y, g, step, n_nodes), _at_origin(at_x, at_y, g + 1, step, n_nodes)
            x = g * step
            stop = min(x + step, width)
            slope = (end - begin) / np.float32(step)
            begin -= slope * np.float32(x)
            while x < stop:
                whole = math.floor(begin + slope * np.float32(x))
                run = _run_end(begin, slope, x, stop, whole)
                row, side = _reflected(y + int(whole), height)
                # the position within [row, row + 1), counted from the other side where it was reflected
                rest = begin - np.float32(whole)
                _blend_rows(
                    coefficients[(row - 2) % height], coefficients[(row - 1) % height], coefficients[row],
                    coefficients[row + 1], coefficients[(row + 2) % height], coefficients[(row + 3) % height],
                    rest if side > 0 else _ONE - rest, side * slope, x, run, column,
                )  # fmt: skip
                x = run
        for g in range(n_nodes - 1):
            x = g * step
            stop = min(x + step, width)
            slope = (at_x[g + 1] - at_x[g]) / np.float32(step)
            begin = at_x[g] - slope * np.float32(x)
            while x < stop:
                whole = math.floor(begin + slope * np.float32(x))
                run = _run_end(begin, slope, x, stop, whole)
                _blend_run(column, int(whole), begin - np.float32(whole), slope, x, run, width, out[y])
                x = run


@njit(nogil=True, cache=True, inline="always")
def _at_origin(at_x, at_y, g, step, n_nodes):
    """Displacement y at the node's column, of the pixel that moved there."""
    u = min(max(g - at_x[g] / step, 0.0), n_nodes - 1.0)
    low = min(int(u), n_nodes - 2)
    return at_y[low] + np.float32(u - low) * (at_y[low + 1] - at_y[low])


@_vector
def _blend_rows(r0, r1, r2, r3, r4, r5, begin, slope, first, last, out):
    """Blend six rows at begin + slope · x from the third, from column first to last."""
    for x in range(first, last):
        out[x] = _blend(begin + slope * np.float32(x), r0[x], r1[x], r2[x], r3[x], r4[x], r5[x])


@_jit
def _blend_run(column, shift, begin, slope, first, last, width, out):
    """Add six neighbours blended at begin + slope · x from x + shift, from column first to last."""
    inner_first = min(max(first, 2 - shift), last)
    inner_last = max(min(last, width - 3 - shift), inner_first)
    if inner_last > inner_first:  # away from the edges the six are six runs of one row
        at = inner_first + shift
        c0, c1, c2 = column[at - 2 :], column[at - 1 :], column[at:]
        c3, c4, c5 = column[at + 1 :], column[at + 2 :], column[at + 3 :]
        here = out[inner_first:inner_last]
        begin_here = begin + slope * np.float32(inner_first)
        for i in range(inner_last - inner_first):
            here[i] += _blend(begin_here + slope * np.float32(i), c0[i], c1[i], c2[i], c3[i], c4[i], c5[i])
    for edge_first, edge_last in ((first, inner_first), (inner_last, last)):
        for x in range(edge_first, edge_last):
            at, side = _reflected(x + shift, width)
            t = begin + slope * np.float32(x)
            out[x] += _blend(
                t if side > 0 else _ONE - t, column[(at - 2) % width], column[(at - 1) % width], column[at], column[at + 1],
                column[(at + 2) % width], column[(at + 3) % width],
            )  # fmt: skip
