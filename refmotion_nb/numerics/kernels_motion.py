"""Sampling of correlation windows, and the trajectories of a micrograph found in one go, without the interpreter.

``kernels_motion.cu`` does the same on a GPU. The steps are those of Nocedal & Wright, algorithm 7.5, with backtracking; tests
have them on arrays, to compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refmotion_nb.numerics.compiled import njit

_jit = njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
MEMORY = 8  # steps of L-BFGS that are remembered


@_jit
def sample_kernel(windows, position, taps, slopes, value, gradient):
    """Sample correlation windows and their gradients by 4 × 4 piecewise-cubic interpolation.

    windows (particle, frame, y, x), position (set, 2, particle, frame) x y in window px from the first sample, taps
    (4, 4): weight of tap t is Σ_n taps[t, n] u^n, slopes (4, 3): its derivative -> value (set, particle, frame),
    gradient (set, 2, particle, frame) per px. Beyond the window's edge the value at the edge continues. All of one float type.
    """
    number = position.dtype.type
    size = windows.shape[2]
    low = number(1)
    high = number(size - 2)
    zero = number(0)
    for p in range(position.shape[2]):
        for f in range(position.shape[3]):
            for s in range(position.shape[0]):  # of all sets at once: a window is read once
                x = min(max(position[s, 0, p, f], low), high)
                y = min(max(position[s, 1, p, f], low), high)
                ix = min(int(x), size - 3)
                iy = min(int(y), size - 3)
                u = x - number(ix)
                v = y - number(iy)
                x0, x1, x2, x3 = _cubics(taps, u)
                dx0, dx1, dx2, dx3 = _quadratics(slopes, u)
                wy = _cubics(taps, v)
                dy = _quadratics(slopes, v)
                total = zero
                gx = zero
                gy = zero
                for t in range(4):
                    w0 = windows[p, f, iy - 1 + t, ix - 1]
                    w1 = windows[p, f, iy - 1 + t, ix]
                    w2 = windows[p, f, iy - 1 + t, ix + 1]
                    w3 = windows[p, f, iy - 1 + t, ix + 2]
                    row = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
                    total += wy[t] * row
                    gy += dy[t] * row
                    gx += wy[t] * (w0 * dx0 + w1 * dx1 + w2 * dx2 + w3 * dx3)
                value[s, p, f] = total
                gradient[s, 0, p, f] = gx if x == position[s, 0, p, f] else zero
                gradient[s, 1, p, f] = gy if y == position[s, 1, p, f] else zero


@_jit
def _cubics(c, u):
    """Four cubics, of coefficients (4, 4), at u."""
    return (
        c[0, 0] + u * (c[0, 1] + u * (c[0, 2] + u * c[0, 3])),
        c[1, 0] + u * (c[1, 1] + u * (c[1, 2] + u * c[1, 3])),
        c[2, 0] + u * (c[2, 1] + u * (c[2, 2] + u * c[2, 3])),
        c[3, 0] + u * (c[3, 1] + u * (c[3, 2] + u * c[3, 3])),
    )


@_jit
def _quadratics(c, u):
    """Four quadratics, of coefficients (4, 3), at u."""
    return (
        c[0, 0] + u * (c[0, 1] + u * c[0, 2]),
        c[1, 0] + u * (c[1, 1] + u * c[1, 2]),
        c[2, 0] + u * (c[2, 1] + u * c[2, 2]),
        c[3, 0] + u * (c[3, 1] + u * c[3, 2]),
    )


def solve(
    problem: tuple[Any, ...], inverse: tuple[Any, ...], start: np.ndarray, tolerance: float, max_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the energy of every set (see ``TrajectoryProblem``) by preconditioned L-BFGS with backtracking.

    A set stops when the decrease its next step promises is below ``tolerance`` or no step lowers its energy. All arrays are
    C-contiguous, those of ``problem`` of the windows' type but the last two.

    Parameters
    ----------
    problem : windows (particle, frame, y, x), taps and slopes of ``sample_kernel``, positions in samples (2, particle, frame)
        without any motion, samples per Å, spatial (set, particle, mode), temporal (set, 1 + M, frame), std (set, mode, 1 + M)
        float64, common (frame, unknown of the common motion) Å float64
    inverse : turn (set, 1 + M, 1 + M), gain and whitening (set, mode, 1 + M), that of the common motion (unknown,)
    start : (set, unknown) float64

    Returns
    -------
    (set, unknown) and (set,) the number of iterations.
    """
    windows, first, std = problem[0], problem[3], problem[7]
    n_sets, rows, width = len(start), 2 * std.shape[1], std.shape[2]
    kind, shape = windows.dtype, (n_sets, *first.shape)
    room = (
        np.empty((rows, width), kind), np.empty((rows, first.shape[2]), kind), np.empty(shape, kind), np.empty(shape, kind),
        np.empty((n_sets, *first.shape[1:]), kind), np.empty(first.shape[2]), np.empty((rows, width)), np.empty((rows, width)),
        np.empty(MEMORY),
    )  # fmt: skip
    pairs = np.empty((MEMORY, *start.shape)), np.empty((MEMORY, *start.shape)), np.zeros((MEMORY, n_sets))
    here, there = ((start.copy(), np.empty(n_sets), np.empty(start.shape)) for _ in range(2))
    iterations = np.zeros(n_sets, np.int64)
    _iterate(problem, inverse, room, pairs, here, there, np.empty(start.shape), tolerance, max_iterations, iterations)
    return here[0], iterations


