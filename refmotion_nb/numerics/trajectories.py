"""Maximum-a-posteriori trajectories of all particles of a micrograph, for many hyperparameters at once.

A trajectory is rigid + common + local: the rigid part is given, the common part is one displacement per frame with a
weak independent prior, the local part stands under the motion prior; the position in the first frame is free. The
unknowns are whitened (unit prior variance), which is what makes L-BFGS converge in tens of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, by_row, kernels_of, one_blas_thread, over_chunks, to_host, xp_of
from refmotion_nb.numerics.correlation import WindowGrid
from refmotion_nb.numerics.device_sizes import set_work_bytes
from refmotion_nb.numerics.kernels_motion import solve
from refmotion_nb.numerics.lbfgs import minimise
from refmotion_nb.numerics.prior import PriorModes


@dataclass
class Windows:
    """Correlation windows of a micrograph with what is needed to sample them."""

    values: Any  # (particle, frame, y, x) log-likelihood units; float32, or float64 for exact work
    grid: WindowGrid
    centre_px: np.ndarray  # (particle, frame, 2) displacement (patch px, from the coordinate) at the window's centre
    pixel_A: float

    def sample(self, displacement_A: Any) -> tuple[Any, Any]:
        """Return values (set, particle, frame) and gradients (..., 2) per Å at displacements (set, particle, frame, 2).

        They are where the windows are, wherever the displacements come from.
        """
        xp = xp_of(self.values)
        away = (beside(self.values, displacement_A) - self._centre_A) / self.step_A + self.grid.half
        value, gradient = self.sample_at(xp.ascontiguousarray(xp.moveaxis(away, -1, 1), self.values.dtype))
        return value, xp.moveaxis(gradient, 1, -1)

    def sample_at(self, position: Any) -> tuple[Any, Any]:
        """Return values (set, particle, frame) and gradients (set, 2, particle, frame) per Å at positions like these.

        Positions are in samples from the first one of each window, of the windows' type, and where they are.
        """
        xp, number = xp_of(position), position.dtype
        value, gradient = xp.empty((len(position), *position.shape[2:]), number), xp.empty(position.shape, number)
        kernels_of(self.values).sample_kernel(self.values, position, *self.taps, value, gradient)
        gradient *= number.type(1 / self.step_A)
        return value, gradient

    @property
    def step_A(self) -> float:
        """Å from sample to sample."""
        return self.grid.step_px * self.pixel_A

    def on(self, put: Callable[[Any], Any]) -> Windows:
        """Return the windows with their values where ``put`` puts them; themselves if they are there."""
        values = put(self.values)
        return self if values is self.values else replace(self, values=values)

    @cached_property
    def _centre_A(self) -> Any:
        return beside(self.values, self.centre_px * self.pixel_A)

    @cached_property
    def taps(self) -> tuple[Any, Any]:
        """Interpolation weights (4, 4) and those of the derivative (4, 3)."""
        taps = self.grid.taps.astype(self.values.dtype)
        slopes = taps[:, 1:] * np.arange(1, 4, dtype=self.values.dtype)
        return beside(self.values, taps), beside(self.values, slopes)

    def curvature(self, displacement_A: np.ndarray, step_A: float = 0.3) -> np.ndarray:
        """Return the mean curvature over particles (frame,), per Å², at displacements (particle, frame, 2), on the host.

        Frames without signal count as 5 % of the sharpest.
        """
        around = np.array([[0, 0], [step_A, 0], [-step_A, 0], [0, step_A], [0, -step_A]])
        value = to_host(self.sample(displacement_A[None] + around[:, None, None])[0].mean(1, dtype=np.float64))
        bend = (4 * value[0] - value[1:].sum(0)) / (2 * step_A**2)
        return np.maximum(bend, max(0.05 * bend.max(), 1e-6))

    def edge_hits(self, displacement_A: np.ndarray) -> np.ndarray:
        """Return where (..., particle, frame) a displacement lies beyond what its window can answer for."""
        away = np.abs(displacement_A / self.pixel_A - self.centre_px).max(-1)
        return away > self.grid.reach_px


@dataclass(frozen=True)
class Solution:
    """Trajectories of every set of hyperparameters, on the host."""

    displacement_A: np.ndarray  # (set, particle, frame, 2) from the particle's coordinate
    common_A: np.ndarray  # (set, frame, 2) relative to rigid
    local_A: np.ndarray  # (set, particle, frame, 2) relative to rigid and common, the first position included
    iterations: np.ndarray  # (set,)


class TrajectoryProblem:
    """The energy of a micrograph's trajectories under several priors, as a function of whitened unknowns.

    Unknowns of one set, for x and y each: (mode of K_z, 1 + M) of which the first column is the position in the first
    frame (no prior) and the others are the coefficients of local motion in units of their prior standard deviation;
    then the common motion of every frame in units of its own.
    """

    def __init__(
        self, windows: Windows, modes: list[PriorModes], common_std_A: float, rigid_A: np.ndarray, threads: int = 1
    ):
        """Take windows, one set of modes per row, the prior of the common motion, and rigid motion (frame, 2) Å.

        Sets are shared out among ``threads``; what comes out does not depend on it.
        """
        self.windows = windows
        self.threads = threads
        self.rigid_A = rigid_A
        self.common_std = common_std_A
        self.spatial = np.stack([m.spatial for m in modes])  # (set, particle, mode)
        self.precisions = [(m.spatial_precision, m.acceleration_precision) for m in modes]
        self.std = np.stack([np.pad(m.std, ((0, 0), (1, 0)), constant_values=1.0) for m in modes])  # (set, mode, 1 + M)
        self.temporal = np.stack([np.pad(m.temporal, ((1, 0), (0, 0)), constant_values=1.0) for m in modes])
        self.n_sets, self.n_particles, self.n_frames = len(modes), self.spatial.shape[1], self.temporal.shape[2]
        self.n_local = self.std[0].size
        self.free = np.zeros(self.std.shape[1:])  # 1 where a prior acts
        self.free[:, 1:] = 1
        values, number = windows.values, windows.values.dtype  # products of matrices are as exact as the windows
        # (set, 1, particle, mode), (set, 1, 1 + M, frame): alike for x and y
        self._spatial, self._temporal = (beside(values, one[:, None], number) for one in (self.spatial, self.temporal))
        self._std, self._rigid, self._mask = (beside(values, one) for one in (self.std, rigid_A, self._prior_mask()))
        # where rigid motion is in the windows (2, particle, frame), samples
        there = (rigid_A - windows.centre_px * windows.pixel_A) / windows.step_A + windows.grid.half
        self._start = beside(values, np.ascontiguousarray(np.moveaxis(there, -1, 0)), number)
        self._curved: tuple[Any, ...] | None = None

    def some(self, sets: slice) -> TrajectoryProblem:
        """Return the problem of some of its sets."""
        part = copy(self)
        for name in ("spatial", "std", "temporal", "precisions", "_spatial", "_std", "_temporal"):
            setattr(part, name, getattr(self, name)[sets])
        part._curved = None if self._curved is None else tuple(one[sets] for one in self._curved)
        part.n_sets = len(part.std)
        return part

    @property
    def n_unknowns(self) -> int:
        """Unknowns of one set."""
        return 2 * (self.n_local + self.n_frames)

    def parts(self, unknowns: Any, rows: Any) -> tuple[Any, Any]:
        """Return local motion with the first position (set, 2, particle, frame) and common motion (set, 2, frame), Å."""
        xp, number = xp_of(unknowns), self._spatial.dtype
        whitened = unknowns[:, : 2 * self.n_local].reshape(len(rows), 2, *self.std.shape[1:])
        coefficients = (whitened * self._std[beside(unknowns, rows), None]).astype(number)
        local = xp.empty((len(rows), 2, self.n_particles, self.n_frames), number)
        local = by_row(_forth, local, coefficients, rows, self._spatial, self._temporal)
        return local, unknowns[:, 2 * self.n_local :].reshape(len(rows), 2, self.n_frames) * self.common_std

    def displacement(self, unknowns: Any, rows: Any) -> Any:
        """Return displacements (set, particle, frame, 2) in Å from the coordinate."""
        local, common = self.parts(unknowns, rows)
        return xp_of(unknowns).moveaxis(local + common[:, :, None], 1, -1) + self._rigid

    def unknowns_of(self, local_A: np.ndarray, common_A: np.ndarray | None = None) -> Any:
        """Return the unknowns (set, n_unknowns) of motion relative to rigid motion, wherever it was found.

        Parameters
        ----------
        local_A : (set, particle, frame, 2), the position in the first frame included; or one for all sets
        common_A : (set, frame, 2), none by default
        """
        xp, rows = xp_of(self._std), np.arange(self.n_sets)
        local = np.moveaxis(np.broadcast_to(local_A, (self.n_sets, *local_A.shape[-3:])), -1, 1)
        inverse: list[np.ndarray] = []
        for i in rows:
            again = i and np.array_equal(self.temporal[i], self.temporal[i - 1])
            inverse.append(inverse[-1] if again else np.linalg.pinv(self.temporal[i]))  # a profile may come to 0
        modes = (beside(self._std, one[:, None]) for one in (self.spatial, np.stack(inverse)))
        out = xp.empty((self.n_sets, 2, *self.std.shape[1:]))
        coefficients = by_row(_taken_apart, out, beside(self._std, local), rows, *modes)
        std = self._std[:, None]
        whitened = xp.where(std > 0, coefficients / xp.where(std > 0, std, 1), 0)
        common = np.zeros((self.n_sets, 2 * self.n_frames))
        if common_A is not None and self.common_std > 0:
            common[:] = np.moveaxis(common_A, -1, 1).reshape(self.n_sets, -1) / self.common_std
        return xp.concatenate([whitened.reshape(self.n_sets, -1), beside(self._std, common)], 1)

    def energy(self, unknowns: Any, rows: Any) -> tuple[Any, Any]:
        """Return the energy (set,) and its gradient (set, n_unknowns) for the given rows."""
        xp, shape = xp_of(unknowns), (len(rows), 2, *self.std.shape[1:])
        moved, common = self.parts(unknowns, rows)
        moved += common[:, :, None].astype(moved.dtype)
        moved *= moved.dtype.type(1 / self.windows.step_A)
        moved += self._start
        value, slope = self.windows.sample_at(moved)
        back = by_row(_back, xp.empty(shape), slope, rows, self._spatial, self._temporal)
        back *= self._std[beside(unknowns, rows), None]
        common = self.common_std * slope.sum(2, dtype=np.float64)
        uphill = xp.concatenate([back.reshape(len(rows), -1), common.reshape(len(rows), -1)], 1)
        prior = unknowns * self._mask
        return 0.5 * (prior * unknowns).sum(1) - value.sum((1, 2), dtype=np.float64), prior - uphill

    def _prior_mask(self) -> np.ndarray:
        return np.concatenate([np.broadcast_to(self.free, (2, *self.free.shape)).ravel(), np.ones(2 * self.n_frames)])

    def set_curvature(self, curvature: np.ndarray) -> None:
        """Precondition with the Hessian that windows of the given mean curvature (frame,) per Å² would have.

        With one curvature for all particles of a frame the Hessian of a mode of K_z is D (H + c E) D: D its standard
        deviations, H = T B Tᵀ and the precisions of the acceleration prior, the same for all modes, c the precision of the
        spatial prior on this one, which the position in the first frame does not have. With that position eliminated the
        eigenvectors of H serve all modes: (H + c E)⁻¹ = Q diag(d) Qᵀ, in which only d depends on the mode.
        """
        n = self.temporal.shape[1]
        turn, gain = np.zeros((self.n_sets, 1, n, n)), np.empty((self.n_sets, 1, *self.std.shape[1:]))
        for i, (spatial, acceleration) in enumerate(self.precisions):
            hessian = (self.temporal[i] * curvature) @ self.temporal[i].T
            first, along = hessian[0, 0], hessian[0, 1:] / hessian[0, 0]
            values, vectors = np.linalg.eigh(hessian[1:, 1:] - first * np.outer(along, along) + np.diag(acceleration))
            turn[i, 0, 1:, :-1], turn[i, 0, 0, :-1], turn[i, 0, 0, -1] = vectors, -along @ vectors, 1
            gain[i, 0, :, :-1], gain[i, 0, :, -1] = 1 / (np.maximum(values, 0) + spatial[:, None]), 1 / first
        whitening = np.divide(1, self.std, out=np.zeros_like(self.std), where=self.std > 0)[:, None]
        self._curved = tuple(beside(self._std, one) for one in (turn, gain, whitening))
        self._common_inverse = 1 / (1 + self.common_std**2 * self.n_particles * beside(self._std, curvature))

    @property
    def _share(self) -> int:
        """How many sets a thread gets."""
        return -(-self.n_sets // self.threads)

    def displacement_std(self, curvature: np.ndarray, row: int = 0) -> np.ndarray:
        """Return the posterior standard deviation (particle, frame), Å, of displacements along x, and along y, of one set.

        The data are taken to bind every particle of a frame by the same ``curvature`` (frame,) per Å², their mean: that of
        one window is mostly noise. The inverse Hessian is then exact: blocks of modes that the common motion couples.
        """
        spatial, std, temporal = self.spatial[row], self.std[row], self.temporal[row]
        blocks = std[:, :, None] * ((temporal * curvature) @ temporal.T) * std[:, None]
        index = np.arange(blocks.shape[-1])
        blocks[:, index, index] += self.free
        # covariance of each mode over frames, were the common motion known: (mode, frame, frame)
        alone = temporal.T @ (std[:, :, None] * np.linalg.inv(blocks) * std[:, None]) @ temporal
        alike = spatial.sum(0)  # (mode,) how a shift of all particles looks in each mode
        variance = spatial**2 @ np.diagonal(alone, axis1=1, axis2=2)
        # what local motion explains of the common
        taken = curvature[:, None] * np.tensordot(alike**2, alone, 1) * curvature
        precision = np.eye(self.n_frames) + self.common_std**2 * (np.diag(self.n_particles * curvature) - taken)
        common = self.common_std**2 * np.linalg.inv(precision)  # (frame, frame)
        for i, one in enumerate(spatial * alike):
            # the common motion less what this particle's local motion gives way by
            rest = np.eye(self.n_frames) - np.tensordot(one, alone, 1) * curvature
            variance[i] += np.einsum("fg,gh,fh->f", rest, common, rest, optimize=True)
        return np.sqrt(variance)

    def precondition(self, gradient: Any, rows: Any) -> Any:
        """Return the approximate inverse Hessian times a gradient (set, n_unknowns)."""
        r, xp = len(rows), xp_of(gradient)
        assert self._curved is not None, "set_curvature comes first"
        local = gradient[:, : 2 * self.n_local].reshape(r, 2, *self.std.shape[1:])
        local = by_row(_preconditioned, xp.empty(local.shape), local, rows, *self._curved)
        common = gradient[:, 2 * self.n_local :].reshape(r, 2, -1) * self._common_inverse
        return xp.concatenate([local.reshape(r, -1), common.reshape(r, -1)], 1)

    def solve(self, start: Any | None = None, tolerance: float = 1e-5, max_iterations: int = 200) -> Solution:
        """Return the trajectories of lowest energy, from ``start`` (set, n_unknowns) or from rigid motion.

        ``tolerance`` is the energy still to be gained, per particle and frame.
        """
        tolerance *= self.n_particles * self.n_frames
        rows = np.arange(self.n_sets)
        if start is None:
            start = np.zeros((len(rows), self.n_unknowns))
        start = beside(self.windows.values, start)

        def work(part: slice) -> tuple[Any, np.ndarray]:
            return self.some(part)._minimised(start[part], tolerance, max_iterations)

        with one_blas_thread():  # all sets at once, unless the memory of a GPU ends
            parts = over_chunks(
                len(rows), work, self.threads, self._share, like=start,
                item_bytes=set_work_bytes(self.n_particles, self.n_frames, self.n_unknowns),
            )  # fmt: skip
        xp = xp_of(start)
        unknowns = parts[0][0] if len(parts) == 1 else xp.concatenate([one for one, _ in parts])
        iterations = np.concatenate([one for _, one in parts])
        local, common = map(to_host, self.parts(unknowns, rows))
        return Solution(
            to_host(self.displacement(unknowns, rows)),
            np.moveaxis(common, 1, -1),
            np.moveaxis(local, 1, -1),
            iterations,
        )

    def _minimised(self, start: Any, tolerance: float, max_iterations: int) -> tuple[Any, np.ndarray]:
        """Return unknowns of lowest energy and iterations of all sets: compiled on the CPU, else step by step on arrays."""
        if xp_of(start) is not np or self._curved is None:
            return minimise(
                self.energy, start, precondition=None if self._curved is None else self.precondition,
                tolerance=tolerance, max_iterations=max_iterations,
            )  # fmt: skip
        windows = self.windows
        problem = (
            windows.values, *windows.taps, self._start, self._start.dtype.type(1 / windows.step_A), self._spatial[:, 0],
            self._temporal[:, 0], self._std, float(self.common_std),
        )  # fmt: skip
        inverse = *(one[:, 0] for one in self._curved), self._common_inverse
        return solve(problem, inverse, np.ascontiguousarray(start), float(tolerance), max_iterations)


def _forth(coefficients: Any, spatial: Any, temporal: Any) -> Any:
    return spatial @ (coefficients @ temporal)


def _back(slope: Any, spatial: Any, temporal: Any) -> Any:
    return spatial.swapaxes(-1, -2) @ slope @ temporal.swapaxes(-1, -2)


def _taken_apart(local: Any, spatial: Any, inverse: Any) -> Any:
    return spatial.swapaxes(-1, -2) @ (local @ inverse)


def _preconditioned(values: Any, turn: Any, gain: Any, whitening: Any) -> Any:
    return ((values * whitening) @ turn * gain) @ turn.swapaxes(-1, -2) * whitening
