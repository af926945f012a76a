"""Maximum-a-posteriori trajectories of all particles of a micrograph, for many hyperparameters at once.

A trajectory is rigid + common + local: the rigid part is given, the common part is one displacement per frame under a
weak prior, the local part stands under the motion prior; the position in the first frame is free. The
unknowns are whitened (unit prior variance), which is what makes L-BFGS converge in tens of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import (
    all_beside,
    beside,
    by_row,
    kernels_of,
    one_blas_thread,
    over_chunks,
    to_host,
    xp_of,
)
from refmotion_nb.numerics.correlation import WindowGrid
from refmotion_nb.numerics.device_sizes import set_work_bytes
from refmotion_nb.numerics.prior import CommonPrior, PriorModes

CURVATURE_STEP_A = 0.3
SETS_BYTES = 256 << 20  # of the sets that a CPU's thread solves together: many threads do, each on its micrograph


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

    def curvature(self, displacement_A: np.ndarray) -> np.ndarray:
        """Return the mean curvature over particles (frame,), per Å², at displacements (particle, frame, 2), on the host.

        Frames without signal count as 5 % of the sharpest.
        """
        around = np.array(
            [[0, 0], [CURVATURE_STEP_A, 0], [-CURVATURE_STEP_A, 0], [0, CURVATURE_STEP_A], [0, -CURVATURE_STEP_A]]
        )
        value = to_host(self.sample(displacement_A[None] + around[:, None, None])[0].mean(1, dtype=np.float64))
        bend = (4 * value[0] - value[1:].sum(0)) / (2 * CURVATURE_STEP_A**2)
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


@dataclass(frozen=True)
class Motion:
    """Motion relative to rigid motion under every set of hyperparameters, where the windows are."""

    local_A: Any  # (set, particle, frame, 2), the position in the first frame included
    common_A: Any  # (set, frame, 2)
    iterations: np.ndarray  # (set,), on the host


class TrajectoryProblem:
    """The energy of a micrograph's trajectories under several priors, as a function of whitened unknowns.

    Unknowns of one set, for x and y each: (mode of K_z, 1 + M) of which the first column is the position in the first
    frame (no prior) and the others are the coefficients of local motion in units of their prior standard deviation;
    then those of the common motion (frame,), likewise.
    """

    def __init__(
        self, windows: Windows, modes: list[PriorModes], common: CommonPrior, rigid_A: np.ndarray, threads: int = 1
    ):
        """Take windows, one set of modes per row, the prior of the common motion, and rigid motion (frame, 2) Å.

        Sets are shared out among ``threads``; what comes out does not depend on it.
        """
        self.windows = windows
        self.threads = threads
        self.rigid_A = rigid_A
        self.common = common
        self.modes = modes
        # (set, mode, 1 + M), (set, 1 + M, frame)
        self.std, self.temporal = (_after_ones(list(each)) for each in zip(*((m.std.T, m.temporal) for m in modes)))
        self.std = np.ascontiguousarray(self.std.swapaxes(1, 2))
        self.n_sets, self.n_particles, self.n_frames = len(modes), len(modes[0].spatial), self.temporal.shape[2]
        self.n_local = self.std[0].size
        self.free = np.zeros(self.std.shape[1:])  # 1 where a prior acts
        self.free[:, 1:] = 1
        values, number = windows.values, windows.values.dtype  # products of matrices are as exact as the windows
        # where rigid motion and what is expected of the common one are in the windows (2, particle, frame), samples
        there = (rigid_A + common.mean_A - windows.centre_px * windows.pixel_A) / windows.step_A + windows.grid.half
        # (set, particle, mode), (set, 1 + M, frame): alike for x and y
        self._spatial = beside(values, np.stack([m.spatial for m in modes], dtype=number))
        self._temporal, self._start = all_beside(values, (self.temporal, np.moveaxis(there, -1, 0)), number)
        self._std = beside(values, self.std)
        self._curved: tuple[Any, ...] | None = None

    def some(self, sets: slice) -> TrajectoryProblem:
        """Return the problem of some of its sets."""
        part = copy(self)
        for name in ("modes", "std", "temporal", "_spatial", "_std", "_temporal"):
            setattr(part, name, getattr(self, name)[sets])
        part._curved = None if self._curved is None else tuple(one[sets] for one in self._curved)
        part.n_sets = len(part.std)
        return part

    @property
    def n_unknowns(self) -> int:
        """Unknowns of one set."""
        return 2 * (self.n_local + self.n_frames)

    def parts(self, unknowns: Any) -> tuple[Any, Any]:
        """Return local motion with the first position (set, 2, particle, frame) and common motion (set, 2, frame), Å."""
        xp, number, n = xp_of(unknowns), self._start.dtype, self.n_sets
        coefficients = unknowns[:, : 2 * self.n_local].reshape(n, 2, *self.std.shape[1:]) * self._std[:, None]
        coefficients = coefficients.astype(number).reshape(n, -1, self.std.shape[2])
        local = xp.empty((n, self.n_particles, 2 * self.n_frames), number)
        local = by_row(_forth, local, coefficients, self._spatial, self._temporal).reshape(n, -1, 2, self.n_frames)
        common = unknowns[:, 2 * self.n_local :].reshape(n, 2, self.n_frames) @ self._common.T
        return local.swapaxes(1, 2), common + self._expected

    def unknowns_of(self, local_A: Any, common_A: Any = None) -> Any:
        """Return the unknowns (set, n_unknowns) of motion relative to rigid motion, wherever it was found.

        Parameters
        ----------
        local_A : (set, particle, frame, 2), the position in the first frame included; or one for all sets
        common_A : (set, frame, 2), what is expected by default
        """
        n, like, xp = self.n_sets, self._std, xp_of(self._std)
        inverse: list[np.ndarray] = []
        for i in range(n):
            again = i and np.array_equal(self.temporal[i], self.temporal[i - 1])
            inverse.append(inverse[-1] if again else np.linalg.pinv(self.temporal[i]))  # a profile may come to 0
        local = beside(like, local_A)
        local = xp.broadcast_to(local, (n, *local.shape[-3:])).swapaxes(2, 3).reshape(n, self.n_particles, -1)
        out, std = xp.empty((n, 2 * self.std.shape[1], self.std.shape[2])), like[:, None]
        coefficients = by_row(_taken_apart, out, local, self._spatial, beside(like, np.stack(inverse)))
        coefficients = coefficients.reshape(n, 2, *self.std.shape[1:])
        whitened = xp.where(std > 0, coefficients / xp.where(std > 0, std, 1), 0)
        common = xp.zeros((n, 2 * self.n_frames))
        if common_A is not None:
            away = xp.moveaxis(beside(like, common_A), -1, 1) - self._expected
            common = (away @ self._taking_apart).reshape(n, -1)
        return xp.concatenate([whitened.reshape(n, -1), common], 1)

    def set_curvature(self, curvature: np.ndarray) -> None:
        """Precondition with the Hessian that windows of the given mean curvature (frame,) per Å² would have; it comes first.

        With one curvature for all particles of a frame the Hessian of a mode of K_z is D (H + c E) D: D its standard
        deviations, H = T B Tᵀ and the precisions of the acceleration prior, the same for all modes, c the precision of the
        spatial prior on this one, which the position in the first frame does not have. With that position eliminated the
        eigenvectors of H serve all modes: (H + c E)⁻¹ = Q diag(d) Qᵀ, in which only d depends on the mode.
        """
        n_sets, n = self.n_sets, self.temporal.shape[1]
        spatial = np.stack([m.spatial_precision for m in self.modes])  # (set, mode)
        acceleration = np.stack([m.acceleration_precision for m in self.modes])  # (set, M)
        hessian = (self.temporal * curvature) @ self.temporal.swapaxes(1, 2)
        first = hessian[:, :1, :1]
        along = hessian[:, :1, 1:] / first
        rest = hessian[:, 1:, 1:] - first * along.swapaxes(1, 2) * along
        index = np.arange(n - 1)
        rest[:, index, index] += acceleration
        values, vectors = np.linalg.eigh(rest)
        turn, gain = np.zeros((n_sets, n, n)), np.empty(self.std.shape)
        turn[:, 1:, :-1], turn[:, :1, :-1], turn[:, 0, -1] = vectors, -along @ vectors, 1
        gain[..., :-1], gain[..., -1:] = 1 / (np.maximum(values, 0)[:, None] + spatial[..., None]), 1 / first
        whitening = np.divide(1, self.std, out=np.zeros_like(self.std), where=self.std > 0)
        self.motions, taking_apart, variance = self.common.basis(self.n_particles * curvature)
        of_common = self.motions, taking_apart, variance, self.common.mean_A.T
        *curved, self._common, self._taking_apart, self._common_inverse, self._expected = all_beside(
            self._std, (turn, gain, whitening, *of_common)
        )
        self._curved = tuple(curved)

    def displacement_std(self, curvature: np.ndarray, row: int = 0) -> np.ndarray:
        """Return the posterior standard deviation (particle, frame), Å, of displacements along x, and along y, of one set.

        The data are taken to bind every particle of a frame by the same ``curvature`` (frame,) per Å², their mean: that of
        one window is mostly noise. The inverse Hessian is then exact: blocks of modes that the common motion couples.
        """
        spatial, std, temporal = self.modes[row].spatial, self.std[row], self.temporal[row]
        blocks = std[:, :, None] * ((temporal * curvature) @ temporal.T) * std[:, None]
        index = np.arange(blocks.shape[-1])
        blocks[:, index, index] += self.free
        # covariance of each mode over frames, were the common motion known: (mode, frame, frame)
        alone = temporal.T @ (std[:, :, None] * np.linalg.inv(blocks) * std[:, None]) @ temporal
        alike = spatial.sum(0)  # (mode,) how a shift of all particles looks in each mode
        variance = spatial**2 @ np.diagonal(alone, axis1=1, axis2=2)
        # what local motion explains of the common
        taken = curvature[:, None] * np.tensordot(alike**2, alone, 1) * curvature
        bound = self.motions.T @ (np.diag(self.n_particles * curvature) - taken) @ self.motions
        common = self.motions @ np.linalg.inv(np.eye(self.n_frames) + bound) @ self.motions.T  # (frame, frame)
        for i, one in enumerate(spatial * alike):
            # the common motion less what this particle's local motion gives way by
            rest = np.eye(self.n_frames) - np.tensordot(one, alone, 1) * curvature
            variance[i] += np.einsum("fg,gh,fh->f", rest, common, rest, optimize=True)
        return np.sqrt(variance)

    def solve(self, start: Any = None, tolerance: float = 1e-5, max_iterations: int = 200) -> Solution:
        """Return the trajectories of lowest energy on the host, see ``descend``."""
        found = self.descend(start, tolerance, max_iterations)
        local, common = to_host(found.local_A), to_host(found.common_A)
        return Solution(local + common[:, None] + self.rigid_A, common, local, found.iterations)

    def descend(self, start: Any = None, tolerance: float = 1e-5, max_iterations: int = 200) -> Motion:
        """Return the motion of lowest energy, from ``start`` (set, n_unknowns) or from rigid motion.

        ``tolerance`` is the energy still to be gained, per particle and frame.
        """
        tolerance *= self.n_particles * self.n_frames
        if start is None:
            start = np.zeros((self.n_sets, self.n_unknowns))
        start = beside(self.windows.values, start)

        def work(part: slice) -> tuple[Any, np.ndarray]:
            return self.some(part)._minimised(start[part], tolerance, max_iterations)

        set_bytes = set_work_bytes(self.n_particles, self.n_frames, self.n_unknowns, self._start.dtype.itemsize)
        together = min(-(-self.n_sets // self.threads), max(1, SETS_BYTES // set_bytes))
        with one_blas_thread():  # all sets at once, unless memory is short: a window is read once for all of them
            parts = over_chunks(self.n_sets, work, self.threads, together, like=start, item_bytes=set_bytes)
        xp = xp_of(start)
        unknowns = parts[0][0] if len(parts) == 1 else xp.concatenate([one for one, _ in parts])
        local, common = (xp.moveaxis(part, 1, -1) for part in self.parts(unknowns))
        return Motion(local, common, np.concatenate([one for _, one in parts]))

    def _minimised(self, start: Any, tolerance: float, max_iterations: int) -> tuple[Any, np.ndarray]:
        """Return unknowns of lowest energy (set, n_unknowns), where ``start`` is, and iterations (set,) of all sets."""
        assert self._curved is not None, "set_curvature comes first"
        windows = self.windows
        problem = (
            windows.values, *windows.taps, self._start, self._start.dtype.type(1 / windows.step_A), self._spatial,
            self._temporal, self._std, self._common,
        )  # fmt: skip
        start = xp_of(start).ascontiguousarray(start)
        inverse = *self._curved, self._common_inverse
        return kernels_of(start).solve(problem, inverse, start, float(tolerance), max_iterations)


def _after_ones(matrices: list[np.ndarray]) -> np.ndarray:
    """Return matrices (matrix, row, column) with a row of ones before the first one of each."""
    out = np.ones((len(matrices), matrices[0].shape[0] + 1, matrices[0].shape[1]))
    for i, one in enumerate(matrices):
        out[i, 1:] = one
    return out


def _forth(coefficients: Any, spatial: Any, temporal: Any) -> Any:
    """Return motion (..., particle, x and y · frame) of coefficients (..., x and y · mode, 1 + M)."""
    over_dose = coefficients @ temporal
    *some, rows, frames = over_dose.shape
    return spatial @ over_dose.reshape(*some, 2, rows // 2, frames).swapaxes(-3, -2).reshape(
        *some, rows // 2, 2 * frames
    )


def _taken_apart(local: Any, spatial: Any, inverse: Any) -> Any:
    """Return the coefficients of motion, see ``_forth``."""
    over_dose = spatial.swapaxes(-1, -2) @ local
    *some, modes, columns = over_dose.shape
    return (
        over_dose.reshape(*some, modes, 2, columns // 2).swapaxes(-3, -2).reshape(*some, 2 * modes, columns // 2)
        @ inverse
    )