@_jit
def _iterate(problem, inverse, room, pairs, here, there, direction, tolerance, max_iterations, iterations):
    """Move ``here`` and ``there``, each unknowns (set, unknown), energy (set,) and gradient (set, unknown), to the minima."""
    n_sets = iterations.size
    slope = np.empty(n_sets)
    live = np.arange(n_sets)  # whose first ``n`` are
    n = n_sets
    _energies(problem, room, live, n, *here)
    for iteration in range(max_iterations):
        moving = n - n  # not 0, which would be a type of its own and compiled for
        for k in range(n):
            r = live[k]
            slope[r] = _descend(here[2][r], pairs, r, iteration, inverse, room, direction[r])
            if -0.5 * slope[r] >= tolerance:
                iterations[r] += 1
                live[moving] = r
                moving += 1
        _step(problem, room, live, moving, here, direction, slope, there)
        n = 0
        for k in range(moving):
            r = live[k]
            if there[1][r] < here[1][r]:  # others stay where they are
                _take(r, iteration % MEMORY, here, there, pairs)
                live[n] = r
                n += 1
        if n == 0:
            return


@_jit
def _descend(gradient, pairs, r, iteration, inverse, room, q):
    """Fill in the quasi-Newton direction (unknown,) of a row (two-loop recursion); return how steep it falls."""
    steps, changes, rho = pairs
    whitened, turned, alpha = room[6:]
    for j in range(q.size):
        q[j] = -gradient[j]
    n_pairs = min(iteration, MEMORY)
    for back in range(1, n_pairs + 1):
        i = (iteration - back) % MEMORY
        alpha[i] = rho[i, r] * _dot(steps[i, r], q)
        _add(q, -alpha[i], changes[i, r])
    _precondition(q, r, inverse, whitened, turned)
    for back in range(n_pairs, 0, -1):
        i = (iteration - back) % MEMORY
        _add(q, alpha[i] - rho[i, r] * _dot(changes[i, r], q), steps[i, r])
    slope = _dot(q, gradient)
    if slope < 0:
        return slope
    for j in range(q.size):
        q[j] = -gradient[j]
    return _dot(q, gradient)


@_jit
def _step(problem, room, live, n, here, direction, slope, there):
    """Go along the direction of the first ``n`` rows until the energy of each falls enough, by ever shorter steps."""
    length = np.ones(slope.size)
    again = np.empty(n, np.int64)
    for k in range(n):
        again[k] = live[k]
    for _ in range(13):
        for k in range(n):
            r = again[k]
            for j in range(direction.shape[1]):
                there[0][r, j] = here[0][r, j] + length[r] * direction[r, j]
        _energies(problem, room, again, n, *there)
        left = 0
        for k in range(n):
            r = again[k]
            if there[1][r] > here[1][r] + 1e-4 * length[r] * slope[r]:
                length[r] *= 0.4
                again[left] = r
                left += 1
        n = left
        if n == 0:
            return


