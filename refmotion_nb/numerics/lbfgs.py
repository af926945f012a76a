"""L-BFGS on many independent problems at once (Nocedal & Wright, algorithm 7.5, with backtracking)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, to_host, xp_of

# the energy (row,) and gradient (row, n) of the given rows
Objective = Callable[[Any, Any], tuple[Any, Any]]


def minimise(
    objective: Objective,
    start: Any,  # (row, n)
    *,
    precondition: Callable[..., Any] | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
    memory: int = 8,
) -> tuple[Any, np.ndarray]:
    """Minimise every row's energy; ``objective(x, rows)`` evaluates the rows it is given.

    A row stops when the decrease its next step promises is below ``tolerance`` or no step lowers its energy.
    ``precondition(gradient, rows)`` is an approximate inverse Hessian.

    Returns
    -------
    (row, n) the minima, where ``start`` is, and (row,) the number of iterations each took, on the host.
    """
    xp = xp_of(start)
    x = start.copy()
    rows = np.arange(len(x))
    energy, gradient = _evaluated(objective, x, rows)
    pairs: list[tuple[Any, Any, Any]] = []  # steps, gradient changes, 1 / their product, rows as in x
    iterations = np.zeros(len(x), int)
    result = x.copy()
    for _ in range(max_iterations):
        direction = _direction(xp, gradient, pairs, None if precondition is None else partial(precondition, rows=rows))
        slope = to_host(_dots(direction, gradient))
        uphill = slope >= 0
        if uphill.any():
            direction = xp.where(beside(x, uphill)[:, None], -gradient, direction)
            slope = to_host(_dots(direction, gradient))
        done = -0.5 * slope < tolerance
        if done.any():
            result[beside(x, rows)] = x
            left = np.flatnonzero(~done)
            if left.size == 0:
                return result, iterations
            rows, energy, slope, keep = rows[left], energy[left], slope[left], beside(x, left)
            x, gradient, direction = x[keep], gradient[keep], direction[keep]
            pairs = [(s[keep], y[keep], rho[keep]) for s, y, rho in pairs]
        iterations[rows] += 1
        if not pairs and precondition is None:
            direction = direction / xp.maximum(1, xp.sqrt((gradient**2).sum(1)))[:, None]
            slope = to_host(_dots(direction, gradient))
        new_x, new_energy, new_gradient, moved = _backtrack(objective, rows, x, energy, direction, slope)
        s, y = new_x - x, new_gradient - gradient
        product = _dots(s, y)
        good = product > 1e-12 * _dots(y, y)
        rho = xp.where(good, 1 / xp.where(good, product, 1), 0)
        pairs = [*pairs, (s, y, rho)][-memory:]
        x, energy, gradient = new_x, new_energy, new_gradient
        if not moved.all():
            result[beside(x, rows)] = x
            left = np.flatnonzero(moved)
            if left.size == 0:
                return result, iterations
            rows, energy, keep = rows[left], energy[left], beside(x, left)
            x, gradient = x[keep], gradient[keep]
            pairs = [(s[keep], y[keep], rho[keep]) for s, y, rho in pairs]
    result[beside(x, rows)] = x
    return result, iterations


def _evaluated(objective: Objective, x: Any, rows: np.ndarray) -> tuple[np.ndarray, Any]:
    """Return the energy (row,), on the host, where it decides what comes next, and the gradient, where ``x`` is."""
    energy, gradient = objective(x, rows)
    return to_host(energy), gradient


def _dots(a: Any, b: Any) -> Any:
    """Return the scalar product (row,) of every row of two arrays (row, n): the same, whatever other rows there are."""
    return (a[:, None] @ b[:, :, None])[:, 0, 0]


def _direction(xp: Any, gradient: Any, pairs: list[tuple[Any, Any, Any]], precondition: Any) -> Any:
    """Return the quasi-Newton direction of every row (two-loop recursion); pairs with rho 0 change nothing."""
    q = gradient.copy()
    alphas = []
    for s, y, rho in reversed(pairs):
        alpha = rho * _dots(s, q)
        q -= alpha[:, None] * y
        alphas.append(alpha)
    if precondition is not None:
        q = precondition(q)
    elif pairs:
        s, y, rho = pairs[-1]
        yy = _dots(y, y)
        q *= xp.where(rho > 0, 1 / xp.maximum(rho * yy, 1e-300), 1)[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(alphas)):
        beta = rho * _dots(y, q)
        q += (alpha - beta)[:, None] * s
    return -q


def _backtrack(
    objective: Objective, rows: np.ndarray, x: Any, energy: np.ndarray, direction: Any, slope: np.ndarray
) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """Halve each row's step until its energy falls enough; rows for which none does stay where they are."""
    step = np.ones(len(x))
    new_x = x + direction
    new_energy, new_gradient = _evaluated(objective, new_x, rows)
    for _ in range(12):
        which = np.flatnonzero(new_energy > energy + 1e-4 * step * slope)
        if not which.size:
            break
        again = beside(x, which)
        step[which] *= 0.4
        trial = x[again] + beside(x, step[which])[:, None] * direction[again]
        new_energy[which], trial_gradient = _evaluated(objective, trial, rows[which])
        new_x[again], new_gradient[again] = trial, trial_gradient
    moved = new_energy < energy
    if not moved.all():
        stuck = np.flatnonzero(~moved)
        new_x[beside(x, stuck)], new_energy[stuck] = x[beside(x, stuck)], energy[stuck]
    return new_x, new_energy, new_gradient, moved
