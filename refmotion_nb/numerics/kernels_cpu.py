"""The inner loops on the CPU (numba, GIL released, one thread each: callers spread chunks over threads).

The same names stand in ``kernels_gpu``; each is tested against a plain NumPy oracle.
"""

from __future__ import annotations

import math

import numpy as np

from refmotion_nb.numerics.compiled import njit
from refmotion_nb.numerics.kernels_field import block_kernel as block_kernel
from refmotion_nb.numerics.kernels_field import hot_kernel as hot_kernel
from refmotion_nb.numerics.kernels_field import repair_kernel as repair_kernel
from refmotion_nb.numerics.kernels_motion import sample_kernel as sample_kernel

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
                out[p, i, j] = -scale * math.exp(b4 * u2) * math.sin(gamma)


@_jit
def slice_kernel(ft, padding, k_max, to_map, shift, k, out):
    """Trilinear slices of a half volume; shells beyond ``k_max`` are 0; ``shift`` (particle, 2) in boxes."""
    zc = (ft.shape[0] - 1) // 2
    limit = zc
    x_limit = ft.shape[2] - 1
    limit2 = (padding * k_max) ** 2 * (1 + 1e-9)
    ramp_x = np.empty(k + 1, np.complex64)
    for p in range(out.shape[0]):
        m = to_map[p]
        for j in range(k + 1):
            phase = -2 * math.pi * shift[p, 0] * j
            ramp_x[j] = complex(math.cos(phase), math.sin(phase))
        for i in range(2 * k + 1):
            ky = float(i - k)
            phase = -2 * math.pi * shift[p, 1] * ky
            ramp_y = np.complex64(complex(math.cos(phase), math.sin(phase)))
            for j in range(k + 1):
                kx = float(j)
                x = padding * (m[0, 0] * kx + m[0, 1] * ky)
                y = padding * (m[1, 0] * kx + m[1, 1] * ky)
                z = padding * (m[2, 0] * kx + m[2, 1] * ky)
                if kx * kx + ky * ky > k * k or x * x + y * y + z * z > limit2:
                    out[p, i, j] = 0
                    continue
                conjugate = x < 0
                if conjugate:
                    x, y, z = -x, -y, -z
                x0 = math.floor(x)
                y0 = math.floor(y)
                z0 = math.floor(z)
                fx = np.float32(x - x0)
                fy = np.float32(y - y0)
                fz = np.float32(z - z0)
                x1 = min(x0 + 1, x_limit)
                y1 = min(y0 + 1, limit) + zc
                z1 = min(z0 + 1, limit) + zc
                y0 += zc
                z0 += zc
                c00 = ft[z0, y0, x0] + fx * (ft[z0, y0, x1] - ft[z0, y0, x0])
                c01 = ft[z0, y1, x0] + fx * (ft[z0, y1, x1] - ft[z0, y1, x0])
                c10 = ft[z1, y0, x0] + fx * (ft[z1, y0, x1] - ft[z1, y0, x0])
                c11 = ft[z1, y1, x0] + fx * (ft[z1, y1, x1] - ft[z1, y1, x0])
                c0 = c00 + fy * (c01 - c00)
                c1 = c10 + fy * (c11 - c10)
                value = c0 + fz * (c1 - c0)
                if conjugate:
                    value = np.conj(value)
                out[p, i, j] = value * (ramp_x[j] * ramp_y)


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
    for p in range(values.shape[0]):
        row = values[p]
        top = np.float32(0)
        for i in range(row.size):
            top = max(top, abs(row[i]))
        step = top / np.float32(32767) if top > 0 else np.float32(1)
        scale[p] = step
        inverse = np.float32(1) / step
        stored = out[p]
        for i in range(row.size):
            stored[i] = np.int16(np.rint(row[i] * inverse))


@_jit
def power_kernel(stored, scale, shell, hermitian, out):
    """Add up |X|² per shell of every particle: stored (particle, frame, ky, kx, 2) -> out (particle, shell)."""
    n_shells = out.shape[1]
    box, half = shell.shape
    total = np.empty(
        box * half, np.float32
    )  # over frames, which leaves only one sum per particle to be spread over shells
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
def cross_kernel(stored, scale, predicted, weight, out):
    """Cross terms X conj(V) w of the band.

    stored (particle, frame, box, box/2+1, 2), predicted (particle, 2K+1, K+1) with K at least the band's k, weight
    (particle, frame, shell) -> out (particle, frame, 2k+1, k+1).
    """
    k = (out.shape[2] - 1) // 2
    big = (predicted.shape[1] - 1) // 2
    box = stored.shape[2]
    shells = np.empty((2 * k + 1, k + 1), np.int32)
    for i in range(2 * k + 1):
        for j in range(k + 1):
            shells[i, j] = int(math.sqrt((i - k) ** 2 + j * j))
    for p in range(out.shape[0]):
        for f in range(out.shape[1]):
            s = scale[p, f]
            for i in range(2 * k + 1):
                row = (i - k) % box
                for j in range(k + 1):
                    w = weight[p, f, shells[i, j]] * s
                    a = np.float32(stored[p, f, row, j, 0])
                    b = np.float32(stored[p, f, row, j, 1])
                    v = predicted[p, i - k + big, j]
                    out[p, f, i, j] = complex((a * v.real + b * v.imag) * w, (b * v.real - a * v.imag) * w)


