"""The plan of a simulation: where particles are, how they lie and move, and what the user is told of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.synthetic import motion as motions
from refmotion_nb.data.synthetic.settings import SimulationSettings

GAIN, PLACES, MOTION, RIGID, POSES, OPTICS, ICE, COUNTS, EVENTS, LIGHT, SPECIES = range(11)  # what a random draw is for
STEPS_PER_FRAME = 12
GRID_POINTS = 5  # per axis, at which the motion of the whole field is taken


@dataclass(frozen=True)
class MicrographPlan:
    """One micrograph: where everything truly is, and what the user is told."""

    name: str
    index: int
    positions_px: np.ndarray  # (particle, xy)
    species: np.ndarray  # (particle,) 0, or 1 for the second
    total_A: np.ndarray  # (particle, frame, step, xy)
    local_A: np.ndarray  # (particle, frame, xy)
    drift_A: np.ndarray  # (frame, xy)
    field_A: np.ndarray  # (frame, step, xy), mean over the field
    shift_px: np.ndarray  # (frame, xy) whole-frame alignment, RELION's sign
    local_model_px: np.ndarray | None  # (xy, term, power) RELION's local motion model, with patch_alignment
    particle_shift_px: np.ndarray  # (particle, frame, xy) whole-frame alignment and local model together
    rotations: np.ndarray  # (particle, 3, 3) true
    rotations_given: np.ndarray
    coordinates_px: np.ndarray  # (particle, xy) whole pixels
    origins_A: np.ndarray  # (particle, xy)
    defocus_A: np.ndarray  # (particle, u v)
    astigmatism_deg: float
    scale: np.ndarray  # (particle,)
    hot: np.ndarray  # (pixel, xy)

    @property
    def count(self) -> int:
        """Number of particles."""
        return len(self.positions_px)

    @property
    def half(self) -> np.ndarray:
        """Half set, 1 or 2, of each particle (particle,): they take turns."""
        return 1 + np.arange(self.count) % 2


def rng_for(settings: SimulationSettings, *what: int) -> np.random.Generator:
    """Return a generator of its own for each purpose, so that no draw depends on the order of work."""
    return np.random.default_rng(seed_for(settings, *what))


def seed_for(settings: SimulationSettings, *what: int) -> np.random.SeedSequence:
    """Seed of its own for a purpose and what it is drawn for (micrograph, frame)."""
    return np.random.SeedSequence(settings.seed, spawn_key=what)


def draw_sensitivity(settings: SimulationSettings) -> np.ndarray:
    """Draw the counts per electron (y, x): mean gain 1, a few per cent from pixel to pixel."""
    spread = rng_for(settings, GAIN).standard_normal(settings.shape, np.float32) * settings.gain_spread
    gain = np.clip(1 + spread, 0.5, 1.5)
    return (gain.mean() / gain).astype(np.float32)


def plan_micrograph(settings: SimulationSettings, particle_radius_A: float, index: int) -> MicrographPlan:
    """Draw everything that is true of one micrograph, and what the user is told of it.

    Raises
    ------
    InputError
        The field leaves no room for particles, or a motion STAR cannot be used.
    """
    positions = _place(settings, particle_radius_A, rng_for(settings, PLACES, index))
    local, drift = _move(settings, index, positions)
    count = len(positions)
    total = local[:count] + drift
    common = local[count:].mean(axis=0)
    whole = common + drift
    rng = rng_for(settings, RIGID, index)
    rigid_A = motions.rigid_alignment(whole.mean(axis=1), settings.dose_mid, settings.rigid_error_A, rng)
    shift_A, model_A = np.broadcast_to(rigid_A, (count, *rigid_A.shape)), None
    if settings.patch_alignment:
        model_A = motions.fit_local_model((local[count:] - common).mean(axis=2), _grid() - 0.5)
        places = positions / settings.shape[::-1] - 0.5
        shift_A = shift_A + motions.local_shift(model_A, places, settings.n_frames)
    rng = rng_for(settings, POSES, index)
    rotations = _random_rotations(count, rng)
    turn = rng.standard_normal((count, 3)) * np.deg2rad(settings.pose_error_deg) / np.sqrt(3)
    # in the aligned average a particle appears where its residual motion leaves it on average
    seen = positions + (total.mean(axis=2) + shift_A).mean(axis=1) / settings.pixel_size_A
    coordinates = np.rint(seen + rng.standard_normal((count, 2)) * settings.pick_error_A / settings.pixel_size_A)
    origins = (coordinates - seen) * settings.pixel_size_A + rng.standard_normal((count, 2)) * settings.origin_error_A
    rng = rng_for(settings, OPTICS, index)
    mean_defocus = rng.uniform(settings.defocus_min_A, settings.defocus_max_A)
    defocus = mean_defocus + rng.standard_normal(count) * settings.defocus_spread_A
    height, width = settings.shape
    return MicrographPlan(
        name=f"mic{index:04d}",
        index=index,
        positions_px=positions,
        species=_species(settings, index, count),
        total_A=total,
        local_A=local[:count].mean(axis=2),
        drift_A=drift.mean(axis=1),
        field_A=whole,
        shift_px=rigid_A / settings.pixel_size_A,
        local_model_px=None if model_A is None else model_A / settings.pixel_size_A,
        particle_shift_px=shift_A / settings.pixel_size_A,
        rotations=rotations,
        rotations_given=_rotation_from_vector(turn) @ rotations,
        coordinates_px=coordinates.astype(int),
        origins_A=origins,
        defocus_A=np.stack([defocus + settings.astigmatism_A / 2, defocus - settings.astigmatism_A / 2], axis=1),
        astigmatism_deg=float(rng.uniform(0, 180)),
        scale=np.clip(1 + settings.scale_spread * rng.standard_normal(count), 0.3, 2),
        hot=np.stack([rng.integers(0, n, settings.hot_pixels) for n in (width, height)], axis=1),
    )


def _place(settings: SimulationSettings, radius_A: float, rng: np.random.Generator) -> np.ndarray:
    """Positions (particle, xy) px no closer than the particle's diameter allows; as many as find room."""
    apart = (settings.min_distance_A or 1.8 * radius_A) / settings.pixel_size_A
    edge = max(settings.boxes_px) / 2 + 12 if settings.edge_px is None else settings.edge_px
    extent = np.array(settings.shape[::-1], float)
    if (extent <= 2 * edge).any():
        raise InputError(
            f"a field of {settings.shape[1]}×{settings.shape[0]} px leaves no room {edge:.0f} px from its edges; "
            "enlarge size_px or reduce box_px or edge_px"
        )
    found = np.empty((0, 2))
    for candidate in edge + rng.random((4000 + 200 * settings.particles_per_micrograph, 2)) * (extent - 2 * edge):
        if len(found) == settings.particles_per_micrograph:
            break
        if not len(found) or np.hypot(*(found - candidate).T).min() >= apart:
            found = np.vstack([found, candidate])
    return found


