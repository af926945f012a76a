"""The whole job on one dataset: search, dose weights, correction; each stage's result stored, so that a rerun resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import param
import xarray as xr

from refmotion_nb.data.cryosparc.hyperparameters import write_hyperparameter_group
from refmotion_nb.data.files import only_within, output
from refmotion_nb.data.maps import check_reference
from refmotion_nb.data.reasons import told_once
from refmotion_nb.data.schema import OPENED, Dataset, InputError, SettingError, as_path, wanted
from refmotion_nb.data.store import ResultStore, write_netcdf
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import MotionPrior
from refmotion_nb.stages.audit import InputAudit, findings, summary
from refmotion_nb.stages.base import Reporter, Silent, Stage, hash_of
from refmotion_nb.stages.correction import WRITTEN as CORRECTED
from refmotion_nb.stages.correction import MotionCorrection, check_reach, hash_of_weights, remove_tracks_of_other_data
from refmotion_nb.stages.describe import REUSED, describe_inputs, describes, files_read, of_other_versions, record
from refmotion_nb.stages.dose_weights import DoseWeights, exposures
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.halves import check_split
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.stages.reuse import as_search, read_prior, read_weights, write_prior
from refmotion_nb.stages.runs import Run, recorded, viewer_of
from refmotion_nb.stages.search import HyperparameterSearch, default_prior, prior_attrs, prior_of, still_moving
from refmotion_nb.stages.session import Session
from refmotion_nb.stages.validation import COMBINATIONS, Combination, Validation, chosen, remove_maps

WRITTEN = (*CORRECTED, "Maps/*", "results.zarr/*", "dose_weights.nc", "hyperparameters.json", "hyperparams.cs*", "refm_*.npy",
           "report.html")  # fmt: skip
TIMED = {"checking the input": "audit", "hyperparameter search": "search", "reference scale": "search",
         "dose weights": "dose_weights", "validation": "validation"}  # the group that each leaves  # fmt: skip
UNTIL = ("hyperparameters", "dose-weights", "correct", "validate")


class Overrides(Stage):
    """Hyperparameters given instead of searched: all three of one kind, or none."""

    spatial_strength = param.Number(
        default=None, allow_None=True, bounds=(0, None), doc="Spatial prior strength, r cos θ."
    )
    correlation_distance = param.Number(
        default=None, allow_None=True, bounds=(0, None), inclusive_bounds=(False, True), doc="Correlation distance, Å."
    )
    acceleration_strength = param.Number(
        default=None, allow_None=True, bounds=(0, None), doc="Acceleration prior strength, r sin θ."
    )
    s_vel = param.Number(
        default=None, allow_None=True, bounds=(0, None), inclusive_bounds=(False, True),
        doc="RELION's sigma of velocity, Å per e/Å².",
    )  # fmt: skip
    s_div = param.Number(
        default=None, allow_None=True, bounds=(0, None), inclusive_bounds=(False, True),
        doc="RELION's sigma of divergence, Å.",
    )  # fmt: skip
    s_acc = param.Number(
        default=None, allow_None=True, bounds=(0, None), inclusive_bounds=(False, True),
        doc="RELION's sigma of acceleration, Å per e/Å².",
    )  # fmt: skip

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
        missing = [name for name, value in given[0].items() if value is None]
        if missing:
            raise InputError(
                f"{', '.join(missing)} not given; give all three of {', '.join(given[0])}, or none to search"
            )
        if given[0] is ours:
            if not (self.spatial_strength or self.acceleration_strength):
                raise InputError("spatial_strength and acceleration_strength are both 0; give one above 0")
            return Hyperparameters.from_strengths(*ours.values())
        try:
            return Hyperparameters.from_relion(relion["s_vel"], relion["s_div"], relion["s_acc"], dose_per_frame_e_A2)
        except ValueError as error:
            raise InputError(str(error)) from None


STAGES = (HyperparameterSearch, DoseWeights, MotionCorrection, Validation, InputAudit, Overrides, Execution)


@dataclass
class Job:
    """A dataset on its way into ``out``; given a session, the job takes what stages have found on it and adds to it."""

    data: Any  # Dataset or Session; a Dataset from then on
    out: Path
    settings: dict[str, Any] = field(default_factory=dict)  # by parameter name, for all stages
    hyperparameters_file: Path | None = None
    dose_weights_file: Path | None = None
    dose_weights_last_frequency_per_A: float | None = None
    image_root: Path | None = None  # rlnImageName is written relative to it
    within: tuple[Path, ...] = ()  # folders that the two files, and what they name, are read from; none: anywhere
    command: str = ""  # that started the job, for the record
    say: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    combinations: Iterable[Combination | str] = COMBINATIONS  # to validate; also by name
    search: xr.Dataset | None = None  # results, once they are there
    particles: xr.Dataset | None = None
    validation: xr.Dataset | None = None
    dose: xr.Dataset | None = None
    session: Session | None = None
    ran: Run | None = None
    new_reporter: ClassVar[Callable[[], Reporter]] = Silent

    def __post_init__(self) -> None:
        self.out = as_path(self.out, "out")
        self._combinations = chosen(self.combinations)
        if isinstance(self.data, Session):
            self.session, self.data = self.data, self.data.data
        wanted(self.data, Dataset, "data", OPENED)
        self._shared = self.session is not None  # with others, who may want what is read

    def stage(self, kind: type[Stage]) -> Any:
        """Return a stage with those of the settings that it has.

        Raises
        ------
        SettingError
            A value that is not allowed.
        """
        return kind.of(self.settings)

    @recorded
    def run(self, until: str = "correct", reporter: Reporter | None = None) -> bool:
        """Run up to and including ``until``; return whether everything asked for was written.

        Raises
        ------
        InputError
            Input that cannot be used; nothing half-written is left.
        """
        reporter = viewer_of(reporter)
        if until not in UNTIL:
            raise InputError(f"until is {until!r}; give {', '.join(UNTIL)}")
        self._check_settings(until)
        with output(self.out, files_read(self.data), WRITTEN), one_blas_thread():  # the same bits, whoever calls
            execution: Execution = self.stage(Execution)
            device = execution.choose_device(self._elsewhere)
            self.say(f"running on {device.about(execution.n_threads)}")
            session = self.session
            if session is None:
                session = self.session = Session(
                    self.data, execution.threads, execution.cache_bytes, self.out, device=device
                )
            else:
                session.begin(execution.n_threads, execution.cache_bytes, device)
            with execution.at_work(session):
                if session.workers:
                    self.say(f"work is done by {session.workers.about}{device.of_workers}")
                return self._run(session, until, reporter)

    def _run(self, session: Session, until: str, reporter: Reporter) -> bool:
        self.warnings.clear()  # of an earlier run
        prior, weights = self._given_prior(session), self._given_weights(session)
        store = ResultStore(self.out / "results.zarr")
        self._describe(store, session)
        notes = [*self.data.notes, *of_other_versions(store.attrs)]
        for note in notes:
            self.say(f"note: {note}")
        # that the orientation was found out is no warning
        session.warnings += [n for n in notes if not n.startswith("orientation ") or " is taken" in n]
        session.keeps_micrographs = True
        correction: MotionCorrection = self.stage(MotionCorrection)
        session.crop_to = correction.fourier_crop_to  # finer frequencies are for validation alone
        self._audit(session, store, reporter)
        # what the last stage reads, nobody will look at again
        session.keeps_micrographs = self._shared or until != "hyperparameters"
        self.search = search = self._search(session, store, prior, reporter)
        session.keeps_micrographs = self._shared or until != "dose-weights"
        if until != "hyperparameters":
            self.dose = dose = self._dose(session, store, search, weights, reporter)
        session.keeps_micrographs = self._shared or until != "correct"
        if until in ("correct", "validate"):
            with self._timed("correction"):
                self.particles = table = correction.run(session, search, dose, self.out, reporter, self.image_root)
            complete = not _lost(table, session.failed)
            self._write_hyperparameter_group(search, dose)
            check_split(self.out, self.data, table)
            if not store.has("validation", self._validation_key(session, search, dose)):
                self._forget_validation(store)  # of other settings
        if until == "validate":
            self._validate(session, store, search, dose, reporter)
            complete = complete and not session.failed
        failed = self._failed(store, session)
        if until in ("hyperparameters", "dose-weights"):
            complete = not failed
        self.warnings += told_once((name, failed[name]) for name in session if name in failed)
        self.warnings += session.warnings
        self.seconds.update({f"{k} (part)": v for k, v in dict(session.seconds).items()})
        store.update_attrs(seconds={**self._earlier_seconds(store), **self.seconds}, warnings=self.warnings)
        return complete

    @property
    def _elsewhere(self) -> bool:
        workers = self.session and self.session.workers
        return bool(workers and workers.elsewhere)

    def _failed(self, store: ResultStore, session: Session) -> dict[str, str]:
        """Return why micrographs could not be used, those of earlier runs included that no stage had to read again."""
        known = {name: [reason, session.keys.of([name])] for name, reason in dict(session.failed).items()}
        earlier = store.attrs.get("failed", {})
        known |= {name: [reason, key] for name, (reason, key) in earlier.items()
                  if name not in known and session.keys.of([name]) == key and not store.has(f"tracks/{name}")}  # fmt: skip
        store.update_attrs(failed=known)
        return {name: reason for name, (reason, _) in known.items()}

    def _earlier_seconds(self, store: ResultStore) -> dict[str, float]:
        """Return what stages took in earlier runs, of those whose results stand."""
        return {
            name: value for name, value in store.attrs.get("seconds", {}).items() if store.has(TIMED.get(name, "none"))
        }

    def _validation_key(self, session: Session, search: xr.Dataset, dose: xr.Dataset) -> str:
        """Return what maps depend on: also on what cannot be used, which another run may be able to read."""
        stage: Validation = self.stage(Validation)
        names = [combination.name for combination in self._combinations]
        prior = prior_attrs(prior_of(search))
        return stage.key(session.keys.all, hash_of(prior, names, sorted(session.failed)), hash_of_weights(dose))

    def _validate(
        self, session: Session, store: ResultStore, search: xr.Dataset, dose: xr.Dataset, reporter: Reporter
    ) -> None:
        stage: Validation = self.stage(Validation)
        self.validation = store.read("validation", self._validation_key(session, search, dose))
        if self.validation is not None and stage.maps_are_there(
            self.out, len(self.data.references), self._combinations
        ):
            self.say("validation: taken from the earlier run in this folder")
            session.adopt(stage, search, dose, result=self.validation)
            return
        with self._timed("validation"):
            self.validation = stage.run(session, search, dose, reporter, self._combinations, self.out)
        store.write("validation", self.validation, self._validation_key(session, search, dose))

    def _forget_validation(self, store: ResultStore) -> None:
        """Let a validation go, and its maps, which others would take for those of the particles."""
        store.remove("validation")
        remove_maps(self.out)

    def _write_hyperparameter_group(self, search: xr.Dataset, dose: xr.Dataset) -> None:
        """Write what was found as CryoSPARC's own job does."""
        h = prior_of(search).hyperparameters
        values = {
            "spatial_strength": h.spatial_strength, "correlation_distance": h.distance_A,
            "acceleration_strength": h.acceleration_strength,
        }  # fmt: skip
        write_hyperparameter_group(self.out, values, dose, self.data.movies_with_particles[0].pixel_size_A)

    def _check_settings(self, until: str) -> None:
        """Refuse settings that cannot work before hours of work, not after."""
        for kind in STAGES:
            self.stage(kind)
        known = {name for kind in (Inputs, *STAGES) for name in kind.param}
        for name in sorted({*self.settings} - known):
            near = get_close_matches(name, known, n=1)
            raise SettingError(name, f"is no setting; {f'did you mean {near[0]}?' if near else 'leave it out'}")
        self.stage(Overrides).hyperparameters(self.data.movies_with_particles[0].dose_per_frame_e_A2)
        self.stage(Execution).check(self._elsewhere)
        correction: MotionCorrection = self.stage(MotionCorrection)
        correction.output_boxes(self.data)
        validation: Validation = self.stage(Validation)
        if until == "validate":
            validation.point_groups(len(self.data.references))
            validation.combinations_to_write()

    def _describe(self, store: ResultStore, session: Session) -> None:
        """Note what the results in ``store`` are of; those of other data that no longer hold go."""
        earlier = store.attrs.get("inputs")
        if earlier is not None and not describes(earlier, self.data):
            for name in ("audit", "search", "dose_weights"):
                if _still_valid(store.read(name), session) is None:
                    store.remove(name)
            store.remove("particles")
            self._forget_validation(store)
            if n := remove_tracks_of_other_data(store, session):
                self.say(f"{self.out} held trajectories of other data: those of {n} micrographs are removed")
        reused = dict(zip(REUSED, (self.hyperparameters_file, self.dose_weights_file)))
        before = store.attrs if store.groups() else {}
        described = describe_inputs(self.data, reused)
        store.update_attrs(**record((Inputs, *STAGES), self.settings, described, self.command, before))

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def _audit(self, session: Session, store: ResultStore, reporter: Reporter) -> None:
        """Stop where particles, reference and half sets do not belong together."""
        stage: InputAudit = self.stage(InputAudit)
        key = stage.key(session.keys.shared)
        audit = _still_valid(store.read("audit", key), session)
        if audit is None:
            with self._timed("checking the input"):
                audit = stage.run(session, reporter)
            audit = audit.assign_attrs(micrographs_key=session.keys.of(audit.attrs["micrographs"]))
            if audit.attrs["micrographs"]:  # else no movie can be used, which the next stage says
                store.write("audit", audit, key)
        for line in [*summary(audit), *(one.text for one in findings(audit) if one.severity == "note")]:
            self.say(line)
        session.warnings += stage.judge(audit)

    def _given_prior(self, session: Session) -> MotionPrior | None:
        """Return the prior that is given, as values or in a file, or None; InputError if it cannot be used."""
        stage: HyperparameterSearch = self.stage(HyperparameterSearch)
        dose = self.data.movies_with_particles[0].dose_per_frame_e_A2
        given = self.stage(Overrides).hyperparameters(dose)
        if self.hyperparameters_file is None:
            return default_prior(given, stage) if given else None
        if given is not None:
            raise InputError("hyperparameters are given both as values and as a file; give one")
        with only_within(self.within):
            return read_prior(self.hyperparameters_file, stage, dose, session.keys)

    def _given_weights(self, session: Session) -> xr.Dataset | None:
        """Return the dose weights that are given in a file, or None; InputError if they cannot be used."""
        if self.dose_weights_file is None:
            return None
        box = check_reference(self.data.references[0])
        with only_within(self.within):
            dose = read_weights(
                self.dose_weights_file, self.data.movies_with_particles, *box, self.dose_weights_last_frequency_per_A
            )
        check_reach(session, dose)
        return dose

    def _search(
        self, session: Session, store: ResultStore, given: MotionPrior | None, reporter: Reporter
    ) -> xr.Dataset:
        stage: HyperparameterSearch = self.stage(HyperparameterSearch)
        inputs: tuple[MotionPrior, ...] = () if given is None else (given,)
        key = stage.key(session.keys.shared)
        if given is not None:
            key = hash_of(prior_attrs(given), key)
        search = _still_valid(store.read("search", key), session)
        if search is None:
            search = self._new_search(stage, session, given, reporter)
            store.write("search", search, key)
        elif given is None:
            self.say("hyperparameters: taken from the earlier run in this folder")
        if given is None:
            self.warnings += still_moving(search)
        session.adopt(stage, *inputs, result=search)
        score = float(search.attrs.get("cv_score", np.nan))
        dose = self.data.movies_with_particles[0].dose_per_frame_e_A2
        write_prior(self.out / "hyperparameters.json", prior_of(search), dose, stage.energy, session.keys, score)
        return search

    def _new_search(
        self, stage: HyperparameterSearch, session: Session, given: MotionPrior | None, reporter: Reporter
    ) -> xr.Dataset:
        if given is not None:
            with self._timed("reference scale"):
                return as_search(session, stage, given, stage.seed, reporter)
        if (found := session.found(stage)) is not None:
            return found
        with self._timed("hyperparameter search"):
            return stage.run(session, reporter)

    def _dose(
        self, session: Session, store: ResultStore, search: xr.Dataset, given: xr.Dataset | None, reporter: Reporter
    ) -> xr.Dataset:
        stage: DoseWeights = self.stage(DoseWeights)
        if given is not None:
            dose = given
            store.write("dose_weights", dose)
            session.adopt(stage, search, self.dose_weights_file, result=dose)
        else:
            dose = self._measured_weights(stage, session, store, search, reporter)
            session.adopt(stage, search, result=dose)
        write_netcdf(self.out / "dose_weights.nc", dose)
        return dose

    def _measured_weights(
        self, stage: DoseWeights, session: Session, store: ResultStore, search: xr.Dataset, reporter: Reporter
    ) -> xr.Dataset:
        # no group of movies exposed alike is left out, whether it is among those measured or not
        key = stage.key(session.keys.shared, hash_of(prior_attrs(prior_of(search)), exposures(session)))
        known = _still_valid(store.read("dose_weights", key), session)
        if known is not None:
            self.say("dose weights: taken from the earlier run in this folder")
            return known
        found = session.found(stage, search)
        if found is None:
            with self._timed("dose weights"):
                found = stage.run(session, search, reporter)
        store.write("dose_weights", found, key)
        stored = store.read("dose_weights")  # as a rerun finds it, order and types included
        assert stored is not None
        return stored


def _still_valid(found: xr.Dataset | None, session: Session) -> xr.Dataset | None:
    """Return a result of an earlier run if the micrographs it was found on are what they were, else None.

    Others may have changed: a movie that was repaired does not put everything else in question.
    """
    if found is None:
        return None
    mine = session.keys.of(found.attrs.get("micrographs", []))
    return found if found.attrs.get("micrographs_key") == mine else None


def _lost(table: xr.Dataset, failed: dict[str, str]) -> bool:
    """Return whether a particle was not written because its movie failed; others were left out on opening, as told."""
    reasons = table["reason"].values[~table["written"].values]  # a column of text with room for the longest in each row
    return not {*failed.values()}.isdisjoint(reasons.tolist())