@_jit
def fcc_kernel(stored, scale, predicted, shift_px, whitening, shell, out):
    """FCC sums of every frame: Re(X conj V), |X|², |V|² per shell, X whitened and moved back by the trajectory.

    stored (particle, frame, box, box/2+1, 2), predicted (particle, 2K+1, K+1), shift_px (particle, frame, 2), whitening
    (r) per floor shell, shell (box, box/2+1) -> out (3, frame, shell); only the band of the predicted views counts.
    """
    n_shells = out.shape[2]
    box, half = shell.shape
    big = (predicted.shape[1] - 1) // 2
    columns = min(big + 1, half)
    n_white = whitening.shape[0]
    ramp_x = np.empty(columns, np.complex64)
    white = np.full((box, columns), -1, np.float32)  # -1: does not count
    first = -min(big, box // 2)
    last = min(big, (box - 1) // 2)
    for ky in range(first, last + 1):
        for j in range(columns):
            r = int(math.sqrt(ky * ky + j * j))
            if r < n_white and shell[ky % box, j] < n_shells:
                white[ky % box, j] = whitening[r]
    for p in range(stored.shape[0]):
        for f in range(stored.shape[1]):
            ax = 2 * math.pi * shift_px[p, f, 0] / box
            ay = 2 * math.pi * shift_px[p, f, 1] / box
            for j in range(columns):
                ramp_x[j] = complex(math.cos(ax * j), math.sin(ax * j)) * scale[p, f]
            s2 = scale[p, f] * scale[p, f]
            for ky in range(first, last + 1):
                i = ky % box
                cy = np.complex64(complex(math.cos(ay * ky), math.sin(ay * ky)))
                for j in range(columns):
                    g = white[i, j]
                    if g < 0:
                        continue
                    r = shell[i, j]
                    a = np.float32(stored[p, f, i, j, 0]) * g
                    b = np.float32(stored[p, f, i, j, 1]) * g
                    v = predicted[p, ky + big, j]
                    t = ramp_x[j] * cy
                    out[0, f, r] += (a * t.real - b * t.imag) * v.real + (a * t.imag + b * t.real) * v.imag
                    out[1, f, r] += (a * a + b * b) * s2
                    out[2, f, r] += v.real * v.real + v.imag * v.imag


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
    # Both parts of a pixel as one number, and sums of the real and of the imaginary parts apart: else the compiler does
    # not fill its vectors. Views of rows would each be counted as in use, which costs as much as a row's arithmetic.
    pairs = stored.view(np.int32)
    total = np.empty((2, _ROWS, half), np.float32)
    for first in range(0, box_out, _ROWS):
        end = min(first + _ROWS, box_out)
        for p in range(n):
            total[:] = 0
            for f in range(n_frames):
                for i in range(first, end):
                    row = i if i < positive else i - box_out + box
                    cos_y, sin_y = y[p, f, 0, i], y[p, f, 1, i]
                    for j in range(half):
                        a = np.float32(np.int16(pairs[p, f, row, j, 0]))
                        b = np.float32(np.int32(pairs[p, f, row, j, 0] >> 16))
                        c = x[p, f, 0, j] * cos_y - x[p, f, 1, j] * sin_y
                        s = x[p, f, 1, j] * cos_y + x[p, f, 0, j] * sin_y
                        total[0, i - first, j] += (a * c - b * s) * weight[f, i, j]
                    for j in range(half):
                        a = np.float32(np.int16(pairs[p, f, row, j, 0]))
                        b = np.float32(np.int32(pairs[p, f, row, j, 0] >> 16))
                        c = x[p, f, 0, j] * cos_y - x[p, f, 1, j] * sin_y
                        s = x[p, f, 1, j] * cos_y + x[p, f, 0, j] * sin_y
                        total[1, i - first, j] += (a * s + b * c) * weight[f, i, j]
            for i in range(first, end):
                for j in range(half):
                    out[p, i, j, 0] += total[0, i - first, j]
                    out[p, i, j, 1] += total[1, i - first, j]


@_jit
def _turns(angle, first, scale, out):
    """Fill in cos and sin of ``angle`` times ``first``, ``first`` + 1 …, times ``scale``: out (2, n)."""
    step = complex(math.cos(angle), math.sin(angle))
    turn = complex(math.cos(angle * first), math.sin(angle * first)) * scale
    for j in range(out.shape[1]):
        out[0, j] = turn.real
        out[1, j] = turn.imag
        turn *= step
