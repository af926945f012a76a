"""Simulated data with known motion: movies of a real structure and all that RELION would have made of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from refmotion_nb.data import synthetic_files as files
from refmotion_nb.data import synthetic_images as images
from refmotion_nb.data import synthetic_model as models
from refmotion_nb.data import synthetic_motion as motions
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.synthetic_settings import SimulationSettings
from refmotion_nb.numerics.reconstruct import backproject, fsc_masked_corrected, reconstruct

__all__ = ["Simulation", "SimulationSettings", "simulate"]

SPREAD_RESOLUTION_A = 3.0  # defocus spreads signal up to this resolution over the rendered box
STEPS_PER_FRAME = 12
GRID_POINTS = 5  # per axis, at which the motion of the whole field is taken


class Reporter(Protocol):
    """What is told about progress."""

    def start(self, total: int, what: str) -> None:
        """Begin ``total`` units of work."""

    def advance(self, n: int, **facts: Any) -> None:
        """Report ``n`` units done."""

    def done(self) -> None:
        """End."""


@dataclass(frozen=True)
class Simulation:
    """Where a simulation was written, and what is true of it."""

    folder: Path
    settings: SimulationSettings
    n_particles: int
    rigid_error_A: float  # trajectory error of whole-frame alignment, early frames weighted
    fsc_resolution_A: float  # corrected half-map FSC 0.143 of the rigid reference

    @property
    def particles(self) -> Path:
        """Particle STAR file."""
        return self.folder / "Extract" / "particles.star"

    @property
    def micrographs(self) -> Path:
        """STAR file of the motion-corrected micrographs."""
        return self.folder / "MotionCorr" / "corrected_micrographs.star"

    @property
    def half_maps(self) -> tuple[Path, Path]:
        """The two half maps."""
        return self.folder / "Ref" / "half1.mrc", self.folder / "Ref" / "half2.mrc"

    @property
    def mask(self) -> Path:
        """Soft mask of the particle."""
        return self.folder / "Ref" / "mask.mrc"

    @property
    def postprocess(self) -> Path:
        """STAR file with the FSC, naming half maps and mask."""
        return self.folder / "Ref" / "postprocess.star"

    def truth(self) -> dict[str, np.ndarray]:
        """Arrays of truth.npz: true displacements in Å per micrograph."""
        with np.load(self.folder / "truth.npz") as archive:
            return dict(archive)


@dataclass(frozen=True)
class _Micrograph:
    """The plan of one micrograph: where everything truly is, and what the user is told."""

    name: str
    index: int
    positions_px: np.ndarray  # (particle, xy)
    total_A: np.ndarray  # (particle, frame, step, xy)
    local_A: np.ndarray  # (particle, frame, xy)
    drift_A: np.ndarray  # (frame, xy)
    field_A: np.ndarray  # (frame, step, xy), mean over the field
    shift_px: np.ndarray  # (frame, xy) whole-frame alignment, RELION's sign
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


def simulate(settings: SimulationSettings, out: Path | str, reporter: Reporter | None = None) -> Simulation:
    """Write a RELION-layout folder of simulated movies, particles, references and the truth about them.

    The same settings give the same bytes, whatever the number of workers.

    Raises
    ------
    InputError
        The model or a motion STAR cannot be read, or the field is too small for a particle.
    """
    out = Path(out)
    for folder in ("Movies", "MotionCorr/Movies", "Extract", "Ref"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    model = models.read_model(settings.model)
    sensitivity = _sensitivity(settings)
    gain_name = files.write_gain(out, 1 / sensitivity, settings.movie_format, settings.pixel_size_A)
    plans = [_plan(settings, model, index) for index in range(settings.n_micrographs)]
    if reporter:
        reporter.start(settings.n_micrographs + 1, "simulating")
    averages = []
    with _mapping(settings.workers) as run:
        for plan in plans:
            averages.append(_expose_and_average(settings, model, plan, sensitivity, out, run))
            _write_motion(settings, plan, gain_name, out)
            if reporter:
                reporter.advance(1, micrograph=plan.name, particles=plan.count)
        resolution_A = _write_reference(settings, model, plans, averages, out, run)
    _write_tables(settings, plans, out)
    _write_truth(settings, plans, out)
    if reporter:
        reporter.advance(1, resolution_A=resolution_A)
        reporter.done()
    error_A = _rigid_error_A(settings, plans)
    return Simulation(out, settings, sum(p.count for p in plans), error_A, resolution_A)


@contextmanager
def _mapping(workers: int | None) -> Iterator[Callable]:
    """Give a map that keeps order and runs in threads: everything costly releases the interpreter lock."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        yield pool.map


