"""The inner loops on the CPU (numba, GIL released, one thread each: callers spread chunks over threads).

The same names stand in ``kernels_gpu``; each is tested against a plain NumPy oracle.
"""

from __future__ import annotations

import math

import numpy as np

from refmotion_nb.numerics.compiled import njit, product
from refmotion_nb.numerics.kernels_dewarp import shifted_frame_kernel as shifted_frame_kernel
from refmotion_nb.numerics.kernels_dewarp import warp_add_kernel as warp_add_kernel
from refmotion_nb.numerics.kernels_dewarp import weigh_kernel as weigh_kernel
from refmotion_nb.numerics.kernels_field import block_kernel as block_kernel
from refmotion_nb.numerics.kernels_field import hot_kernel as hot_kernel
from refmotion_nb.numerics.kernels_field import repair_kernel as repair_kernel
from refmotion_nb.numerics.kernels_motion import sample_kernel as sample_kernel
from refmotion_nb.numerics.kernels_motion import solve as solve

_jit = njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})


@_jit
def ctf_kernel(x, y, extra, k4, per_particle, out):  # (ky, kx) ×3, Cs term, (particle, 6), (particle, ky, kx)
    """CTF of every particle; columns of ``per_particle``: defocus xx, yy, xy, phase offset, -B/4, scale."""
    for p in range(out.shape[0]):
        xx, yy, xy, offset, b4, scale = per_particle[p]
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                u = x[i, j]
                v = y[i, j]
                u2 = u * u + v * v
                gamma = xx * u * u + yy * v * v + xy * u * v + k4 * u2 * u2 + offset + extra[i, j]
                damping = math.exp(b4 * u2) if b4 != 0 else 1.0
                out[p, i, j] = -scale * damping * math.sin(gamma)


@_jit
def slice_kernel(ft, padding, k_max, to_map, shift, k, out):
    """Trilinear slices of a half volume; shells beyond ``k_max`` are 0; ``shift`` (particle, 2) in boxes.

    The volume reaches one step further than ``k_max`` along y and z, and along x unless that is where it ends.
    """
    centre = (ft.shape[0] - 1) // 2
    row, plane = ft.shape[2], ft.shape[1] * ft.shape[2]
    values = ft.reshape(-1)
    limit2 = (padding * k_max) ** 2 * (1 + 1e-9)
    ramp_x = np.empty(k + 1, np.complex64)
    first = np.empty(k + 1, np.int64)  # of the eight values about a point; -1: beyond the map
    inside = np.empty((3, k + 1), np.float32)
    side = np.empty(k + 1, np.float32)
    corners = np.empty((k + 1, 8), np.complex64)
    for p in range(out.shape[0]):
        m = to_map[p]
        for j in range(k + 1):
            phase = -2 * math.pi * shift[p, 0] * j
            ramp_x[j] = complex(math.cos(phase), math.sin(phase))
        for i in range(2 * k + 1):
            ky = float(i - k)
            phase = -2 * math.pi * shift[p, 1] * ky
            ramp_y = np.complex64(complex(math.cos(phase), math.sin(phase)))
            out[p, i] = 0
            n = int(math.sqrt(k * k - ky * ky)) + 1
            for j in range(n):
                x = padding * (m[0, 0] * j + m[0, 1] * ky)
                y = padding * (m[1, 0] * j + m[1, 1] * ky)
                z = padding * (m[2, 0] * j + m[2, 1] * ky)
                known = x * x + y * y + z * z <= limit2
                sign = 1.0 if x >= 0 else -1.0
                x0, y0, z0 = min(math.floor(sign * x), row - 2.0), math.floor(sign * y), math.floor(sign * z)
                inside[0, j], inside[1, j], inside[2, j] = sign * x - x0, sign * y - y0, sign * z - z0
                side[j] = sign
                first[j] = int((z0 + centre) * plane + (y0 + centre) * row + x0) if known else -1
            # apart from the arithmetic, so that many are waited for at a time
            for j in range(n):
                at = max(first[j], 0)
                corners[j, 0], corners[j, 1] = values[at], values[at + 1]
                corners[j, 2], corners[j, 3] = values[at + row], values[at + row + 1]
                at += plane
                corners[j, 4], corners[j, 5] = values[at], values[at + 1]
                corners[j, 6], corners[j, 7] = values[at + row], values[at + row + 1]
            for j in range(n):
                if first[j] >= 0:
                    c, fx, fy, fz = corners[j], inside[0, j], inside[1, j], inside[2, j]
                    near = _between(_between(c[0], c[1], fx), _between(c[2], c[3], fx), fy)
                    far = _between(_between(c[4], c[5], fx), _between(c[6], c[7], fx), fy)
                    value = _between(near, far, fz)
                    value = complex(value.real, side[j] * value.imag)
                    out[p, i, j] = product(value, product(ramp_x[j], ramp_y))


