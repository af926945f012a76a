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

from refmotion_nb.data.synthetic import files as files
from refmotion_nb.data.synthetic import images as images
from refmotion_nb.data.synthetic import model as models
from refmotion_nb.data.synthetic import plan as planning
from refmotion_nb.data.synthetic import tables as tables
from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.numerics.reconstruct import backproject, fsc_masked_corrected, reconstruct

__all__ = ["Simulation", "SimulationSettings", "simulate"]

SPREAD_RESOLUTION_A = 3.0  # defocus spreads signal up to this resolution over the rendered box


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
    rigid_error_A: float  # trajectory error of the motion STARs, early frames weighted
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
    sensitivity = planning.draw_sensitivity(settings)
    gain_name = files.write_gain(out, 1 / sensitivity, settings.movie_format, settings.pixel_size_A)
    plans = [planning.plan_micrograph(settings, model.radius_A, index) for index in range(settings.n_micrographs)]
    if reporter:
        reporter.start(settings.n_micrographs + 1, "simulating")
    averages = []
    with _mapping(settings.workers) as run:
        for plan in plans:
            averages.append(_expose_and_average(settings, model, plan, sensitivity, out, run))
            tables.write_motion(settings, plan, gain_name, out)
            if reporter:
                reporter.advance(1, micrograph=plan.name, particles=plan.count)
        resolution_A = _write_reference(settings, model, plans, averages, out, run)
    tables.write_tables(settings, plans, out)
    tables.write_truth(settings, plans, out)
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


def _expose_and_average(settings, model, plan, sensitivity, out, run) -> np.ndarray:
    """Write one movie and return its particles' rigid averages, normalised and centred: (particle, box, box//2+1)."""
    exposure = _exposure(settings, model, plan, sensitivity, run)
    seeds = [planning.seed_for(settings, planning.COUNTS, plan.index, f) for f in range(settings.n_frames)]
    stack = files.write_movie(
        out / "Movies" / f"{plan.name}.{settings.movie_format}",
        images.movie(exposure, seeds, run),
        (settings.n_frames, *settings.shape),
        settings.pixel_size_A,
        exposure.dose_per_pixel,
        settings.eer_grouping,
        [planning.seed_for(settings, planning.EVENTS, plan.index, f) for f in range(settings.n_frames)],
    )
    frequency = models.half_plane_frequency(settings.box_px, settings.pixel_size_A)
    after = settings.dose_edges[1:, None, None]
    weights = np.exp(-after / (2 * images.critical_dose(frequency, settings.voltage_kV))).astype(np.float32)
    weights /= np.sqrt((weights**2).sum(axis=0))  # noise stays white
    gain = 1 / sensitivity

    def average(p: int) -> np.ndarray:
        centre, shifts = plan.coordinates_px[p], -plan.particle_shift_px[p]
        image = images.dose_weighted_average(stack, gain, plan.hot, centre, shifts, weights)
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

    light = images.illumination(
        settings.shape, settings.illumination_spread, planning.rng_for(settings, planning.LIGHT, plan.index)
    )
    edges = settings.dose_edges
    decay = [images.mean_decay(frequency, a, b, settings.voltage_kV) for a, b in zip(edges[:-1], edges[1:])]
    ice = None
    if settings.ice_noise > 0:
        rng = planning.rng_for(settings, planning.ICE, plan.index)
        ice = images.structural_noise(scope, settings.shape, settings.ice_noise, float(plan.defocus_A.mean()), rng)
    return images.Exposure(
        spectra=np.stack(list(run(spectrum, range(plan.count)))),
        positions_px=plan.positions_px,
        paths_px=plan.total_A / settings.pixel_size_A,
        decay=np.stack(decay),
        ice_ft=ice,
        ice_paths_px=plan.field_A / settings.pixel_size_A,
        dose_per_pixel=settings.dose_per_frame_e_A2 * settings.pixel_size_A**2,
        sensitivity=sensitivity * light,
        hot=plan.hot,
    )


def _write_reference(settings, model, plans, averages, out, run) -> float:
    """Half maps from the particles' own rigid averages, mask and FSC; return the resolution at 0.143 in Å."""
    box = settings.box_px
    symmetry = model.symmetry if settings.symmetry == "assembly" else None
    stack = np.concatenate(averages)
    half = np.concatenate([plan.half for plan in plans])
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
    tables.write_postprocess(out / "Ref" / "postprocess.star", curves, settings.pixel_size_A, box, mask)
    below = np.flatnonzero(curves.corrected < 0.143)
    return box * settings.pixel_size_A / float(below[0] if below.size else box // 2)


def trajectory_error_A(tracks_A: np.ndarray, truth_A: np.ndarray, dose_mid: np.ndarray) -> float:
    """RMS error of tracks (particle, frame, xy): frames weighted by exp(-dose/16), a constant per particle free."""
    weight = np.exp(-dose_mid / 16)
    weight = (weight / weight.sum())[:, None]
    difference = tracks_A - truth_A
    difference = difference - (weight * difference).sum(axis=1, keepdims=True)
    return float(np.sqrt((weight * difference**2).sum(axis=(1, 2)).mean()))


def _rigid_error_A(settings: SimulationSettings, plans: list[planning.MicrographPlan]) -> float:
    errors = [
        trajectory_error_A(-p.particle_shift_px * settings.pixel_size_A, p.total_A.mean(axis=2), settings.dose_mid)
        for p in plans
    ]
    return float(np.sqrt(np.mean(np.square(errors))))