def _rng(settings: SimulationSettings, *what: int) -> np.random.Generator:
    """Return a generator of its own for each purpose, so that no draw depends on the order of work."""
    return np.random.default_rng(_seed(settings, *what))


def _seed(settings: SimulationSettings, *what: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(settings.seed, spawn_key=what)


GAIN, PLACES, MOTION, RIGID, POSES, OPTICS, ICE, COUNTS, EVENTS = range(9)  # purposes


def _sensitivity(settings: SimulationSettings) -> np.ndarray:
    """Draw the counts per electron (y, x): mean gain 1, a few per cent from pixel to pixel."""
    spread = _rng(settings, GAIN).standard_normal(settings.shape, np.float32) * settings.gain_spread
    gain = np.clip(1 + spread, 0.5, 1.5)
    return (gain.mean() / gain).astype(np.float32)


# --- plan: what is where ---------------------------------------------------------------------------------------------


def _plan(settings: SimulationSettings, model: models.AtomicModel, index: int) -> _Micrograph:
    positions = _place(settings, model, _rng(settings, PLACES, index))
    local, drift = _move(settings, index, positions)
    count = len(positions)
    total = local[:count] + drift
    whole = local[count:].mean(axis=0) + drift
    dose_mid = settings.dose_edges[:-1] + settings.dose_per_frame_e_A2 / 2
    rng = _rng(settings, RIGID, index)
    rigid_A = motions.rigid_alignment(whole.mean(axis=1), dose_mid, settings.rigid_error_A, rng)
    rng = _rng(settings, POSES, index)
    rotations = _random_rotations(count, rng)
    turn = rng.standard_normal((count, 3)) * np.deg2rad(settings.pose_error_deg) / np.sqrt(3)
    # in the rigidly aligned average a particle appears where its residual motion leaves it on average
    seen = positions + (total.mean(axis=2) + rigid_A).mean(axis=1) / settings.pixel_size_A
    coordinates = np.rint(seen + rng.standard_normal((count, 2)) * settings.pick_error_A / settings.pixel_size_A)
    origins = (coordinates - seen) * settings.pixel_size_A + rng.standard_normal((count, 2)) * settings.origin_error_A
    rng = _rng(settings, OPTICS, index)
    mean_defocus = rng.uniform(settings.defocus_min_A, settings.defocus_max_A)
    defocus = mean_defocus + rng.standard_normal(count) * settings.defocus_spread_A
    height, width = settings.shape
    return _Micrograph(
        name=f"mic{index:04d}",
        index=index,
        positions_px=positions,
        total_A=total,
        local_A=local[:count].mean(axis=2),
        drift_A=drift.mean(axis=1),
        field_A=whole,
        shift_px=rigid_A / settings.pixel_size_A,
        rotations=rotations,
        rotations_given=_rotation_from_vector(turn) @ rotations,
        coordinates_px=coordinates.astype(int),
        origins_A=origins,
        defocus_A=np.stack([defocus + settings.astigmatism_A / 2, defocus - settings.astigmatism_A / 2], axis=1),
        astigmatism_deg=float(rng.uniform(0, 180)),
        scale=np.clip(1 + settings.scale_spread * rng.standard_normal(count), 0.3, 2),
        hot=np.stack([rng.integers(0, n, settings.hot_pixels) for n in (width, height)], axis=1),
    )


def _place(settings: SimulationSettings, model: models.AtomicModel, rng: np.random.Generator) -> np.ndarray:
    """Positions (particle, xy) px no closer than the particle's diameter allows; as many as find room."""
    apart = (settings.min_distance_A or 1.8 * model.radius_A) / settings.pixel_size_A
    edge = settings.box_px / 2 + 12 if settings.edge_px is None else settings.edge_px
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


def _move(settings: SimulationSettings, index: int, positions_px: np.ndarray) -> tuple[np.ndarray, ...]:
    """Local motion (particles then field points, frame, step, xy) and common motion (frame, step, xy), in Å."""
    rng = _rng(settings, MOTION, index)
    dose = motions.sample_doses(settings.n_frames, settings.dose_per_frame_e_A2, STEPS_PER_FRAME)
    extent_A = np.array(settings.shape[::-1]) * settings.pixel_size_A
    ticks = (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2) * extent_A
    points = np.concatenate([positions_px * settings.pixel_size_A, grid])
    if settings.motion == "recorded":
        stars = settings.motion_star_files()
        recorded = motions.read_recorded_motion(stars[index % len(stars)])
        local, common = motions.recorded_field(recorded, points, extent_A, dose, rng)
        return local * settings.motion_scale, common * settings.motion_scale
    kernel = "exponential" if settings.motion == "rough" else "gaussian"
    speed = settings.speed_A_per_dose * settings.motion_scale
    local = motions.random_field(points, dose, speed, settings.correlation_distance_A, kernel, rng)
    return local, motions.drift(dose, settings.drift_A_per_dose * settings.motion_scale, rng)


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


# --- movies and averages ---------------------------------------------------------------------------------------------


def _expose_and_average(settings, model, plan, sensitivity, out, run) -> np.ndarray:
    """Write one movie and return its particles' rigid averages, normalised and centred: (particle, box, box//2+1)."""
    exposure = _exposure(settings, model, plan, sensitivity, run)
    seeds = [_seed(settings, COUNTS, plan.index, f) for f in range(settings.n_frames)]
    stack = files.write_movie(
        out / "Movies" / f"{plan.name}.{settings.movie_format}",
        images.movie(exposure, seeds, run),
        (settings.n_frames, *settings.shape),
        settings.pixel_size_A,
        exposure.dose_per_pixel,
        settings.eer_grouping,
        [_seed(settings, EVENTS, plan.index, f) for f in range(settings.n_frames)],
    )
    frequency = models.half_plane_frequency(settings.box_px, settings.pixel_size_A)
    after = settings.dose_edges[1:, None, None]
    weights = np.exp(-after / (2 * images.critical_dose(frequency, settings.voltage_kV))).astype(np.float32)
    weights /= np.sqrt((weights**2).sum(axis=0))  # noise stays white
    gain = 1 / sensitivity

    def average(p: int) -> np.ndarray:
        image = images.dose_weighted_average(stack, gain, plan.hot, plan.coordinates_px[p], -plan.shift_px, weights)
        image = images.normalised(image, 1.05 * model.radius_A / settings.pixel_size_A)
        return images.centred(image, plan.origins_A[p] / settings.pixel_size_A)

    return np.stack(list(run(average, range(plan.count))))


def _exposure(settings, model, plan, sensitivity, run) -> images.Exposure:
    scope = settings.microscope
    spread = scope.wavelength_A * (settings.defocus_max_A + 3 * settings.defocus_spread_A) / SPREAD_RESOLUTION_A
    box = models.render_size(model, settings.pixel_size_A, min(spread, 2 * model.radius_A))
    frequency = models.half_plane_frequency(box, settings.pixel_size_A)
    factors = models.scattering_factors(model, frequency, settings.b_factor_A2)

    def spectrum(p: int) -> np.ndarray:
        potential = models.project(model, plan.rotations[p], factors, settings.pixel_size_A)
        ctf = scope.ctf(box, *plan.defocus_A[p], plan.astigmatism_deg)
        # weak phase object: relative intensity 1 - 2 φ·CTF in RELION's sign, so that protein is dark at low resolution
        strength = -2 * scope.interaction_rad_per_VA / settings.pixel_size_A**2 * plan.scale[p]
        return potential * ctf * np.float32(strength)

    edges = settings.dose_edges
    decay = [images.mean_decay(frequency, a, b, settings.voltage_kV) for a, b in zip(edges[:-1], edges[1:])]
    ice = None
    if settings.ice_noise > 0:
        rng = _rng(settings, ICE, plan.index)
        ice = images.structural_noise(scope, settings.shape, settings.ice_noise, float(plan.defocus_A.mean()), rng)
    return images.Exposure(
        spectra=np.stack(list(run(spectrum, range(plan.count)))),
        positions_px=plan.positions_px,
        paths_px=plan.total_A / settings.pixel_size_A,
        decay=np.stack(decay),
        ice_ft=ice,
        ice_paths_px=plan.field_A / settings.pixel_size_A,
        dose_per_pixel=settings.dose_per_frame_e_A2 * settings.pixel_size_A**2,
        sensitivity=sensitivity,
        hot=plan.hot,
    )


# --- what is written besides -----------------------------------------------------------------------------------------


def _write_reference(settings, model, plans, averages, out, run) -> float:
    """Half maps from the particles' own rigid averages, mask and FSC; return the resolution at 0.143 in Å."""
    box = settings.box_px
    symmetry = model.symmetry if settings.symmetry == "assembly" else None
    stack = np.concatenate(averages)
    half = np.concatenate([_half(plan) for plan in plans])
    rotations = np.concatenate([plan.rotations_given for plan in plans])
    ctf = np.stack([settings.microscope.ctf(box, *df, plan.astigmatism_deg) for plan in plans for df in plan.defocus_A])

    def half_map(which: int) -> np.ndarray:
        mine = half == which
        return reconstruct(backproject(stack[mine] * ctf[mine], ctf[mine] ** 2, rotations[mine], symmetry=symmetry))

    maps = list(run(half_map, (1, 2)))
    mask = models.soft_mask(model, box, settings.pixel_size_A, 3.0, 5.0)
    for name, volume in (("half1", maps[0]), ("half2", maps[1]), ("mask", mask)):
        files.write_mrc(out / "Ref" / f"{name}.mrc", volume, settings.pixel_size_A, volume=True)
    curves = fsc_masked_corrected(maps[0], maps[1], mask, seed=settings.seed)
    files.write_postprocess(out / "Ref" / "postprocess.star", curves, settings.pixel_size_A, box, mask)
    below = np.flatnonzero(curves.corrected < 0.143)
    return box * settings.pixel_size_A / float(below[0] if below.size else box // 2)


def _half(plan: _Micrograph) -> np.ndarray:
    """Half set of each particle: they take turns."""
    return 1 + np.arange(plan.count) % 2


def _write_motion(settings: SimulationSettings, plan: _Micrograph, gain_name: str, out: Path) -> None:
    general = {
        "rlnImageSizeX": settings.shape[1],
        "rlnImageSizeY": settings.shape[0],
        "rlnImageSizeZ": settings.n_frames,
        "rlnMicrographMovieName": f"Movies/{plan.name}.{settings.movie_format}",
        "rlnMicrographGainName": gain_name,
        "rlnMicrographBinning": 1.0,
        "rlnMicrographOriginalPixelSize": settings.pixel_size_A,
        "rlnMicrographDoseRate": settings.dose_per_frame_e_A2,
        "rlnMicrographPreExposure": settings.pre_exposure_e_A2,
        "rlnVoltage": settings.voltage_kV,
        "rlnMicrographStartFrame": 1,
    }
    if settings.movie_format == "eer":
        general |= {"rlnEERUpsampling": 1, "rlnEERGrouping": settings.eer_grouping}
    general["rlnMotionModelVersion"] = 0
    path = out / "MotionCorr" / "Movies" / f"{plan.name}.star"
    files.write_motion_star(path, general, np.round(plan.shift_px, 6), plan.hot)


def _write_tables(settings: SimulationSettings, plans: list[_Micrograph], out: Path) -> None:
    scope, pixel_A = settings.microscope, settings.pixel_size_A
    movies = pd.DataFrame({"rlnMicrographMovieName": [f"Movies/{p.name}.{settings.movie_format}" for p in plans]})
    movies["rlnOpticsGroup"] = 1
    files.write_star(out / "movies.star", {"optics": files.optics_block(scope), "movies": movies})
    dose_mid = settings.dose_edges[:-1] + settings.dose_per_frame_e_A2 / 2
    rows = []
    for plan in plans:
        steps = np.linalg.norm(np.diff(plan.shift_px * pixel_A, axis=0), axis=1)
        early = float(steps[dose_mid[1:] <= 4].sum())
        rows.append([f"MotionCorr/Movies/{plan.name}.mrc", f"MotionCorr/Movies/{plan.name}.star", 1,
                     *np.round([steps.sum(), early, steps.sum() - early], 6)])  # fmt: skip
    labels = ["Name", "Metadata", "OpticsGroup", "AccumMotionTotal", "AccumMotionEarly", "AccumMotionLate"]
    columns = ["rlnOpticsGroup" if x == "OpticsGroup" else x for x in labels]
    columns = [f"rlnMicrograph{x}" if x in ("Name", "Metadata") else x for x in columns]
    columns = [x if x.startswith("rln") else f"rln{x}" for x in columns]
    blocks = {
        "optics": files.optics_block(scope, rlnMicrographPixelSize=pixel_A),
        "micrographs": pd.DataFrame(rows, columns=columns),
    }
    files.write_star(out / "MotionCorr" / "corrected_micrographs.star", blocks)
    image = {"rlnImagePixelSize": pixel_A, "rlnImageSize": settings.box_px, "rlnImageDimensionality": 2}
    particles = pd.concat([_particle_rows(settings, plan) for plan in plans], ignore_index=True)
    files.write_star(
        out / "Extract" / "particles.star", {"optics": files.optics_block(scope, **image), "particles": particles}
    )


def _particle_rows(settings: SimulationSettings, plan: _Micrograph) -> pd.DataFrame:
    angles = np.round(euler_angles_deg(plan.rotations_given), 5)
    number = np.arange(1, plan.count + 1)
    return pd.DataFrame(
        {
            "rlnCoordinateX": plan.coordinates_px[:, 0].astype(float),
            "rlnCoordinateY": plan.coordinates_px[:, 1].astype(float),
            "rlnMicrographName": f"MotionCorr/Movies/{plan.name}.mrc",
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": np.round(plan.origins_A[:, 0], 5),
            "rlnOriginYAngst": np.round(plan.origins_A[:, 1], 5),
            "rlnDefocusU": np.round(plan.defocus_A[:, 0], 2),
            "rlnDefocusV": np.round(plan.defocus_A[:, 1], 2),
            "rlnDefocusAngle": round(plan.astigmatism_deg, 4),
            "rlnCtfBfactor": 0.0,
            "rlnCtfScalefactor": 1.0,
            "rlnPhaseShift": settings.phase_shift_deg,
            "rlnRandomSubset": _half(plan),
            "rlnOpticsGroup": 1,
            "rlnImageName": [f"{n:06d}@Extract/MotionCorr/Movies/{plan.name}.mrcs" for n in number],
        }
    )


def _write_truth(settings: SimulationSettings, plans: list[_Micrograph], out: Path) -> None:
    truth: dict[str, Any] = {"dose_mid": settings.dose_edges[:-1] + settings.dose_per_frame_e_A2 / 2}
    for plan in plans:
        truth[f"{plan.name}_total"] = plan.total_A.mean(axis=2)
        truth[f"{plan.name}_local"] = plan.local_A
        truth[f"{plan.name}_drift"] = plan.drift_A
        truth[f"{plan.name}_pos"] = plan.positions_px
        truth[f"{plan.name}_hot"] = plan.hot
    np.savez(out / "truth.npz", **truth)
    columns: dict[str, list] = {
        "mic": [np.full(p.count, p.index) for p in plans],
        "x": [p.positions_px[:, 0] for p in plans],
        "y": [p.positions_px[:, 1] for p in plans],
        "R": [p.rotations_given for p in plans],
        "Rtrue": [p.rotations for p in plans],
        "du": [p.defocus_A[:, 0] for p in plans],
        "dv": [p.defocus_A[:, 1] for p in plans],
        "ang": [np.full(p.count, p.astigmatism_deg) for p in plans],
        "ox": [p.origins_A[:, 0] for p in plans],
        "oy": [p.origins_A[:, 1] for p in plans],
        "half": [_half(p) for p in plans],
        "scale": [p.scale for p in plans],
    }
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.savez(out / "particles_truth.npz", **arrays)


def trajectory_error_A(tracks_A: np.ndarray, truth_A: np.ndarray, dose_mid: np.ndarray) -> float:
    """RMS error of tracks (particle, frame, xy): frames weighted by exp(-dose/16), a constant per particle free."""
    weight = np.exp(-dose_mid / 16)
    weight = (weight / weight.sum())[:, None]
    difference = tracks_A - truth_A
    difference = difference - (weight * difference).sum(axis=1, keepdims=True)
    return float(np.sqrt((weight * difference**2).sum(axis=(1, 2)).mean()))


def _rigid_error_A(settings: SimulationSettings, plans: list[_Micrograph]) -> float:
    dose_mid = settings.dose_edges[:-1] + settings.dose_per_frame_e_A2 / 2
    errors = [
        trajectory_error_A(-p.shift_px[None] * settings.pixel_size_A, p.total_A.mean(axis=2), dose_mid) for p in plans
    ]
    return float(np.sqrt(np.mean(np.square(errors))))