@_jit
def _between(a, b, share):
    return complex(a.real + share * (b.real - a.real), a.imag + share * (b.imag - a.imag))


@_jit
def cut_patches_kernel(frame, gain, corners, out):
    """Cut boxes at ``corners`` (particle, 2) x y out of a raw frame, times gain, contrast inverted, edges replicated."""
    height, width = frame.shape
    box = out.shape[1]
    for p in range(out.shape[0]):
        x0, y0 = corners[p]
        for i in range(box):
            yy = min(max(y0 + i, 0), height - 1)
            if x0 >= 0 and x0 + box <= width:
                counts = frame[yy, x0 : x0 + box]
                factor = gain[yy, x0 : x0 + box]
                row = out[p, i]
                for j in range(box):
                    row[j] = -np.float32(counts[j]) * factor[j]
            else:
                for j in range(box):
                    xx = min(max(x0 + j, 0), width - 1)
                    out[p, i, j] = -np.float32(frame[yy, xx]) * gain[yy, xx]


@_jit
def add_background_kernel(coarse, height, width, corners, out):
    """Add to boxes at ``corners`` (particle, 2) x y an image (ky, kx) of equal cells, spread linearly over height, width."""
    n_y, n_x = coarse.shape
    box = out.shape[1]
    spread = np.empty((n_y, box), np.float32)  # along x; only the rows in use are filled
    for p in range(out.shape[0]):
        x0, y0 = corners[p]
        first = int(_cell(y0, height, n_y))
        last = min(int(_cell(y0 + box - 1, height, n_y)) + 1, n_y - 1)
        for j in range(box):
            at = _cell(x0 + j, width, n_x)
            left = int(at)
            right = min(left + 1, n_x - 1)
            share = np.float32(at - left)
            for k in range(first, last + 1):
                spread[k, j] = coarse[k, left] + share * (coarse[k, right] - coarse[k, left])
        for i in range(box):
            at = _cell(y0 + i, height, n_y)
            top = int(at)
            share = np.float32(at - top)
            above, below, row = spread[top], spread[min(top + 1, n_y - 1)], out[p, i]
            for j in range(box):
                row[j] += above[j] + share * (below[j] - above[j])


@_jit
def _cell(pixel, size, n):
    """Position of a pixel among the centres of ``n`` cells along an axis of ``size`` px; that of the last ones beyond them."""
    return min(max((pixel + 0.5) * n / size - 0.5, 0.0), n - 1.0)


@njit(nogil=True, cache=True, fastmath=True)
def quantise_kernel(values, out, scale):
    """Store values (patch, n) float32 as 16-bit integers (patch, n) with one scale per patch."""
    # magnitudes are in the order of their bits, and the largest of integers is looked for vector by vector
    bits = values.view(np.int32)
    largest = np.empty(1, np.int32)
    for p in range(values.shape[0]):
        top_bits = np.int32(0)
        for i in range(values.shape[1]):
            magnitude = np.int32(bits[p, i] & np.int32(0x7FFFFFFF))
            if magnitude > top_bits:
                top_bits = magnitude
        largest[0] = top_bits
        top = largest.view(np.float32)[0]
        step = top / np.float32(32767) if top > 0 else np.float32(1)
        scale[p] = step
        inverse = np.float32(1) / step
        row, stored = values[p], out[p]
        for i in range(row.size):
            stored[i] = np.int16(np.rint(row[i] * inverse))


@_jit
def power_kernel(stored, scale, shell, hermitian, out):
    """Add up |X|² per shell of every particle: stored (particle, frame, ky, kx, 2) -> out (particle, shell)."""
    n_shells = out.shape[1]
    box, half = shell.shape
    # over frames, which leaves only one sum per particle to be spread over shells
    total = np.empty(box * half, np.float32)
    for p in range(stored.shape[0]):
        total[:] = 0
        for f in range(stored.shape[1]):
            s2 = np.float32(scale[p, f] * scale[p, f])
            pairs = stored[p, f].reshape(-1)
            for j in range(total.size):
                a = np.float32(pairs[2 * j])
                b = np.float32(pairs[2 * j + 1])
                total[j] += s2 * (a * a + b * b)
        for i in range(box):
            for j in range(half):
                r = shell[i, j]
                if r < n_shells:
                    out[p, r] += hermitian[j] * total[i * half + j]


