"""How the ice moves: smooth random fields, RELION's motion models of real movies, drift, and the rigid alignment of it.

Displacements are in Å, where the specimen has moved to relative to its place before the exposure; dose in e/Å².
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refmotion_nb.data.relion.motion import read_motion
from refmotion_nb.data.schema import InputError

EARLY_DOSE_E_A2 = 3.0  # over which the first burst of motion decays by e
LATE_SHARE = 0.12  # of the initial speed, that remains
MEMORY_DOSE_E_A2 = 15.0  # over which the direction of motion persists


def sample_doses(n_frames: int, dose_per_frame_e_A2: float, steps: int) -> np.ndarray:
    """Accumulated dose (frame, step) at the middles of ``steps`` equal parts of each frame."""
    parts = (np.arange(n_frames * steps) + 0.5) * (dose_per_frame_e_A2 / steps)
    return parts.reshape(n_frames, steps)


def speed_profile(dose: np.ndarray) -> np.ndarray:
    """Speed relative to that at the start of the exposure: a burst that decays, and a slow remainder."""
    return (1 - LATE_SHARE) * np.exp(-dose / EARLY_DOSE_E_A2) + LATE_SHARE


def random_field(
    positions_A: np.ndarray,  # (point, xy)
    dose: np.ndarray,  # (frame, step)
    speed: float,  # RMS per axis at the start, Å per e/Å²
    distance_A: float,
    kernel: str,  # "gaussian" or "exponential" in distance
    rng: np.random.Generator,
) -> np.ndarray:
    """Displacements (point, frame, step, xy) by a Gaussian process of velocities, correlated in space and in dose."""
    apart = np.linalg.norm(positions_A[:, None] - positions_A[None], axis=2) / distance_A
    covariance = np.exp(-apart) if kernel == "exponential" else np.exp(-0.5 * apart**2)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    flat = dose.ravel()
    white = rng.standard_normal((len(positions_A), len(flat), 2))
    velocity = np.einsum("pq,qtd->ptd", root, _persistent(white, flat)) * (speed * speed_profile(flat))[:, None]
    return _integrate(velocity, flat).reshape(len(positions_A), *dose.shape, 2)


def drift(dose: np.ndarray, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Displacement (frame, step, xy) common to the whole field; it decays more slowly than beam-induced motion."""
    flat = dose.ravel()
    velocity = _persistent(rng.standard_normal((1, len(flat), 2)), flat)
    velocity *= speed * (0.75 * np.exp(-flat / (4 * EARLY_DOSE_E_A2)) + 0.25)[:, None]
    return _integrate(velocity, flat)[0].reshape(*dose.shape, 2)


def _persistent(white: np.ndarray, dose: np.ndarray) -> np.ndarray:
    """Ornstein–Uhlenbeck process of unit variance along axis 1, from white noise."""
    process = white.copy()
    for t in range(1, len(dose)):
        keep = np.exp(-(dose[t] - dose[t - 1]) / MEMORY_DOSE_E_A2)
        process[:, t] = keep * process[:, t - 1] + np.sqrt(1 - keep**2) * white[:, t]
    return process


def _integrate(velocity: np.ndarray, dose: np.ndarray) -> np.ndarray:
    """Path from the start of the exposure, trapezoidal, along axis 1."""
    steps = np.diff(dose)[None, :, None]
    moved = np.cumsum(0.5 * (velocity[:, 1:] + velocity[:, :-1]) * steps, axis=1)
    return velocity[:, :1] * dose[0] + np.concatenate([np.zeros_like(velocity[:, :1]), moved], axis=1)


@dataclass(frozen=True)
class RecordedMotion:
    """Motion of a real micrograph, from RELION's motion STAR with its third-order local model."""

    name: str
    global_shift_A: np.ndarray  # (frame, xy), RELION's sign: the correction
    coefficients_A: np.ndarray  # (xy, term = 1 x x² y y² xy, power of z 1..3)
    extent_A: np.ndarray  # (xy) of the micrograph
    dose_per_frame_e_A2: float


def read_recorded_motion(path: Path) -> RecordedMotion:
    """Read a motion STAR with a local motion model (rlnMotionModelVersion 1).

    Raises
    ------
    InputError
        It is not whole, or holds no third-order local motion model.
    """
    movie = read_motion(path, path.stem)
    if movie.local_motion is None or movie.global_shift is None:
        raise InputError(f"{path}: no third-order local motion model; give motion STARs of patch-based alignment")
    pixel_A = movie.pixel_size_A
    return RecordedMotion(
        movie.micrograph, movie.global_shift * pixel_A, movie.local_motion.reshape(2, 6, 3) * pixel_A,
        np.array([movie.width, movie.height]) * pixel_A, movie.dose_per_frame_e_A2,
    )  # fmt: skip


