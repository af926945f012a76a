"""The whole job on one dataset: search, dose weights, correction; each stage's result stored, so that a rerun resumes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import param
import xarray as xr

from refmotion_nb import __version__
from refmotion_nb.data.cryosparc.hyperparameters import write_hyperparameter_group
from refmotion_nb.data.cryosparc.write import write_particle_groups
from refmotion_nb.data.maps import check_reference
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.data.store import ResultStore, write_hyperparameters, write_netcdf
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import MotionPrior
from refmotion_nb.stages.base import Reporter, Silent, Stage, hash_of
from refmotion_nb.stages.correction import MotionCorrection, check_reach
from refmotion_nb.stages.describe import defaults, describe_inputs, versions
from refmotion_nb.stages.dose_weights import DoseWeights
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.reuse import default_prior, read_prior, read_weights, with_reference_scale
from refmotion_nb.stages.search import HyperparameterSearch, prior_attrs, prior_from_attrs
from refmotion_nb.stages.session import Session
from refmotion_nb.stages.validation import COMBINATIONS, Combination, Validation

FEWEST_FRAMES = 3  # two velocities, one acceleration
UNTIL = ("hyperparameters", "dose-weights", "correct", "validate")


class Overrides(Stage):
    """Hyperparameters given instead of searched: all three of one kind, or none."""

    spatial_strength = param.Number(
        default=None, allow_None=True, bounds=(0, None), doc="Spatial prior strength, r cos θ."
    )
    correlation_distance = param.Number(default=None, allow_None=True, bounds=(0, None), doc="Correlation distance, Å.")
    acceleration_strength = param.Number(
        default=None, allow_None=True, bounds=(0, None), doc="Acceleration prior strength, r sin θ."
    )
    s_vel = param.Number(default=None, allow_None=True, bounds=(0, None), doc="RELION's sigma of velocity, Å per e/Å².")
    s_div = param.Number(default=None, allow_None=True, bounds=(0, None), doc="RELION's sigma of divergence, Å.")
    s_acc = param.Number(
        default=None, allow_None=True, bounds=(0, None), doc="RELION's sigma of acceleration, Å per e/Å²."
    )

    def hyperparameters(self, dose_per_frame_e_A2: float) -> Hyperparameters | None:
        """Return the hyperparameters given, or None.

        Raises
        ------
        InputError
            Some but not all of one kind are given, or both kinds.
        """
        ours = {
            name: getattr(self, name) for name in ("spatial_strength", "correlation_distance", "acceleration_strength")
        }
        relion = {name: getattr(self, name) for name in ("s_vel", "s_div", "s_acc")}
        given = [kind for kind in (ours, relion) if any(v is not None for v in kind.values())]
        if not given:
            return None
        if len(given) > 1:
            raise InputError("hyperparameters are given both as strengths and in RELION's units; give one kind")
        missing = [name for name, value in given[0].items() if not value]
        if missing:
            raise InputError(
                f"{', '.join(missing)} not given; give all three of {', '.join(given[0])}, or none to search"
            )
        if given[0] is ours:
            return Hyperparameters.from_strengths(*ours.values())
        return Hyperparameters.from_relion(relion["s_vel"], relion["s_div"], relion["s_acc"], dose_per_frame_e_A2)


@dataclass
class Job:
    """A dataset on its way into ``out``."""

    data: Dataset
    out: Path
    settings: dict[str, Any] = field(default_factory=dict)  # by parameter name, for all stages
    hyperparameters_file: Path | None = None
    dose_weights_file: Path | None = None
    dose_weights_last_frequency_per_A: float | None = None
    image_root: Path | None = None  # rlnImageName is written relative to it
    command: str = ""  # that started the job, for the record
    say: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    combinations: tuple[Combination, ...] = COMBINATIONS  # to validate
    search: xr.Dataset | None = None  # results, once they are there
    particles: xr.Dataset | None = None
    validation: xr.Dataset | None = None

    def stage(self, kind: type[Stage]) -> Any:
        """Return a stage with those of the settings that it has.

        Raises
        ------
        InputError
            A value out of bounds.
        """
        mine = {name: value for name, value in self.settings.items() if name in kind.param and value is not None}
        try:
            return kind(**mine)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from None

    def run(self, until: str = "correct", reporter: Reporter | None = None) -> bool:
        """Run up to and including ``until``; return whether everything asked for was written.

        Raises
        ------
        InputError
            Input that cannot be used; nothing half-written is left.
        """
        reporter = reporter or Silent()
        self._check_settings(until)
        writable(self.out)
        store = ResultStore(self.out / "results.zarr")
        execution: Execution = self.stage(Execution)
        session = Session(self.data, execution.threads, execution.cache_bytes)
        session.warnings += self.data.notes
        key = data_key(self.data)
        self._describe(store)
        self.search = search = self._search(session, store, key, reporter)
        if until != "hyperparameters":
            dose = self._dose(session, store, search, key, reporter)
        complete = not session.failed
        if until in ("correct", "validate"):
            with self._timed("correction"):
                correction: MotionCorrection = self.stage(MotionCorrection)
                self.particles = table = correction.run(session, search, dose, self.out, reporter, self.image_root, key)
            complete = bool(table["written"].values.all()) or not session.failed
            self._write_for_cryosparc(store, search, dose, table)
        if until == "validate":
            with self._timed("validation"):
                validation: Validation = self.stage(Validation)
                self.validation = validation.run(session, search, dose, reporter, self.combinations)
            store.write("validation", self.validation)
        for name, reason in session.failed.items():
            self.warnings.append(f"{name}: {reason}")
        self.warnings += session.warnings
        self.seconds.update({f"{k} (part)": v for k, v in session.seconds.items()})
        store.update_attrs(seconds=self.seconds, warnings=self.warnings)
        return complete

    def _write_for_cryosparc(self, store: ResultStore, search: xr.Dataset, dose: xr.Dataset, table: xr.Dataset) -> None:
        written = np.unique(table["micrograph"].values[table["written"].values]).tolist()
        tracks = {name: found for name in written if (found := store.read(f"tracks/{name}")) is not None}
        write_particle_groups(self.out, self.data, tracks)
        h = prior_from_attrs(search.attrs).hyperparameters
        angle = np.deg2rad(h.balance_deg)
        values = {
            "spatial_strength": h.strength * np.cos(angle), "correlation_distance": h.distance_A,
            "acceleration_strength": h.strength * np.sin(angle),
        }  # fmt: skip
        write_hyperparameter_group(self.out, values, dose, self.data.movies[0].pixel_size_A)

    def _check_settings(self, until: str) -> None:
        """Refuse settings that cannot work before hours of work, not after."""
        for kind in (HyperparameterSearch, DoseWeights, Overrides):
            self.stage(kind)
        self.stage(Execution).check()
        short = [movie for movie in self.data.movies if movie.n_frames < FEWEST_FRAMES]
        if short:
            raise InputError(
                f"{short[0].path} has {short[0].n_frames} frames ({len(short)} movies have fewer than {FEWEST_FRAMES}); "
                "motion cannot be followed, leave these movies out"
            )
        self._check_boxes()
        validation: Validation = self.stage(Validation)
        if until == "validate":
            validation.rotations()

    def _check_boxes(self) -> None:
        """Refuse output boxes that do not fit, and optics groups on movies of different pixel sizes."""
        correction: MotionCorrection = self.stage(MotionCorrection)
        pixel_sizes = sorted({movie.pixel_size_A for movie in self.data.movies})
        extent = max(box * pixel for box, pixel in map(check_reference, self.data.references))
        if correction.box_size:
            extent = correction.box_size * pixel_sizes[0]
        for pixel in pixel_sizes:
            correction.output_box(movie_box(extent, pixel))
        of_movie = {movie.micrograph: movie.pixel_size_A for movie in self.data.movies}
        particles = self.data.particles
        found: dict[tuple[int, int], float] = {}
        for reference, group, name in zip(*(particles[v].values for v in ("reference", "optics", "micrograph"))):
            pixel = found.setdefault((int(reference), int(group)), of_movie[str(name)])
            if abs(pixel - of_movie[str(name)]) > 1e-3 * pixel:
                raise InputError(
                    f"optics group {self.data.optics[group].name} has particles on movies of {pixel:g} and of "
                    f"{of_movie[str(name)]:g} Å/px ({name}); give them different optics groups"
                )

    def _describe(self, store: ResultStore) -> None:
        reused = {"hyperparameters": self.hyperparameters_file, "dose weights": self.dose_weights_file}
        stages = (HyperparameterSearch, DoseWeights, MotionCorrection, Validation, Overrides, Execution)
        store.update_attrs(
            version=__version__, command=self.command, settings={k: v for k, v in self.settings.items() if v is not None},
            defaults=defaults(stages), inputs=describe_inputs(self.data, reused), versions=versions(),
        )  # fmt: skip

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def _search(self, session: Session, store: ResultStore, key: str, reporter: Reporter) -> xr.Dataset:
        stage: HyperparameterSearch = self.stage(HyperparameterSearch)
        dose = self.data.movies[0].dose_per_frame_e_A2
        given = self.stage(Overrides).hyperparameters(dose)
        if given is not None and self.hyperparameters_file is not None:
            raise InputError("hyperparameters are given both as values and as a file; give one")
        prior = default_prior(given, stage) if given else None
        if self.hyperparameters_file is not None:
            prior = read_prior(self.hyperparameters_file, stage, dose, key)
        if prior is not None:
            mine = hash_of(prior_attrs(prior), stage.key(key))
            found = store.read("search", mine)
            if found is None:
                with self._timed("reference scale"):
                    prior = with_reference_scale(session, stage, prior, stage.seed, reporter)
                found = xr.Dataset(attrs=prior_attrs(prior))
                store.write("search", found, mine)
            search = found
        else:
            found = store.read("search", stage.key(key))
            if found is None:
                with self._timed("hyperparameter search"):
                    found = stage.run(session, reporter)
                store.write("search", found, stage.key(key))
            else:
                self.say("hyperparameters: taken from the earlier run in this folder")
            search = found
            self._judge(search)
        prior = prior_from_attrs(search.attrs)
        _write_prior(self.out / "hyperparameters.json", prior, search.attrs, dose, stage.energy, key)
        return search

    def _judge(self, search: xr.Dataset) -> None:
        last = [t[np.isfinite(t)][-1] for t in search["activity_local"].values]
        if max(last) > 0.2:
            self.warnings.append(
                f"trajectory activity is still {max(last):.2f} Å at the maximum total prior strength; if the best score "
                f"is among the last steps of its ray, raise max_strength (now {search.attrs['max_strength']:g})"
            )

    def _dose(
        self, session: Session, store: ResultStore, search: xr.Dataset, key: str, reporter: Reporter
    ) -> xr.Dataset:
        stage: DoseWeights = self.stage(DoseWeights)
        if self.dose_weights_file is not None:
            dose = read_weights(
                self.dose_weights_file, self.data.movies, *check_reference(self.data.references[0]),
                self.dose_weights_last_frequency_per_A,
            )  # fmt: skip
            check_reach(session, dose)
            store.write("dose_weights", dose)
        else:
            mine = stage.key(key, hash_of(prior_attrs(prior_from_attrs(search.attrs))))
            stored = store.read("dose_weights", mine)
            if stored is None:
                with self._timed("dose weights"):
                    stored = stage.run(session, search, reporter)
                store.write("dose_weights", stored, mine)
            else:
                self.say("dose weights: taken from the earlier run in this folder")
            dose = stored
        write_netcdf(self.out / "dose_weights.nc", dose)
        return dose


def _write_prior(
    path: Path, prior: MotionPrior, attrs: dict[str, Any], dose: float, energy: str, data_key: str
) -> None:
    h = prior.hyperparameters
    s_vel, s_div, s_acc = h.to_relion(dose)
    write_hyperparameters(
        path, strength=h.strength, balance_deg=h.balance_deg, distance_A=h.distance_A, common_std_A=prior.common_std_A,
        profile={"profile_decay_e_A2": prior.profile_decay_e_A2, "profile_floor": prior.profile_floor},
        relion={"s_vel": s_vel, "s_div": s_div, "s_acc": s_acc, "dose_per_frame_e_A2": dose},
        score=float(attrs.get("cv_score", np.nan)), energy=energy,
        reference_scale={"scale_pool": prior.scale_pool, "scale_spread2": prior.scale_spread2}, data=data_key,
    )  # fmt: skip


def writable(out: Path) -> None:
    """Make sure that ``out`` is a folder that can be written to; InputError otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None


def data_key(data: Dataset) -> str:
    """Return a hash of what a result depends on: particles, movies and references (files by path, size and time)."""
    digest = hashlib.sha256()
    for name in sorted(map(str, data.particles.variables)):
        values = data.particles[name].values
        digest.update(
            name.encode() + (values.tobytes() if values.dtype.kind != "O" else "\n".join(map(str, values)).encode())
        )
    files = [movie.path for movie in data.movies]
    files += [movie.background.path for movie in data.movies if movie.background is not None]
    for reference in data.references:
        files += [p for p in (reference.half1, reference.half2, reference.mask, reference.postprocess) if p is not None]
    for path in files:
        stat = Path(path).stat()
        digest.update(json.dumps([str(path), stat.st_size, stat.st_mtime_ns]).encode())
    for movie in data.movies:
        digest.update(f"{movie.dose_per_frame_e_A2} {movie.pre_exposure_e_A2} {movie.n_frames} {movie.gain}".encode())
        digest.update(b"rows as stored" * movie.rows_as_stored)
        for motion in (movie.global_shift, movie.local_motion, movie.spline_motion):
            digest.update(b"" if motion is None else np.ascontiguousarray(motion, float).tobytes())
    return digest.hexdigest()[:16]
