"""Simulated data with known motion: movies of a real structure and all that RELION would have made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from refmotion_nb.data.limits import cpu_count
from refmotion_nb.data.relion.project import open_relion
from refmotion_nb.data.schema import Dataset, InputError, Reference, as_path, wanted
from refmotion_nb.data.synthetic import cryosparc as cryosparc
from refmotion_nb.data.synthetic import files as files
from refmotion_nb.data.synthetic import images as images
from refmotion_nb.data.synthetic import model as models
from refmotion_nb.data.synthetic import plan as planning
from refmotion_nb.data.synthetic import tables as tables
from refmotion_nb.data.synthetic.record import PROJECT_RECORD, held, note
from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.data.synthetic.truth import squared_errors, tracks_error_A, true_tracks
from refmotion_nb.numerics.reconstruct import backproject, fsc_masked_corrected, reconstruct

if TYPE_CHECKING:
    import xarray as xr

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
    fsc_resolutions_A: tuple[float, ...]  # corrected half-map FSC 0.143 of the rigid reference of each species

    new_reporter: ClassVar[Callable[[], Reporter | None]] = staticmethod(lambda: None)  # for those made without one

    @property
    def particles(self) -> Path:
        """Particle STAR file (of the first species)."""
        return self.particle_tables[0]

    @property
    def particle_tables(self) -> tuple[Path, ...]:
        """Particle STAR file of each species."""
        return tuple(self.folder / "Extract" / tables.particle_table(s) for s in range(len(self.settings.boxes_px)))

    @property
    def micrographs(self) -> Path:
        """STAR file of the motion-corrected micrographs."""
        return self.folder / "MotionCorr" / "corrected_micrographs.star"

    @property
    def references(self) -> tuple[Reference, ...]:
        """Half maps, mask and FSC of each species."""
        folders = [self.folder / _reference_folder(s) for s in range(len(self.settings.boxes_px))]
        names = ("half1.mrc", "half2.mrc", "mask.mrc", "postprocess.star")
        return tuple(Reference(*(folder / name for name in names)) for folder in folders)

    @property
    def half_maps(self) -> tuple[Path, Path]:
        """The two half maps (of the first species)."""
        return self.folder / "Ref" / "half1.mrc", self.folder / "Ref" / "half2.mrc"

    @property
    def mask(self) -> Path:
        """Soft mask of the particle (of the first species)."""
        return self.folder / "Ref" / "mask.mrc"

    @property
    def postprocess(self) -> Path:
        """STAR file with the FSC, naming half maps and mask (of the first species)."""
        return self.folder / "Ref" / "postprocess.star"

    def open(self, **options: Any) -> Dataset:
        """Open the simulated data as a user would; ``options`` are those of ``open_relion``."""
        return open_relion(list(self.particle_tables), self.micrographs, list(self.references), self.folder, **options)

    def as_cryosparc(self, folder: str | Path, orientation: str = "cryosparc") -> dict[str, Any]:
        """Write the CryoSPARC project of these movies into ``folder``; return the arguments of ``open_cryosparc``.

        Movies are linked, so the simulation has to stay; see ``data.synthetic.cryosparc.write_project``.

        Raises
        ------
        InputError
            The movies are not TIFF, the orientation is unknown, or ``folder`` holds other files.
        """
        folder = as_path(folder, "folder")
        count = range(len(self.settings.boxes_px))
        species = [(tables.particle_table(s), _reference_folder(s)) for s in count]
        with held(folder, self.settings, PROJECT_RECORD):
            note(folder, self.settings, {}, PROJECT_RECORD)
            return cryosparc.write_project(self.folder, folder, species, orientation)

    def truth(self) -> dict[str, np.ndarray]:
        """Arrays of truth.npz: true displacements in Å per micrograph."""
        with np.load(self.folder / "truth.npz") as archive:
            return dict(archive)

    def tracks(self) -> dict[str, xr.Dataset]:
        """Return how the particles of each micrograph really moved, as tables like those that results have."""
        return true_tracks(self.settings, self.truth())

    def trajectory_error_A(self, tracks: Mapping[str, xr.Dataset]) -> float:
        """Return the RMS trajectory error (Å) of tracks by micrograph, early frames weighted.

        Raises
        ------
        InputError
            A micrograph that was not simulated, or other frames.
        """
        return tracks_error_A(tracks, self.tracks())


def simulate(settings: SimulationSettings, out: Path | str, reporter: Reporter | None = None) -> Simulation:
    """Write a RELION-layout folder of simulated movies, particles, references and the truth about them.

    A second species has ``Extract/particles_2.star`` and ``Ref2``; ``truth.npz`` holds the particles of both (see
    ``tables.write_truth``).

    The same settings give the same bytes, whatever the number of workers; what is there already is returned as it is.

    Raises
    ------
    InputError
        The model or a motion STAR cannot be read, the field is too small for a particle, or ``out`` holds other files.
    """
    wanted(settings, SimulationSettings, "settings", "SimulationSettings(...)")
    out = as_path(out, "out")
    with held(out, settings) as facts:
        if not facts:
            facts = _simulated(settings, out, reporter or Simulation.new_reporter())
            note(out, settings, facts)
    return Simulation(out, settings, **{**facts, "fsc_resolutions_A": tuple(facts["fsc_resolutions_A"])})


def _simulated(settings: SimulationSettings, out: Path, reporter: Reporter | None) -> dict[str, Any]:
    """Write all files; return the facts about them that a Simulation has."""
    species = read_species(settings)
    sensitivity = planning.draw_sensitivity(settings)
    radius_A = max(model.radius_A for model in species)
    plans = [planning.plan_micrograph(settings, radius_A, index) for index in range(settings.n_micrographs)]
    _check_halves(plans, len(species))
    note(out, settings, {})
    for folder in ("Movies", "MotionCorr/Movies", "Extract", *map(_reference_folder, range(len(species)))):
        (out / folder).mkdir(parents=True, exist_ok=True)
    gain_name = files.write_gain(out, 1 / sensitivity, settings.movie_format, settings.pixel_size_A)
    if reporter:
        reporter.start(settings.n_micrographs + 1, "simulating")
    averages = []
    with _mapping(settings.workers) as run:
        for plan in plans:
            averages.append(_expose_and_average(settings, species, plan, sensitivity, out, run))
            tables.write_motion(settings, plan, gain_name, out)
            if reporter:
                reporter.advance(1, micrograph=plan.name, particles=plan.count)
        resolutions_A = [
            _write_reference(settings, species[s], s, plans, [parts[s] for parts in averages], out, run)
            for s in range(len(species))
        ]
    tables.write_tables(settings, plans, out)
    tables.write_truth(settings, plans, out)
    if reporter:
        reporter.advance(1, resolution_A=resolutions_A[0])
        reporter.done()
    return {
        "n_particles": sum(p.count for p in plans), "rigid_error_A": _rigid_error_A(settings, plans),
        "fsc_resolutions_A": resolutions_A,
    }  # fmt: skip


def read_species(settings: SimulationSettings) -> list[models.AtomicModel]:
    """Atomic models of one species or two.

    Raises
    ------
    InputError
        A model cannot be read, or the second is not given and the first has no subunits to displace.
    """
    first = models.read_model(settings.model)
    if settings.second_share == 0:
        return [first]
    if settings.second_model is not None:
        return [first, models.read_model(settings.second_model)]
    return [first, models.displaced(first, settings.second_swelling_A, settings.second_turn_deg)]


def _check_halves(plans: list[planning.MicrographPlan], n_species: int) -> None:
    """Refuse a set in which a species has no particle in one of the half sets."""
    there = {(int(s), int(h)) for plan in plans for s, h in zip(plan.species, plan.half)}
    if len(there) < 2 * n_species:
        several = n_species > 1
        raise InputError(
            f"{'one species has' if several else 'there are'} no particles in one of {'its' if several else 'the'} half sets; "
            f"raise particles_per_micrograph or n_micrographs{', or bring second_share nearer to 0.5' * several}"
        )


def _reference_folder(which: int) -> str:
    return f"Ref{which + 1}" if which else "Ref"


@contextmanager
def _mapping(workers: int | None) -> Iterator[images.Map]:
    """Give a map that keeps order and runs in threads: everything costly releases the interpreter lock."""
    with ThreadPoolExecutor(workers or cpu_count()) as pool:
        yield pool.map


def _expose_and_average(
    settings: SimulationSettings, species: list[models.AtomicModel], plan: planning.MicrographPlan, sensitivity: np.ndarray,
    out: Path, run: images.Map,
) -> list[np.ndarray]:  # fmt: skip
    """Write one movie and return its particles' rigid averages, normalised and centred, for each species.

    Averages are (particle, box, box//2+1).
    """
    exposure = _exposure(settings, species, plan, sensitivity, run)
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
    gain = 1 / sensitivity
    weights = [_weights(settings, box) for box in settings.boxes_px]

    def average(p: int) -> np.ndarray:
        centre, shifts, which = plan.coordinates_px[p], -plan.particle_shift_px[p], plan.species[p]
        image = images.dose_weighted_average(stack, gain, plan.hot, centre, shifts, weights[which])
        image = images.normalised(image, 1.05 * species[which].radius_A / settings.pixel_size_A)
        return images.centred(image, plan.origins_A[p] / settings.pixel_size_A)

    found = list(run(average, range(plan.count)))
    empty = [np.zeros((0, box, box // 2 + 1), np.complex64) for box in settings.boxes_px]
    return [
        np.stack([found[p] for p in mine]) if (mine := np.flatnonzero(plan.species == s)).size else empty[s]
        for s in range(len(species))
    ]


def _weights(settings: SimulationSettings, box: int) -> np.ndarray:
    """Dose weights (frame, box, box//2+1) that leave noise white."""
    frequency = models.half_plane_frequency(box, settings.pixel_size_A)
    after = settings.dose_edges[1:, None, None]
    weights = np.exp(-after / (2 * images.critical_dose(frequency, settings.voltage_kV))).astype(np.float32)
    return weights / np.sqrt((weights**2).sum(axis=0))


def _exposure(
    settings: SimulationSettings, species: list[models.AtomicModel], plan: planning.MicrographPlan, sensitivity: np.ndarray,
    run: images.Map,
) -> images.Exposure:  # fmt: skip
    scope = settings.microscope
    spread = scope.wavelength_A * (settings.defocus_max_A + 3 * settings.defocus_spread_A) / SPREAD_RESOLUTION_A
    box = max(models.render_size(m, settings.pixel_size_A, min(spread, 2 * m.radius_A)) for m in species)
    frequency = models.half_plane_frequency(box, settings.pixel_size_A)
    factors = [models.scattering_factors(model, frequency, settings.b_factor_A2) for model in species]

    def spectrum(p: int) -> np.ndarray:
        which = plan.species[p]
        potential = models.project(species[which], plan.rotations[p], factors[which], settings.pixel_size_A)
        ctf = scope.ctf(box, plan.defocus_A[p, 0], plan.defocus_A[p, 1], plan.astigmatism_deg)
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


def _write_reference(
    settings: SimulationSettings, model: models.AtomicModel, which: int, plans: list[planning.MicrographPlan],
    averages: list[np.ndarray], out: Path, run: images.Map,
) -> float:  # fmt: skip
    """Half maps from a species' own rigid averages, mask and FSC; return the resolution at 0.143 in Å."""
    box, folder = settings.boxes_px[which], out / _reference_folder(which)
    symmetry = model.symmetry if settings.symmetry == "assembly" else None
    mine = [plan.species == which for plan in plans]
    stack = np.concatenate(averages)
    half = np.concatenate([plan.half[m] for plan, m in zip(plans, mine)])
    rotations = np.concatenate([plan.rotations_given[m] for plan, m in zip(plans, mine)])
    scope = settings.microscope
    ctf = np.stack([scope.ctf(box, u, v, p.astigmatism_deg) for p, m in zip(plans, mine) for u, v in p.defocus_A[m]])

    def half_map(which: int) -> np.ndarray:
        mine = half == which
        return reconstruct(backproject(stack[mine] * ctf[mine], ctf[mine] ** 2, rotations[mine], symmetry=symmetry))

    maps = list(run(half_map, (1, 2)))
    mask = models.soft_mask(model, box, settings.pixel_size_A, 3.0, 5.0)
    for name, volume in (("half1", maps[0]), ("half2", maps[1]), ("mask", mask)):
        files.write_mrc(folder / f"{name}.mrc", volume, settings.pixel_size_A, volume=True)
    curves = fsc_masked_corrected(maps[0], maps[1], mask, seed=settings.seed)
    tables.write_postprocess(folder / "postprocess.star", curves, settings.pixel_size_A, box, mask)
    below = np.flatnonzero(~(curves.corrected >= 0.143))
    if below.size and not below[0]:
        raise InputError(
            f"half maps of these particles agree in no shell ({folder}); simulate more particles, or less motion"
        )
    return box * settings.pixel_size_A / float(below[0] if below.size else box // 2)


def trajectory_error_A(tracks_A: np.ndarray, truth_A: np.ndarray, dose_mid: np.ndarray) -> float:
    """RMS error of tracks (particle, frame, xy) Å, see ``squared_errors``."""
    return float(np.sqrt(squared_errors(tracks_A, truth_A, dose_mid).mean()))


def _rigid_error_A(settings: SimulationSettings, plans: list[planning.MicrographPlan]) -> float:
    errors = [
        trajectory_error_A(-p.particle_shift_px * settings.pixel_size_A, p.total_A.mean(axis=2), settings.dose_mid)
        for p in plans
    ]
    return float(np.sqrt(np.mean(np.square(errors))))