def recorded_field(
    motion: RecordedMotion,
    positions_A: np.ndarray,  # (point, xy) from the corner of the field
    field_A: np.ndarray,  # (xy) extent of the field
    dose: np.ndarray,  # (frame, step)
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Displacement of points (point, frame, step, xy) and of the whole (frame, step, xy) as in a real movie.

    The field lies at a random place of the real micrograph (all of it where it is larger), at true scale: gradients of
    motion are the real ones. Beyond the recorded dose nothing moves.
    """
    n = len(motion.global_shift_A)
    frame = np.clip(dose.ravel() / motion.dose_per_frame_e_A2 - 0.5, -0.5, n - 0.5)
    corner = rng.random(2) * np.clip(motion.extent_A - field_A, 0, None)
    x, y = (np.clip((positions_A + corner) / motion.extent_A, 0, 1) - 0.5).T
    local = -_polynomial(motion.coefficients_A, x, y, frame)
    # RELION's estimate per frame carries its own error: a light [1 2 1] smoothing keeps the motion, not the jitter
    shift = motion.global_shift_A
    padded = np.concatenate([2 * shift[:1] - shift[1:2], shift, 2 * shift[-1:] - shift[-2:-1]])
    smooth = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    whole = -np.stack([_interpolate(frame, smooth[:, axis]) for axis in (0, 1)], axis=-1)
    # both start from zero before the exposure
    local += _polynomial(motion.coefficients_A, x, y, np.array([-0.5]))
    whole += np.array([_interpolate(np.array([-0.5]), smooth[:, axis])[0] for axis in (0, 1)])
    return local.reshape(len(x), *dose.shape, 2), whole.reshape(*dose.shape, 2)


def _terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RELION's spatial terms of the local motion model (term, point); x and y run from -1/2 to 1/2 over the field."""
    return np.stack([np.ones_like(x), x, x**2, y, y**2, x * y])


def _polynomial(coefficients: np.ndarray, x: np.ndarray, y: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """RELION's local motion model (xy, term, power) at points and frames counted from 0: (point, frame, xy)."""
    powers = np.stack([frame, frame**2, frame**3])
    return np.einsum("dkz,kp,zt->ptd", coefficients, _terms(x, y), powers)


def fit_local_model(
    local_A: np.ndarray,  # (point, frame, xy) displacement
    places: np.ndarray,  # (point, xy) from -1/2 to 1/2 over the field
) -> np.ndarray:
    """Coefficients (xy, term, power) Å of RELION's local motion model: the correction, zero in the first frame."""
    z = np.arange(local_A.shape[1], dtype=float)
    design = np.einsum("kp,zt->ptkz", _terms(*places.T), np.stack([z, z**2, z**3])).reshape(-1, 18)
    target = -(local_A - local_A[:, :1]).reshape(-1, 2)
    return np.linalg.lstsq(design, target, rcond=None)[0].T.reshape(2, 6, 3)


def local_shift(coefficients: np.ndarray, places: np.ndarray, n_frames: int) -> np.ndarray:
    """Correction (point, frame, xy) of a local motion model, in its unit."""
    return _polynomial(coefficients, places[:, 0], places[:, 1], np.arange(n_frames, dtype=float))


def _interpolate(frame: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear in the frame number, continued half a frame beyond either end."""
    at = np.arange(-1, len(values) + 1)
    ends = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    return np.interp(frame, at, ends)


def rigid_alignment(
    mean_displacement_A: np.ndarray,  # (frame, xy) of the whole field
    dose_mid: np.ndarray,  # (frame,)
    error_A: float,  # RMS over frames, both axes together
    rng: np.random.Generator,
) -> np.ndarray:
    """Shift (frame, xy) Å that whole-frame alignment would report: RELION's sign, zero in the first frame.

    Its error is what RELION 3.1's own whole-frame alignment showed on simulated movies (1024², 2 e/Å² per frame: RMS
    0.5 to 1.2 Å): jitter from frame to frame with about three fifths of the power, and a lag behind the early burst.
    """
    frames = len(mean_displacement_A)
    jitter = rng.standard_normal((frames, 2))
    lag = rng.standard_normal(2) * np.exp(-dose_mid / 8)[:, None]
    error = np.zeros((frames, 2))
    for part, share in ((jitter, 0.6), (lag, 0.4)):
        part = part - part.mean(axis=0)
        power = (part**2).sum(axis=1).mean()
        if power > 0:
            error += error_A * np.sqrt(share / power) * part
    shift = -(mean_displacement_A + error)
    return shift - shift[0]
