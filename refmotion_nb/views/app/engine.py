"""What all pages of the app share: the session, the settings, the runs. No Panel in here; any thread may call it."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import xarray as xr

from refmotion_nb.data.files import only_within
from refmotion_nb.data.maps import check_reference
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.base import Reporter, Stage
from refmotion_nb.stages.describe import describes
from refmotion_nb.stages.dose_weights import DoseWeights
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.job import STAGES, UNTIL, Job, Overrides
from refmotion_nb.stages.reuse import read_prior, read_weights
from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.session import Session
from refmotion_nb.stages.validation import Validation
from refmotion_nb.views.app.opening import Checking, Opening
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.report import write_report

OUT = "refmotion-results"  # in the first folder, unless another is chosen
GIVEN = tuple(name for name in Overrides.param if name != "name")  # hyperparameters instead of a search
OF_THE_DATA = (*GIVEN, "symmetry")  # settings that other data do not take over
WORDS = {
    "Opening": "opening data", "Checking": "checking data", "Job": "the run", "ReportedJob": "the run",
    "HyperparameterSearch": "the search", "DoseWeights": "measuring dose weights", "MotionCorrection": "the correction",
    "Validation": "the validation", "InputAudit": "the check of the input",
}  # fmt: skip
RESULTS = {"search": HyperparameterSearch, "dose_weights": DoseWeights, "validation": Validation}


@dataclass
class ReportedJob(Job):
    """A job that ends with its report."""

    opening: Opening | None = None  # noted in the store, so that the folder can be opened again

    def _run(self, session: Session, until: str, reporter: Reporter) -> bool:
        if self.opening is not None:
            ResultStore(self.out / "results.zarr").update_attrs(opening=self.opening.record())
        complete = super()._run(session, until, reporter)
        write_report(self.out / "results.zarr", self.out / "report.html")
        return complete


@dataclass(eq=False)
class Viewer:
    """A page that somebody has open."""

    name: str
    may_run: bool  # start and stop runs, change settings; others look on
    owner: bool = False  # gives others the right, and takes it
    who: str = field(default_factory=lambda: uuid4().hex)  # the same on all pages of one person


@dataclass
class Engine:
    """The state of the app."""

    roots: Roots
    session: Session | None = None
    out: Path | None = None
    opening: Opening | None = None  # how the data were opened, where it is known
    settings: dict[str, Any] = field(default_factory=dict)  # changed parameters of all stages, by name
    hyperparameters_file: Path | None = None  # instead of a search
    dose_weights_file: Path | None = None  # instead of measuring
    dose_weights_last_frequency_per_A: float | None = None  # of that file, where it needs to be told
    compared: dict[str, ResultStore] = field(default_factory=dict)  # stored runs to look at beside this one, by name
    viewers: list[Viewer] = field(default_factory=list)
    rights: dict[str, bool] = field(default_factory=dict)  # to run, as given or taken, by ``Viewer.who``
    numbers: dict[str, int] = field(default_factory=dict)  # of those without a name, by ``Viewer.who``
    example: Opening = field(default_factory=lambda: Opening("example"))
    checked: Run | None = None  # the last check of data before they are opened
    note: str = ""  # on how the folder of a finished run was found
    explored: Run | None = None  # the last preparation of a micrograph to try priors on; its result is the explorer
    opened: Run | None = None  # the last opening of data, for its progress or what was wrong
    first_tab: str = ""  # that a new page begins with
    version: int = 0  # goes up with every change that is not in a run

    def __post_init__(self) -> None:
        self._lock, self._reading = threading.RLock(), threading.RLock()
        self._read: dict[str, tuple[Any, xr.Dataset | None]] = {}  # stored results by name, and of which file they are
        self._whose: tuple[Any, str] = (None, "")  # see ``of_other_data``
        if self.out is None:
            self.out = self.roots.folders[0] / OUT

    def changed(self) -> None:
        """Let every page look again."""
        with self._lock:
            self.version += 1

    # what there is to see

    def stamp(self) -> tuple[Any, ...]:
        """Return what changes whenever there is something new to see."""
        runs = self.runs
        others = tuple((id(run), run.snapshot.version) for run in (self.opened, self.checked, self.explored) if run)
        return self.version, len(runs), others, tuple(run.snapshot.version for run in runs[-20:])

    @property
    def given(self) -> dict[str, Any]:
        """What a job is given instead of finding it, by the names of its arguments; None where it is found."""
        names = ("hyperparameters_file", "dose_weights_file", "dose_weights_last_frequency_per_A")
        return {name: getattr(self, name) for name in names}

    @property
    def runs(self) -> list[Run]:
        """All runs on the session, oldest first, those started in a notebook included."""
        return list(self.session.runs) if self.session else []

    @property
    def live(self) -> Run | None:
        """The run that is going on, the outermost where one is part of another; None if none is."""
        return next((run for run in self.runs if not run.snapshot.ended), None)

    @property
    def going(self) -> Run | None:
        """What is going on: a run, or data being opened or checked."""
        if self.live is not None:
            return self.live
        return next((run for run in (self.opened, self.checked) if run and not run.snapshot.ended), None)

    @property
    def can_pause(self) -> bool:
        """Whether what is going on can wait; files that are opened are read in one go, and what stops does not wait."""
        going = self.going
        return going is not None and not going.stopping and getattr(going.stage, "can_pause", True)

    @property
    def can_cancel(self) -> bool:
        """Whether something is going on that was not cancelled yet; what was stops at its next report or file."""
        going = self.going
        return going is not None and not going.stopping

    def last(self, kind: type[Stage]) -> Run | None:
        """Return the latest run of a kind of stage, however it stands."""
        return next((run for run in reversed(self.runs) if type(run.stage) is kind), None)

    def result(self, name: str) -> xr.Dataset | None:
        """Return the latest finished result called ``search``, ``dose_weights`` or ``validation``, if there is one.

        Those of the output folder are taken where the session has none; it is the same Dataset until the file changes.
        """
        run = self.session.latest(RESULTS[name]) if self.session else None
        if run is not None:
            return run.result
        store = self.store
        if store is None:
            return None
        with self._reading:
            stamp = store.path, store.stamp(name)
            if self._read.get(name, (None,))[0] != stamp:
                self._read[name] = stamp, store.read(name)
            return self._read[name][1]

    @property
    def store(self) -> ResultStore | None:
        """The stored results of the output folder, if there are any, and not of other data than are open."""
        return None if self.of_other_data else self._in_folder()

    def _in_folder(self) -> ResultStore | None:
        assert self.out is not None
        path = self.out / "results.zarr"
        return ResultStore(path, self.roots.folders) if path.is_dir() and self.roots.holds(path) else None

    @property
    def of_other_data(self) -> str:
        """What data the results in the output folder are of, in words, if these are not open but others; else empty."""
        store, session = self._in_folder(), self.session
        if store is None or session is None:
            return ""
        with self._reading:
            key = store.path, store.stamp(), session
            if self._whose[0] != key:
                self._whose = key, _whose(store, session.data)
            return self._whose[1]

    # what can be done

    def open(self, opening: Opening) -> Run:
        """Open data in the background; the session changes once they are open. A run that goes on ends first.

        Raises
        ------
        InputError
            Something is still running.
        """
        self._idle()
        run = Run(opening)
        self.opened = run
        threading.Thread(target=self._open, args=(run, opening), name="refmotion opening", daemon=True).start()
        self.changed()
        return run

    def _open(self, run: Run, opening: Opening) -> None:
        def opened() -> Dataset:
            data = opening.open(self.roots, run)
            self.take(data, opening)
            return data

        with suppress(BaseException):  # told by the run
            run.follow(opened)
        self.changed()

    def check(self, opening: Opening) -> Run:
        """Check data in the background, before they are opened; the result of the run is a ``Check``.

        Raises
        ------
        InputError
            Something is still running.
        """
        self._idle()
        run = self.checked = Run(Checking(opening))
        threading.Thread(target=self._check, args=(run, opening), name="refmotion check", daemon=True).start()
        self.changed()
        return run

    def _check(self, run: Run, opening: Opening) -> None:
        with suppress(BaseException):  # told by the run
            run.follow(lambda: opening.check(self.roots, run))
        self.changed()

    def take(self, data: Dataset | Session, opening: Opening | None = None) -> None:
        """Work on other data from now on: what was chosen or prepared for those before is gone."""
        session = data if isinstance(data, Session) else Session(data, cache_bytes=_cache_bytes(self.settings))
        with self._lock:
            before, explored = self.session, self.explored
            self.session, self.opening, self.note = session, opening, ""
            if self.checked is not None and self.checked.snapshot.ended:
                self.checked = None  # of what was in the form before these data were open
            if before is not None and before is not session:
                self.dose_weights_file = self.hyperparameters_file = self.explored = None
                self.dose_weights_last_frequency_per_A = None
                self.settings = {name: value for name, value in self.settings.items() if name not in OF_THE_DATA}
        if before is not None and before is not session:
            if explored is not None:
                explored.cancel()
            before.let_go()
        self.changed()

    def change(self, **settings: Any) -> None:
        """Change parameters; None goes back to the default.

        Raises
        ------
        InputError
            A value that is not allowed, or no such parameter.
        """
        for name, value in settings.items():
            kinds = [stage for stage in STAGES if name in stage.param]
            if not kinds:
                raise InputError(f"there is no parameter {name}")
            kinds[0].of({name: value})
        with self._lock:
            self.settings = {name: value for name, value in {**self.settings, **settings}.items() if value is not None}
            if any(settings.get(name) is not None for name in GIVEN):
                self.hyperparameters_file = None
        self.changed()

    def write_to(self, out: str | Path) -> None:
        """Choose the output folder.

        Raises
        ------
        InputError
            It lies outside the folders that may be used, or something is still running.
        """
        self._idle()
        self.out = self.roots.resolve(out)
        self.changed()

    def use_hyperparameters(self, path: Path | None) -> None:
        """Take hyperparameters of a file from now on, instead of those given in the settings; None searches.

        Raises
        ------
        InputError
            The file lies outside the folders that may be used, or does not hold what fits the open data.
        """
        path = path and self.roots.resolve(path)
        if path is not None and self.session is not None:
            mine = {name: value for name, value in self.settings.items() if name in HyperparameterSearch.param}
            with only_within(self.roots.folders):
                dose = self.session.data.movies_with_particles[0].dose_per_frame_e_A2
                read_prior(path, HyperparameterSearch(**mine), dose, "")
        with self._lock:
            self.hyperparameters_file = path
            if path is not None:
                self.settings = {name: value for name, value in self.settings.items() if name not in GIVEN}
        self.changed()

    def use_dose_weights(self, path: Path | None, last_frequency_per_A: float | None = None) -> None:
        """Take dose weights of a file from now on; None measures.

        ``last_frequency_per_A`` is that of the last bin of ``refm_empirical_dw.npy``, 1/Å, where the files beside it do
        not tell.

        Raises
        ------
        InputError
            The file lies outside the folders that may be used, or does not hold what fits the open data.
        """
        path = path and self.roots.resolve(path)
        if path is not None and self.session is not None:
            data = self.session.data
            box = check_reference(data.references[0])  # which a notebook may have opened elsewhere
            with only_within(self.roots.folders):
                read_weights(path, data.movies_with_particles, *box, last_frequency_per_A)
        with self._lock:
            self.dose_weights_file = path
            self.dose_weights_last_frequency_per_A = None if path is None else last_frequency_per_A
        self.changed()

    def run(self, until: str) -> Run:
        """Run all stages up to ``until`` (as `refmotion run --until`) into the output folder, in the background.

        Results that are there already, in the session or the folder, are taken, not computed again.

        Raises
        ------
        InputError
            No data are open, something is still running, or a link in the folder leads out of those that may be written.
        """
        assert until in UNTIL and self.out is not None
        with self._lock:
            self._idle()
            for path in self.out.glob("*"):
                self.roots.resolve(path)
            if self.session is None:
                raise InputError("no data are open; open some first")
            job = ReportedJob(
                self.session, self.roots.resolve(self.out), dict(self.settings), **self.given,
                image_root=self.session.data.root or self.out.parent, within=self.roots.folders, command="refmotion app",
                opening=self.opening and self.opening.placed(self.roots),
            )  # fmt: skip
            run = self.session.submit(job, until)
            run.watched = True  # by who started it: the first unfinished result may be there before a page looks again
        self.changed()
        return run

    def pause(self) -> None:
        """Let what is going on wait at its next report."""
        if self.can_pause and self.going is not None:
            self.going.pause()
            self.changed()

    def resume(self) -> None:
        """Let what was paused go on."""
        if self.going is not None:
            self.going.resume()
            self.changed()

    def cancel(self) -> None:
        """Stop what is going on; what is finished is kept."""
        for run in (self.opened, self.checked):
            if run is not None:
                run.cancel()
        for run in self.runs:
            if not run.snapshot.ended:
                run.cancel()
        self.changed()

    def _idle(self) -> None:
        going = self.going
        if going is not None:
            remedy = "wait for it" if going.stopping else "wait for it or cancel it first"
            raise InputError(f"{words_of(going)} is still {going.state}; {remedy}")

    # who is there

    def number(self, who: str) -> int:
        """Return the number of somebody without a name: in the order in which they first came."""
        with self._lock:
            return self.numbers.setdefault(who, len(self.numbers) + 1)

    def join(self, viewer: Viewer) -> None:
        """Count a page among the viewers, with the right that its viewer has by now."""
        with self._lock:
            self.viewers = [*self.viewers, viewer]
            self._settle(viewer)
        self.changed()

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer; what runs goes on."""
        with self._lock:
            self.viewers = [one for one in self.viewers if one is not viewer]
        self.changed()

    def allow(self, viewer: Viewer, may_run: bool) -> None:
        """Give a viewer the right to run, or take it, on all their pages, later ones too; ``Seat`` lets owners only."""
        with self._lock:
            self.rights = {**self.rights, viewer.who: may_run}
            for one in (viewer, *self.viewers):
                self._settle(one)
        self.changed()

    def _settle(self, viewer: Viewer) -> None:
        if not viewer.owner:
            viewer.may_run = self.rights.get(viewer.who, viewer.may_run)


def words_of(run: Run) -> str:
    """Return what is run, as people say it."""
    return WORDS.get(run.name, run.name)


def _cache_bytes(settings: dict[str, Any]) -> float:
    given = {"cache_size_GB": settings["cache_size_GB"]} if "cache_size_GB" in settings else {}
    return Execution(**given).cache_bytes


def _whose(store: ResultStore, data: Dataset) -> str:
    try:
        inputs = store.attrs.get("inputs")
    except InputError as error:
        return f"data that cannot be told ({error})"
    if inputs is None:
        return "data that are not recorded" if store.groups() else ""
    if describes(inputs, data):
        return ""
    return f"{inputs.get('particles')} particles of {dict(inputs.get('files', [])).get('particles', 'other files')}"