@_jit
def shell_sum_kernel(values, weight, shell, out):
    """Add up weighted values (row, pixel) per shell: weight and shell (pixel,) -> out (row, shell)."""
    n_shells = out.shape[1]
    for row in range(values.shape[0]):
        for i in range(values.shape[1]):
            r = shell[i]
            if r < n_shells:
                out[row, r] += weight[i] * values[row, i]


@_jit
def _parts(pair):
    """Real and imaginary part of a stored component, both 16-bit integers, read as one number: it fills vectors."""
    return np.float32(np.int16(pair)), np.float32(np.int32(pair >> 16))


@_jit
def cross_kernel(stored, scale, predicted, weight, out):
    """Cross terms C = X conj(V) w of the band, folded along ky, for sums over ky of C exp(i ky y) by cosines and sines.

    stored (particle, frame, box, box/2+1, 2), predicted (particle, 2K+1, K+1) with K at least the band's k, weight
    (particle, frame, shell) -> out (2, k+1, particle, frame, 2, k+1) float32: real and imaginary parts of C(ky) + C(-ky) and
    of i (C(ky) - C(-ky)) for ky from 0 to k; C(0) counts once.
    """
    size = out.shape[5]  # k + 1
    big = predicted.shape[2] - 1
    box = stored.shape[2]
    n = size * size
    shells = np.empty(n, np.int32)
    for i in range(size):
        for j in range(size):
            shells[i * size + j] = int(math.sqrt(i * i + j * j))
    pairs = stored.view(np.int32)
    band = np.empty((2, n), np.int32)  # at ky and at -ky; one array each of what follows fills vectors
    view = np.empty((4, n), np.float32)
    worth = np.empty(n, np.float32)
    folded = np.empty((4, n), np.float32)
    for p in range(stored.shape[0]):
        for i in range(size):
            for j in range(size):
                up, down = predicted[p, big + i, j], predicted[p, big - i, j]
                view[0, i * size + j], view[1, i * size + j] = up.real, up.imag
                view[2, i * size + j], view[3, i * size + j] = down.real, down.imag
        for f in range(stored.shape[1]):
            for i in range(size):  # apart from the arithmetic, so that many rows are waited for at a time
                below = (box - i) % box
                for j in range(size):
                    band[0, i * size + j] = pairs[p, f, i, j, 0]
                for j in range(size):
                    band[1, i * size + j] = pairs[p, f, below, j, 0]
            for at in range(n):
                worth[at] = weight[p, f, shells[at]] * scale[p, f]
            for at in range(size):
                worth[at] *= np.float32(0.5)
            for at in range(n):
                a, b = _parts(band[0, at])
                c, d = _parts(band[1, at])
                up_re, up_im = a * view[0, at] + b * view[1, at], b * view[0, at] - a * view[1, at]
                down_re, down_im = c * view[2, at] + d * view[3, at], d * view[2, at] - c * view[3, at]
                folded[0, at], folded[1, at] = (up_re + down_re) * worth[at], (up_im + down_im) * worth[at]
                folded[2, at], folded[3, at] = (down_im - up_im) * worth[at], (up_re - down_re) * worth[at]
            for part in range(4):
                for i in range(size):
                    for j in range(size):
                        out[part // 2, i, p, f, part % 2, j] = folded[part, i * size + j]


@_jit
def fcc_kernel(stored, scale, predicted, shift_px, whitening, shell, out):
    """FCC sums of every frame: Re(X conj V), |X|², |V|² per shell, X whitened and moved back by the trajectory.

    stored (particle, frame, box, box/2+1, 2), predicted (particle, 2K+1, K+1), shift_px (particle, frame, 2), whitening
    (r) per floor shell, shell (box, box/2+1) -> out (3, frame, shell); only the band of the predicted views counts.
    """
    n_shells = out.shape[2]
    box, half = shell.shape
    big = predicted.shape[2] - 1
    columns = min(big + 1, half)
    first = -min(big, box // 2)
    rows = min(big, (box - 1) // 2) - first + 1
    n, n_frames = stored.shape[:2]
    white = np.zeros((rows, columns), np.float32)
    place = np.full((rows, columns), n_shells, np.int64)  # n_shells: does not count
    for i in range(rows):
        for j in range(columns):
            r = int(math.sqrt((i + first) ** 2 + j * j))
            if r < whitening.shape[0] and shell[(i + first) % box, j] < n_shells:
                white[i, j] = whitening[r]
                place[i, j] = shell[(i + first) % box, j]
    view = np.empty((n, 2, rows, columns), np.float32)
    view_power = np.zeros((rows, columns), np.float32)
    for p in range(n):
        for i in range(rows):
            for j in range(columns):
                v = predicted[p, i + first + big, j]
                view[p, 0, i, j], view[p, 1, i, j] = v.real, v.imag
                view_power[i, j] += v.real * v.real + v.imag * v.imag
    x, y = np.empty((2, columns), np.float32), np.empty((2, rows), np.float32)
    band = np.empty((rows, columns), np.int32)
    # over particles, which leaves only one sum per frame to be spread over shells
    product, power = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.float32)
    pairs = stored.view(np.int32)
    for f in range(n_frames):
        product[:] = 0
        power[:] = 0
        for p in range(n):
            _turns(2 * math.pi * shift_px[p, f, 0] / box, 0, scale[p, f], x)
            _turns(2 * math.pi * shift_px[p, f, 1] / box, first, 1.0, y)
            s2 = scale[p, f] * scale[p, f]
            for i in range(rows):  # apart from the arithmetic, so that many rows are waited for at a time
                row = (i + first) % box
                for j in range(columns):
                    band[i, j] = pairs[p, f, row, j, 0]
            for i in range(rows):
                cos_y, sin_y = y[0, i], y[1, i]
                for j in range(columns):
                    a, b = _parts(band[i, j])
                    c = x[0, j] * cos_y - x[1, j] * sin_y
                    s = x[1, j] * cos_y + x[0, j] * sin_y
                    product[i, j] += (a * c - b * s) * view[p, 0, i, j] + (a * s + b * c) * view[p, 1, i, j]
                    power[i, j] += s2 * (a * a + b * b)
        for i in range(rows):
            for j in range(columns):
                r, g = place[i, j], white[i, j]
                if r < n_shells:
                    out[0, f, r] += g * product[i, j]
                    out[1, f, r] += g * g * power[i, j]
                    out[2, f, r] += view_power[i, j]


_ROWS = 16  # of a plane that are summed at a time: their weights stay in the cache while all frames pass by


@_jit
def recombine_kernel(stored, scale, shift_px, weight, out):
    """Weighted sum of a particle's frames, each moved back by its trajectory.

    stored (particle, frame, box, box/2+1, 2), weight (frame, box_out, box_out/2+1) float32 -> out (particle, box_out,
    box_out/2+1, 2) float32, real and imaginary part.
    """
    n, n_frames, box = stored.shape[:3]
    box_out, half = weight.shape[1:]
    positive = box_out - box_out // 2  # rows with ky >= 0
    x = np.empty((n, n_frames, 2, half), np.float32)
    y = np.empty((n, n_frames, 2, box_out), np.float32)
    for p in range(n):
        for f in range(n_frames):
            _turns(2 * math.pi * shift_px[p, f, 0] / box, 0, scale[p, f], x[p, f])
            angle = 2 * math.pi * shift_px[p, f, 1] / box
            _turns(angle, 0, 1.0, y[p, f, :, :positive])
            _turns(angle, positive - box_out, 1.0, y[p, f, :, positive:])
    pairs = stored.view(np.int32)
    # apart they fill vectors
    real, imaginary = np.empty((_ROWS, half), np.float32), np.empty((_ROWS, half), np.float32)
    for first in range(0, box_out, _ROWS):
        end = min(first + _ROWS, box_out)
        for p in range(n):
            real[:] = 0
            imaginary[:] = 0
            for f in range(n_frames):
                for i in range(first, end):
                    row = i if i < positive else i - box_out + box
                    cos_y, sin_y = y[p, f, 0, i], y[p, f, 1, i]
                    for j in range(half):
                        a, b = _parts(pairs[p, f, row, j, 0])
                        c = x[p, f, 0, j] * cos_y - x[p, f, 1, j] * sin_y
                        s = x[p, f, 1, j] * cos_y + x[p, f, 0, j] * sin_y
                        real[i - first, j] += (a * c - b * s) * weight[f, i, j]
                        imaginary[i - first, j] += (a * s + b * c) * weight[f, i, j]
            for i in range(first, end):
                for j in range(half):
                    out[p, i, j, 0] += real[i - first, j]
                    out[p, i, j, 1] += imaginary[i - first, j]


@_jit
def _turns(angle, first, scale, out):
    """Fill in cos and sin of ``angle`` times ``first``, ``first`` + 1 …, times ``scale``: out (2, n)."""
    step = complex(math.cos(angle), math.sin(angle))
    turn = complex(scale * math.cos(angle * first), scale * math.sin(angle * first))
    for j in range(out.shape[1]):
        out[0, j] = turn.real
        out[1, j] = turn.imag
        turn = product(turn, step)