def _species(settings: SimulationSettings, index: int, count: int) -> np.ndarray:
    """Species (particle,) 0 or 1: some at random are of the second."""
    species = np.zeros(count, int)
    some = rng_for(settings, SPECIES, index).permutation(count)[: round(settings.second_share * count)]
    species[some] = 1
    return species


def _grid() -> np.ndarray:
    """Places (point, xy) at which the motion of the whole field is taken, as shares of it."""
    ticks = (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS
    return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)


def _move(settings: SimulationSettings, index: int, positions_px: np.ndarray) -> tuple[np.ndarray, ...]:
    """Local motion (particles then field points, frame, step, xy) and common motion (frame, step, xy), in Å."""
    rng = rng_for(settings, MOTION, index)
    dose = motions.sample_doses(settings.n_frames, settings.dose_per_frame_e_A2, STEPS_PER_FRAME)
    extent_A = np.array(settings.shape[::-1]) * settings.pixel_size_A
    points = np.concatenate([positions_px * settings.pixel_size_A, _grid() * extent_A])
    if settings.motion == "recorded":
        stars = settings.motion_star_files()
        recorded = motions.read_recorded_motion(stars[index % len(stars)])
        local, common = motions.recorded_field(recorded, points, extent_A, dose, rng)
        return local * settings.motion_scale, common * settings.motion_scale
    kernel = "exponential" if settings.motion == "rough" else "gaussian"
    scale = 0.0 if settings.motion == "none" else settings.motion_scale
    speed = settings.speed_A_per_dose * scale
    local = motions.random_field(points, dose, speed, settings.correlation_distance_A, kernel, rng)
    return local, motions.drift(dose, settings.drift_A_per_dose * scale, rng)


def _random_rotations(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rotation matrices uniform over all rotations, from unit quaternions."""
    q = rng.standard_normal((count, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """Rotation matrices (n, 3, 3) about the vectors (n, 3) by their lengths in radians (Rodrigues)."""
    angle = np.linalg.norm(vector, axis=1)[:, None, None]
    x, y, z = (vector / np.maximum(angle[:, 0], 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.moveaxis(np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), 2, 0)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def euler_angles_deg(rotation: np.ndarray) -> np.ndarray:
    """RELION's rot, tilt, psi (particle, angle) of Euler matrices (particle, 3, 3)."""
    tilt = np.arccos(np.clip(rotation[:, 2, 2], -1, 1))
    rot = np.arctan2(rotation[:, 2, 1], rotation[:, 2, 0])
    psi = np.arctan2(rotation[:, 1, 2], -rotation[:, 0, 2])
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))
