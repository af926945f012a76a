"""The motion prior: correlated over the micrograph, smooth over dose, diagonal in its own modes.

E_prior = ½ r [cos θ Σ_f Δd_f u_fᵀ K_z⁻¹ u_f + sin θ Σ_f |u_{f+1} - u_f|² / Δd_f], K_z(i, j) = exp(-|x_i - x_j| / z),
u = velocity in Å per e/Å² divided by the dose profile. Eigenvectors of K_z times modes over dose make it diagonal.

Whole-frame alignment saw the field at R_f, with errors of its own in every frame; the field itself moves smoothly. So the common
motion c, which the field is off by, stands under ½ [Σ_f |c_f|² / σ² + a Σ_f |w_{f+1} - w_f|² / Δd_f], w = velocity of R + c
divided by the dose profile: a normal distribution, whose mean is the smoothed R less R.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg

LEAST_PROFILE = 1e-3  # by which the whole field's velocity is divided: a profile may come to 0
EIGENVALUE_FLOOR = 1e-6  # of the largest; below it a mode of K_z only says that coincident particles move alike


@dataclass(frozen=True)
class Hyperparameters:
    """Total prior strength r, balance θ between acceleration and spatial prior (degrees), correlation distance z (Å)."""

    strength: float
    balance_deg: float
    distance_A: float

    @property
    def spatial_strength(self) -> float:
        """Return r cos θ, the weight of the spatial prior."""
        # the cosine of what stands for a right angle is not 0
        return self.strength * float(np.cos(np.deg2rad(self.balance_deg))) if self.balance_deg != 90 else 0.0

    @property
    def acceleration_strength(self) -> float:
        """Return r sin θ, the weight of the acceleration prior."""
        return self.strength * float(np.sin(np.deg2rad(self.balance_deg)))

    @classmethod
    def from_strengths(cls, spatial: float, distance_A: float, acceleration: float) -> Hyperparameters:
        """Return the hyperparameters with the given spatial and acceleration strengths."""
        return cls(
            float(np.hypot(spatial, acceleration)), float(np.rad2deg(np.arctan2(acceleration, spatial))), distance_A
        )

    @classmethod
    def from_relion(cls, s_vel: float, s_div: float, s_acc: float, dose_per_frame_e_A2: float) -> Hyperparameters:
        """Return RELION's prior (s_vel, s_acc in Å per e/Å², s_div in Å) on this scale.

        RELION writes Σ v²/σ_v² where a Gaussian prior has half of it, and its data term is 4/π times the
        log-likelihood: together π/2.

        Raises
        ------
        ValueError
            A strength would be beyond what numbers hold, or both be 0.
        """
        with np.errstate(all="ignore"):
            spatial = float(np.pi / (2 * np.float64(s_vel) ** 2 * dose_per_frame_e_A2))
            acceleration = float(np.pi * dose_per_frame_e_A2 / (2 * np.float64(s_acc) ** 2))
        for name, value, strength in (("s_vel", s_vel, spatial), ("s_acc", s_acc, acceleration)):
            if not strength < np.inf:
                raise ValueError(f"{name} {value:g} is a strength of {strength:g}; give a larger one")
        if not (spatial or acceleration):
            raise ValueError(f"s_vel {s_vel:g} and s_acc {s_acc:g} are strengths of 0; give smaller ones")
        return cls.from_strengths(spatial, s_div, acceleration)

    def to_relion(self, dose_per_frame_e_A2: float) -> tuple[float, float, float]:
        """Return (s_vel, s_div, s_acc) in RELION's units; infinite where a strength is 0."""
        with np.errstate(divide="ignore"):
            s_vel = np.sqrt(np.pi / (2 * np.float64(self.spatial_strength) * dose_per_frame_e_A2))
            s_acc = np.sqrt(np.pi * dose_per_frame_e_A2 / (2 * np.float64(self.acceleration_strength)))
        return float(s_vel), self.distance_A, float(s_acc)


@dataclass(frozen=True)
class PriorModes:
    """Modes in which the prior is diagonal; a local trajectory is spatial @ (coefficients · std) @ temporal."""

    spatial: np.ndarray  # (particle, mode) orthonormal
    temporal: np.ndarray  # (M, frame) Å of displacement per unit coefficient, 0 in the first frame
    # precisions of the coefficients under the prior, those of the spatial and of the acceleration prior added up
    spatial_precision: np.ndarray  # (mode,), infinite where nothing moves
    acceleration_precision: np.ndarray  # (M,)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation (mode, M) of each coefficient under the prior."""
        return 1 / np.sqrt(self.spatial_precision[:, None] + self.acceleration_precision)