@_jit
def _take(r, i, here, there, pairs):
    """Move a row to where its step led, and remember the step as the ``i``-th."""
    steps, changes, rho = pairs
    x, gradient, new_x, new_gradient = here[0][r], here[2][r], there[0][r], there[2][r]
    for j in range(x.size):
        steps[i, r, j] = new_x[j] - x[j]
        changes[i, r, j] = new_gradient[j] - gradient[j]
    product = _dot(steps[i, r], changes[i, r])
    rho[i, r] = 1 / product if product > 1e-12 * _dot(changes[i, r], changes[i, r]) else 0.0
    for j in range(x.size):
        x[j] = new_x[j]
        gradient[j] = new_gradient[j]
    here[1][r] = there[1][r]


@_jit
def _energies(problem, room, rows, n, x, energy, gradient):
    """Fill in energy (set,) and gradient (set, unknown) of the first ``n`` of ``rows``."""
    windows, taps, slopes, first, samples_per_A, spatial, temporal, std, common = problem
    coefficients, over_dose, position, slope, value, along = room[:6]
    modes = std.shape[1]
    n_local = 2 * std[0].size
    n_frames = first.shape[2]
    number = windows.dtype.type
    for k in range(n):
        r = rows[k]
        for i in range(2 * modes):
            for j in range(coefficients.shape[1]):
                coefficients[i, j] = x[r, i * coefficients.shape[1] + j] * std[r, i % modes, j]
        np.dot(coefficients, temporal[r], over_dose)
        for a in range(2):
            np.dot(spatial[r], over_dose[a * modes : (a + 1) * modes], position[k, a])
            np.dot(common, x[r, n_local + a * n_frames : n_local + (a + 1) * n_frames], along)
            for p in range(first.shape[1]):
                for f in range(n_frames):
                    moved = position[k, a, p, f] + number(along[f])
                    position[k, a, p, f] = moved * samples_per_A + first[a, p, f]
    sample_kernel(windows, position[:n], taps, slopes, value[:n], slope[:n])
    for k in range(n):
        r = rows[k]
        for a in range(2):
            for f in range(n_frames):
                along[f] = 0
            for p in range(first.shape[1]):
                for f in range(n_frames):
                    slope[k, a, p, f] *= samples_per_A
                    along[f] -= slope[k, a, p, f]
            np.dot(common.T, along, gradient[r, n_local + a * n_frames : n_local + (a + 1) * n_frames])
            np.dot(spatial[r].T, slope[k, a], over_dose[a * modes : (a + 1) * modes])
        np.dot(over_dose, temporal[r].T, coefficients)
        energy[r] = _with_prior(x[r], coefficients, std[r], gradient[r])
        for p in range(first.shape[1]):
            for f in range(n_frames):
                energy[r] -= value[k, p, f]


@_jit
def _with_prior(x, uphill, std, gradient):
    """Return the energy of the prior of one set; fill in the gradient of local motion, add the prior's to the common one's."""
    modes, width = std.shape
    energy = 0.0
    for i in range(2 * modes):
        gradient[i * width] = -uphill[i, 0] * std[i % modes, 0]  # the position in the first frame is free
        for j in range(1, width):
            one = x[i * width + j]
            energy += 0.5 * one * one
            gradient[i * width + j] = one - uphill[i, j] * std[i % modes, j]
    for j in range(2 * modes * width, x.size):
        energy += 0.5 * x[j] * x[j]
        gradient[j] += x[j]
    return energy


@_jit
def _precondition(q, r, inverse, whitened, turned):
    """Multiply a gradient (unknown,) by the approximate inverse Hessian of row ``r``, see ``TrajectoryProblem``."""
    turn, gain, whitening, common_inverse = inverse
    modes, width = gain.shape[1:]
    for i in range(2 * modes):
        for j in range(width):
            whitened[i, j] = q[i * width + j] * whitening[r, i % modes, j]
    np.dot(whitened, turn[r], turned)
    for i in range(2 * modes):
        for j in range(width):
            turned[i, j] *= gain[r, i % modes, j]
    np.dot(turned, turn[r].T, whitened)
    for i in range(2 * modes):
        for j in range(width):
            q[i * width + j] = whitened[i, j] * whitening[r, i % modes, j]
    for a in range(2):
        start = 2 * modes * width + a * common_inverse.size
        for f in range(common_inverse.size):
            q[start + f] *= common_inverse[f]


@njit(nogil=True, cache=True, fastmath=True)
def _dot(a, b):
    total = 0.0
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@_jit
def _add(out, factor, values):
    """Add ``factor`` times values (n,) to out (n,)."""
    for j in range(out.size):
        out[j] += factor * values[j]
