"""The inner loops of back-projection and Fourier shells (numba, GIL released; callers spread slabs over threads).

A transform here is half of an oversampled one, (z, y, x ≥ 0, channel) float32 with the origin at
``[radius + 1, radius + 1, 0]``; channels are real and imaginary parts of the maps in turn, then the weight they share.
Each slab is written by its own call, in an order that does not depend on how the slabs are cut: sums come out the same,
bit for bit, on any number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from refmotion_nb.numerics.compiled import njit, product

_jit = njit(nogil=True, cache=True)


@_jit
def insert_kernel(values, axes, padding, radius, low, high, sums):
    """Insert slices (image, ky, kx, channel), whose axes lie along ``axes`` (image, operator, 2, 3), into planes low … high."""
    size = values.shape[1]
    channels = values.shape[3]
    origin = radius + 1
    value = np.empty(channels, np.float32)
    for p in range(values.shape[0]):
        for j in range(axes.shape[1]):
            ax = axes[p, j]
            for iy in range(size):
                ky = iy if iy < (size + 1) // 2 else iy - size
                if 2 * abs(ky) >= size:  # Nyquist has no definite sign
                    continue
                for kx in range((size + 1) // 2):
                    if kx == 0 and ky < 0:  # the column holds each value twice
                        continue
                    x = padding * (kx * ax[0, 0] + ky * ax[1, 0])
                    y = padding * (kx * ax[0, 1] + ky * ax[1, 1])
                    z = padding * (kx * ax[0, 2] + ky * ax[1, 2])
                    if x * x + y * y + z * z > radius * radius * (1 + 1e-9):
                        continue
                    flip = x < 0
                    if flip:
                        x, y, z = -x, -y, -z
                    z0 = math.floor(z)
                    first = int(z0) + origin
                    if first + 1 < low or first >= high:
                        continue
                    x0, y0 = math.floor(x), math.floor(y)
                    fx, fy, fz = x - x0, y - y0, z - z0
                    column, row = int(x0), int(y0) + origin
                    for c in range(channels):
                        value[c] = values[p, iy, kx, c]
                    if flip:
                        for c in range(1, channels, 2):
                            value[c] = -value[c]
                    for dz in range(2):
                        plane = first + dz
                        if plane < low or plane >= high:
                            continue
                        wz = fz if dz else 1 - fz
                        for dy in range(2):
                            wy = wz * (fy if dy else 1 - fy)
                            near, far = np.float32(wy * (1 - fx)), np.float32(wy * fx)
                            for c in range(channels):
                                sums[plane, row + dy, column, c] += near * value[c]
                            for c in range(channels):
                                sums[plane, row + dy, column + 1, c] += far * value[c]


@_jit
def complete_friedel_plane(sums):
    """Give each half of the plane kx = 0 what was inserted into the other."""
    last = sums.shape[0] - 1
    for z in range(last // 2 + 1):
        for y in range(last + 1):
            if z == last // 2 and y > last // 2:
                break
            here, there = sums[z, y, 0], sums[last - z, last - y, 0]
            for c in range(sums.shape[3]):
                sign = np.float32(-1.0 if c % 2 else 1.0)
                here[c] += sign * there[c]
                there[c] = sign * here[c]


@_jit
def symmetrise_kernel(sums, operators, low, high):
    """Replace every grid point by the sum over its images under ``operators`` (operator, 3, 3) int, rotations of the grid.

    The points of one orbit are summed and written where the first of them lies, if that is in planes low … high.
    """
    origin = sums.shape[0] // 2
    limit = (origin + 1) ** 2
    ny, nx = sums.shape[1], sums.shape[2]
    channels = sums.shape[3]
    flat = sums.reshape(-1, channels)
    count = operators.shape[0]
    place = np.empty(count, np.int64)
    mate = np.empty(count, np.int64)  # of a point in the plane kx = 0, which is stored twice
    flipped = np.empty(count, np.bool_)
    total = np.empty(channels, np.float64)
    for iz in range(low, high):
        z = iz - origin
        for iy in range(ny):
            y = iy - origin
            for x in range(nx):
                if x * x + y * y + z * z > limit or (x == 0 and (z < 0 or (z == 0 and y < 0))):
                    continue
                own = (iz * ny + iy) * nx + x
                first = True
                for j in range(count):
                    o = operators[j]
                    u = o[0, 0] * x + o[0, 1] * y + o[0, 2] * z
                    v = o[1, 0] * x + o[1, 1] * y + o[1, 2] * z
                    w = o[2, 0] * x + o[2, 1] * y + o[2, 2] * z
                    flip = u < 0 or (u == 0 and (w < 0 or (w == 0 and v < 0)))
                    if flip:
                        u, v, w = -u, -v, -w
                    there = ((w + origin) * ny + v + origin) * nx + u
                    if there < own:
                        first = False
                        break
                    place[j], flipped[j] = there, flip
                    mate[j] = ((origin - w) * ny + origin - v) * nx if u == 0 else -1
                if not first:
                    continue
                total[:] = 0
                for j in range(count):
                    for c in range(channels):
                        value = flat[place[j], c]
                        total[c] += -value if flipped[j] and c % 2 else value
                for j in range(count):
                    for c in range(channels):
                        value = np.float32(-total[c] if flipped[j] and c % 2 else total[c])
                        flat[place[j], c] = value
                        if mate[j] >= 0:
                            flat[mate[j], c] = -value if c % 2 else value


@_jit
def smooth_z_kernel(values, low, high):
    """Convolve rows low … high of every plane with (1/4, 1/2, 1/4) along z, in place."""
    nz, _, nx = values.shape
    quarter, half = np.float32(0.25), np.float32(0.5)
    for y in range(low, high):
        before = np.zeros(nx, np.float32)
        for z in range(nz):
            for x in range(nx):
                now = values[z, y, x]
                after = values[z + 1, y, x] if z + 1 < nz else np.float32(0)
                values[z, y, x] = quarter * (before[x] + after) + half * now
                before[x] = now


@_jit
def smooth_yx_kernel(values, mirror, low, high):
    """Convolve planes low … high with (1/4, 1/2, 1/4) along y and x, in place.

    ``mirror`` (z, y) is the column kx = 1 after the convolution along z, reversed along both axes: what stands at kx = -1.
    """
    _, ny, nx = values.shape
    quarter, half = np.float32(0.25), np.float32(0.5)
    for z in range(low, high):
        before = np.zeros(nx, np.float32)
        before_left = np.float32(0)
        for y in range(ny):
            left = quarter * (before_left + (mirror[z, y + 1] if y + 1 < ny else np.float32(0))) + half * mirror[z, y]
            before_left = mirror[z, y]
            for x in range(nx):
                now = values[z, y, x]
                after = values[z, y + 1, x] if y + 1 < ny else np.float32(0)
                values[z, y, x] = quarter * (before[x] + after) + half * now
                before[x] = now
            for x in range(nx):
                now = values[z, y, x]
                right = values[z, y, x + 1] if x + 1 < nx else np.float32(0)
                values[z, y, x] = quarter * (left + right) + half * now
                left = now


@_jit
def shell_totals_kernel(density, radius, low, high, total, count):
    """Add up the weight (z, y, x) of the shells in planes low … high, and how many voxels these have: (plane, shell)."""
    for z in range(low, high):
        for y in range(density.shape[1]):
            for x in range(radius + 1):
                r2 = (z - radius - 1) ** 2 + (y - radius - 1) ** 2 + x * x
                if r2 <= radius * radius:
                    r = round(math.sqrt(r2))
                    total[z, r] += density[z, y, x]
                    count[z, r] += 1


@_jit
def ratio_kernel(sums, density, floors, low, high, out):
    """Weight over the density around it: how uneven the first compensation leaves planes low … high."""
    radius = len(floors) - 1
    weight = sums.shape[3] - 1
    for z in range(low, high):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                r = math.sqrt((z - radius - 1) ** 2 + (y - radius - 1) ** 2 + x * x)
                if density[z, y, x] > floors[min(round(r), radius)]:
                    out[z, y, x] = sums[z, y, x, weight] / density[z, y, x]
                else:
                    out[z, y, x] = 0


@_jit
def divide_kernel(sums, which, density, floors, low, high, out):
    """Divide rows y = low … high of map ``which`` by the density: out (big, high - low, big/2+1), zero before, z in FFT order."""
    big, radius = out.shape[0], len(floors) - 1
    for iz in range(1, 2 * radius + 2):
        z = iz - radius - 1
        if 2 * abs(z) >= big:
            continue
        for y in range(low, high):
            for x in range(radius + 1):
                r2 = z * z + y * y + x * x
                if r2 > radius * radius:
                    break
                row = y + radius + 1
                there = sums[iz, row, x]
                d = max(density[iz, row, x], np.float32(floors[round(math.sqrt(r2))]))
                if d > 0:
                    out[z % big, y - low, x] = complex(there[2 * which] / d, there[2 * which + 1] / d)


@_jit
def randomise_phases_kernel(ft, turns, first_shell, low, high):
    """Turn phases from ``first_shell`` on of an n³ map's transform by ``turns`` (z, y, x), planes low … high, in place."""
    n = ft.shape[0]
    for z in range(low, high):
        kz = z if z <= n // 2 else z - n
        for y in range(n):
            ky = y if y <= n // 2 else y - n
            for x in range(ft.shape[2]):
                if kz * kz + ky * ky + x * x >= first_shell * first_shell:  # radii are not rounded, as RELION's
                    angle = np.float32(2 * math.pi) * turns[z, y, x]
                    ft[z, y, x] = product(ft[z, y, x], complex(math.cos(angle), math.sin(angle)))


@_jit
def shell_sums_kernel(ft1, ft2, low, high, sums):
    """Sum Re(F1 F2*), |F1|², |F2|² of two n³ maps per shell of planes low … high of the full transforms: (plane, 3, n//2 + 1)."""
    n = ft1.shape[0]
    for z in range(low, high):
        kz = z if z <= n // 2 else z - n
        for y in range(n):
            ky = y if y <= n // 2 else y - n
            for x in range(n // 2 + 1):
                shell = round(math.sqrt(kz * kz + ky * ky + x * x))
                if shell <= n // 2:
                    share = 1.0 if x == 0 or 2 * x == n else 2.0  # the half plane stands for both signs of kx
                    a, b = ft1[z, y, x], ft2[z, y, x]
                    sums[z, 0, shell] += share * (a.real * b.real + a.imag * b.imag)
                    sums[z, 1, shell] += share * (a.real * a.real + a.imag * a.imag)
                    sums[z, 2, shell] += share * (b.real * b.real + b.imag * b.imag)