@dataclass(frozen=True)
class CommonPrior:
    """The prior of the common motion of a micrograph's frames, relative to rigid motion: a normal distribution."""

    mean_A: np.ndarray  # (frame, 2)
    precision: np.ndarray  # (frame, frame) per Å², along either axis; empty: there is no common motion

    def basis(self, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return motions (frame, mode), Å, independent and of unit variance, which stay independent given data.

        The data bind frames with ``precision`` (frame,) per Å². With them the matrix (frame, mode) that takes a motion to its
        coefficients, and the variances (mode,) of these given the data.
        """
        if not self.precision.size:
            n = len(self.mean_A)
            return np.zeros((n, n)), np.zeros((n, n)), np.ones(n)
        values, motions = linalg.eigh(np.diag(precision), self.precision)
        return motions, self.precision @ motions, 1 / (1 + np.maximum(values, 0))


def common_prior(
    rigid_A: np.ndarray, frame_dose: np.ndarray, profile: np.ndarray, std_A: float, drift_strength: float
) -> CommonPrior:
    """Return the prior of the common motion relative to ``rigid_A`` (frame, 2), see the equations above.

    ``frame_dose`` (frame,) e/Å² of every frame, ``profile`` (frame - 1,) by which velocities are scaled, ``std_A`` σ of the
    errors of whole-frame alignment along either axis (0: it makes none), ``drift_strength`` a, (e/Å²)³/Å² (0: the field may
    jump).
    """
    if not std_A:
        return CommonPrior(np.zeros_like(rigid_A), np.empty((0, 0)))
    step = 0.5 * (frame_dose[1:] + frame_dose[:-1])
    velocity = np.diff(np.eye(len(rigid_A)), axis=0) / (step * np.maximum(profile, LEAST_PROFILE))[:, None]
    change = np.diff(velocity, axis=0)  # (frame - 2, frame)
    rough = drift_strength * (change.T @ (change / (0.5 * (step[1:] + step[:-1]))[:, None]))
    precision = np.eye(len(rigid_A)) / std_A**2 + rough
    return CommonPrior(-np.linalg.solve(precision, rough @ rigid_A), precision)


def exponential(ratio: np.ndarray) -> np.ndarray:
    """Return how alike particles move whose distance is ``ratio`` times the correlation distance: 1 for together, 0 far apart."""
    return np.exp(-ratio)


def spatial_modes(
    position_A: np.ndarray, distance_A: float, kernel: Callable[[np.ndarray], np.ndarray] = exponential
) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvectors (particle, mode) and eigenvalues (mode,) of K_z, largest first, for positions (particle, 2).

    Eigenvalues that only say that coincident particles move alike are 0.
    """
    d = np.zeros((len(position_A), len(position_A)), position_A.dtype)
    for coordinate in position_A.T:  # one at a time: matrices of thousands of particles take hundreds of megabytes
        apart = np.subtract.outer(coordinate, coordinate)
        apart *= apart
        d += apart
    np.sqrt(d, out=d)
    d /= distance_A
    alike = kernel(d)
    del d
    values, vectors = linalg.eigh(alike.T, overwrite_a=True)  # LAPACK's order, so that nothing is copied
    values = np.where(values > EIGENVALUE_FLOOR * values[-1], values, 0.0)
    return np.ascontiguousarray(vectors[:, ::-1]), values[::-1]


def dose_modes(frame_dose: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return displacement modes over dose (M, frame) and the weight β (M,) of each in the acceleration prior.

    ``frame_dose`` (frame,) e/Å² of every frame, ``profile`` (frame - 1,) by which velocities are scaled. The modes make
    Σ Δd u² the identity and Σ |u_{f+1} - u_f|²/Δd diagonal, whatever the frames' doses.
    """
    step = 0.5 * (frame_dose[1:] + frame_dose[:-1])  # from the middle of a frame to that of the next
    n = len(step)
    difference = np.diff(np.eye(n), axis=0)
    stiffness = difference.T @ (difference / (0.5 * (step[1:] + step[:-1]))[:, None])
    scaled = stiffness / np.sqrt(step[:, None] * step[None])
    beta, vectors = linalg.eigh(scaled)
    velocity = vectors / np.sqrt(step[:, None])  # (frame - 1, M)
    moves = velocity * (step * profile)[:, None]
    temporal = np.concatenate([np.zeros((1, n)), np.cumsum(moves, 0)]).T
    return np.ascontiguousarray(temporal), np.maximum(beta, 0)


def mode_precisions(
    eigenvalues: np.ndarray, beta: np.ndarray, hyperparameters: Hyperparameters
) -> tuple[np.ndarray, np.ndarray]:
    """Return the precisions (mode,) and (M,) of coefficients under the spatial and the acceleration prior, which add up."""
    inverse = np.divide(1.0, eigenvalues, out=np.full_like(eigenvalues, np.inf), where=eigenvalues > 0)
    # at θ = 90° a constant velocity costs nothing; a trace of the spatial prior keeps the problem proper
    spatial = max(hyperparameters.spatial_strength, 1e-6 * hyperparameters.strength)
    return spatial * inverse, hyperparameters.acceleration_strength * beta
