"""The descent of trajectories step by step, on NumPy's arrays: what the compiled ones are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refmotion_nb.numerics.trajectories import TrajectoryProblem

# the energy (row,) and gradient (row, n) of the given rows
Objective = Callable[[Any, Any], tuple[Any, Any]]


def displacement(problem: TrajectoryProblem, unknowns: np.ndarray) -> np.ndarray:
    """Return displacements (set, particle, frame, 2) in Å from the coordinate."""
    local, common = problem.parts(unknowns)
    return np.moveaxis(local + common[:, :, None], 1, -1) + problem.rigid_A


def energy(problem: TrajectoryProblem, unknowns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the energy (set,) and its gradient (set, n_unknowns) of the sets ``rows``."""
    n, number = 2 * problem.n_local, problem._start.dtype
    std, spatial, temporal = (one[rows][:, None] for one in (problem.std, problem._spatial, problem._temporal))
    coefficients = (unknowns[:, :n].reshape(len(rows), 2, *std.shape[2:]) * std).astype(number)
    common = unknowns[:, n:].reshape(len(rows), 2, 1, -1) @ problem.motions.T
    moved = spatial @ (coefficients @ temporal) + common.astype(number)
    value, slope = problem.windows.sample_at(moved * number.type(1 / problem.windows.step_A) + problem._start)
    back = spatial.swapaxes(-1, -2) @ slope @ temporal.swapaxes(-1, -2) * std
    of_common = slope.sum(2, dtype=np.float64) @ problem.motions
    uphill = np.concatenate([back.reshape(len(rows), -1), of_common.reshape(len(rows), -1)], 1)
    prior = unknowns * np.concatenate([np.tile(problem.free.ravel(), 2), np.ones(2 * problem.n_frames)])
    return 0.5 * (prior * unknowns).sum(1) - value.sum((1, 2), dtype=np.float64), prior - uphill


def precondition(problem: TrajectoryProblem, gradient: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the approximate inverse Hessian times a gradient (set, n_unknowns) of the sets ``rows``."""
    turn, gain, whitening = (one[rows][:, None] for one in problem._curved)
    local = gradient[:, : 2 * problem.n_local].reshape(len(rows), 2, *problem.std.shape[1:])
    local = ((local * whitening) @ turn * gain) @ turn.swapaxes(-1, -2) * whitening
    common = gradient[:, 2 * problem.n_local :].reshape(len(rows), 2, -1) * problem._common_inverse
    return np.concatenate([local.reshape(len(rows), -1), common.reshape(len(rows), -1)], 1)


def minimise(
    objective: Objective,
    start: np.ndarray,  # (row, n)
    inverse: Callable[[np.ndarray, np.ndarray], np.ndarray],
    tolerance: float = 1e-3,
    max_iterations: int = 300,
    memory: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise every row's energy by L-BFGS (Nocedal & Wright, algorithm 7.5) with backtracking.

    ``objective(x, rows)`` and ``inverse(gradient, rows)``, an approximate inverse Hessian, are of the rows they are
    given. A row stops when the decrease its next step promises is below ``tolerance`` or no step lowers its energy.

    Returns
    -------
    (row, n) the minima and (row,) the number of iterations each took.
    """
    x = start.copy()
    iterations = np.zeros(len(x), int)
    for row in range(len(x)):
        one = np.array([row])

        def evaluated(at, one=one):
            value, slope = objective(at[None], one)
            return value[0], slope[0]

        value, gradient = evaluated(x[row])
        pairs: list[tuple[np.ndarray, np.ndarray, float]] = []  # steps, gradient changes, 1 / their product
        while iterations[row] < max_iterations:
            direction = _direction(gradient, pairs, lambda q, one=one: inverse(q[None], one)[0])
            if direction @ gradient >= 0:
                direction = -gradient
            slope = direction @ gradient
            if -0.5 * slope < tolerance:
                break
            iterations[row] += 1
            step = 1.0
            for _ in range(13):
                new = x[row] + step * direction
                new_value, new_gradient = evaluated(new)
                if new_value <= value + 1e-4 * step * slope:
                    break
                step *= 0.4
            if new_value >= value:
                break
            s, y = new - x[row], new_gradient - gradient
            pairs = [*pairs, (s, y, 1 / (s @ y) if s @ y > 1e-12 * (y @ y) else 0.0)][-memory:]
            x[row], value, gradient = new, new_value, new_gradient
    return x, iterations


def _direction(
    gradient: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray, float]], inverse: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the quasi-Newton direction (two-loop recursion); pairs with rho 0 change nothing."""
    q, alphas = -gradient, []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * (s @ q))
        q = q - alphas[-1] * y
    q = inverse(q)
    for (s, y, rho), alpha in zip(pairs, reversed(alphas)):
        q = q + (alpha - rho * (y @ q)) * s
    return q
