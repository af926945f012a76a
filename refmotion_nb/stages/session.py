"""A session: one dataset with what its stages have in common, so that nothing is read or computed twice."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from copy import copy
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from threading import Event, Lock, RLock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refmotion_nb.data.limits import cpu_count
from refmotion_nb.data.schema import OPENED, Dataset, InputError, Movie, in_words, wanted
from refmotion_nb.data.spool import Spool
from refmotion_nb.numerics.backend import to_host
from refmotion_nb.numerics.device_sizes import spectra_bytes
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.numerics.room import Room
from refmotion_nb.numerics.threads import in_order
from refmotion_nb.stages.alignment import Alignment, MotionPrior, Tracks, track
from refmotion_nb.stages.base import Reporter, Stage, Stopwatch
from refmotion_nb.stages.device import Device, Kept
from refmotion_nb.stages.device import choose as choose_device
from refmotion_nb.stages.grey_scale import bring_to_scale, choose, scale_factors
from refmotion_nb.stages.kept import KeptMicrographs
from refmotion_nb.stages.keys import DataKeys
from refmotion_nb.stages.micrograph import Micrograph, device_sizes, load_micrograph, smallest_box
from refmotion_nb.stages.places import Found, Here, Place, Task
from refmotion_nb.stages.references import PreparedReference, prepare_references
from refmotion_nb.stages.runs import Run

if TYPE_CHECKING:
    from refmotion_nb.stages.workers import Workers

TRACKS_SHARE = 0.1  # of the cache, for trajectories
PATIENCE_S = 60.0  # with a run that goes on as Python ends, until its next report


class Session:
    """Prepared references, and what was read or found of micrographs, kept within a memory limit.

    Micrographs that do not fit are read again, arrays given to ``keep`` go to disk. Outside the limit are the references
    and what is in hand: at most two micrographs with their windows.
    """

    def __init__(
        self,
        data: Dataset,
        threads: int = 0,
        cache_bytes: float = 1e9,
        spill_folder: str | Path | None = None,
        workers: Workers | None = None,
        device: str | Device = "auto",
    ):
        """Hold ``data``; ``threads`` 0 takes all processors, ``cache_bytes`` bounds what is kept in memory.

        What goes to disk goes to ``spill_folder``, by default the system's for temporary files. With ``workers`` (see
        ``execute``) search, dose weights and correction are theirs to do. ``device`` is auto, cpu, cuda or cuda:N.

        Raises
        ------
        InputError
            There is no such device, ``data`` is no data set, or processors or memory are below 0.
        """
        for what, value in (("threads", threads), ("cache_bytes", cache_bytes)):
            if not value >= 0:
                raise InputError(f"{what} is {value}; give a number from 0 on")
        self.data = wanted(data, Dataset, "data", OPENED)
        self.workers = workers
        elsewhere = bool(workers and workers.elsewhere)
        self.device = device if isinstance(device, Device) else choose_device(device, elsewhere=elsewhere)
        self.threads = threads or cpu_count()
        self.cache_bytes = cache_bytes
        self.spool = Spool(cache_bytes, spill_folder)
        self._room, self._gain = Room(), Kept(self.device.put)
        self._references: dict[bool, list[PreparedReference]] = {}
        self._factors: dict[tuple[str, ...], np.ndarray] = {}  # of grey scale (reference,), by how micrographs are read
        self.kept = KeptMicrographs(self.spool)
        self.keeps_micrographs = True  # those read from now on, if they fit
        self.crop_to = 0  # px to which patches are Fourier-cropped where a stage makes do with that; 0: they never are
        self._lock = Lock()
        self._preparing, self._scaling = Lock(), RLock()
        self.tracks: dict[tuple[str, str], Tracks] = {}  # by micrograph and key of prior and settings
        self._tracks_bytes = 0
        self.micrographs: dict[str, tuple[Movie, xr.Dataset]] = {m.micrograph: (m, p) for m, p in data.micrographs()}
        self.keys = DataKeys(data, self.micrographs)
        self.failed: dict[str, str] = {}  # micrographs that could not be used, and why
        self.seconds: dict[str, float] = {}
        self._reading = Stopwatch()
        self.warnings: list[str] = []
        self._scale_warnings: list[str] = []
        self.runs: list[Run] = []  # of stages and jobs, oldest first
        self._waiting: deque[tuple[Run, Any]] = deque()
        self._worker: Thread | None = None
        weakref.finalize(self, _end_with_process, weakref.ref(self))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the micrographs that have particles."""
        return iter(self.micrographs)

    @property
    def place(self) -> Place:
        """Where stages have their work on micrographs done."""
        return self.workers.place(self) if self.workers else Here(self)

    def particle_count(self, name: str) -> int:
        """Return how many particles a micrograph has."""
        return int(self.micrographs[name][1].sizes["particle"])

    def begin(self, threads: int, cache_bytes: float, device: Device | None = None) -> None:
        """Start afresh for a job with its own processors, memory and device (the same unless given).

        What failed is tried again, old warnings are gone.
        """
        self.threads = threads
        if device is not None:
            with self._preparing:
                if device.words != self.device.words:
                    self._references.clear()
                    self.kept.leave_devices()
                self.device, self._gain = device, Kept(device.put)
        self.cache_bytes = self.spool.limit_bytes = cache_bytes
        self.kept.make_room(0)
        self.failed.clear()
        self.warnings[:] = self._scale_warnings

    def let_go(self) -> None:
        """Give up what is kept in memory: references, micrographs, trajectories; it is read or found again when needed."""
        with self._preparing:
            self._references.clear()
            self._gain = Kept(self.device.put)
        self.kept.clear()
        with self._lock:
            self.tracks.clear()
            self.spool.release(self._tracks_bytes)
            self._tracks_bytes = 0

    def submit(self, stage: Any, *inputs: Any, reporter: Reporter | None = None, **options: Any) -> Run:
        """Run a stage on this session, or a job, in the background, after those submitted before; return its run at once.

        ``inputs`` and ``options`` are what ``stage.run`` takes beside the session; ``run.wait()`` gives the result. A stage
        runs with the settings that it has now, whatever becomes of them before its turn comes.
        """
        asked, arguments = stage, inputs
        if isinstance(stage, Stage):
            stage, arguments = copy(stage), (self, *inputs)
        elif not callable(getattr(stage, "run", None)):
            raise InputError(f"stage is {in_words(stage)}; give a stage or a job")
        asked.ran = stage.ran = run = Run(stage, inputs, reporter)
        self.runs.append(run)
        with self._lock:
            self._waiting.append((run, lambda: stage.run(*arguments, reporter=run, **options)))
            if self._worker is None:
                self._worker = Thread(target=self._work, name="refmotion session", daemon=True)
                self._worker.start()
        return run

    def _work(self) -> None:
        """Run what waits; a thread that waited for more would keep the session for ever."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                run, call = self._waiting.popleft()
            try:
                call()
            except BaseException as error:  # the run tells it to who waits
                run.fail(error)

    def latest(self, kind: type[Stage]) -> Run | None:
        """Return the last run of a kind of stage that ended well."""
        done = (run for run in reversed(self.runs) if type(run.stage) is kind and run.state == "done")
        return next(done, None)

    def found(self, stage: Stage, *inputs: Any) -> xr.Dataset | None:
        """Return what a run with these very settings and inputs found, if there was one."""
        for run in reversed(self.runs):
            if type(run.stage) is type(stage) and run.state == "done" and run.settings == stage.settings():
                if len(run.inputs) == len(inputs) and all(map(_same, run.inputs, inputs)):
                    return run.result
        return None

    def adopt(self, stage: Stage, *inputs: Any, result: xr.Dataset) -> None:
        """Take a result that was found elsewhere, by an earlier run or by other means, as that of the latest run of its kind."""
        last = self.latest(type(stage))
        if last is None or not _same(last.result, result):
            self.runs.append(Run.of_result(stage, inputs, result))

    def nothing_usable(self, names: list[str]) -> InputError:
        """Return the error to raise where none of these micrographs can be used."""
        return InputError(
            f"no movie can be used; the first: {next(self.failed[name] for name in self if name in names)}"
        )

    def references(self, relion: bool) -> list[PreparedReference]:
        """Return the references as they are, ready for slicing; RELION's energy needs them to the Nyquist limit."""
        with self._preparing:
            if relion not in self._references:
                start = perf_counter()
                prepared = prepare_references(self.data, relion, self.threads)
                self.device.check_references(sum(volume.ft.nbytes for one in prepared for volume in one.volumes))
                device = self.device.slices_on
                with device.current(), device.telling_of_memory("references were brought there"):
                    self._references[relion] = [one.on(device.put) for one in prepared]
                self.seconds["preparing references"] = perf_counter() - start
            return self._references[relion]

    def grey_scale(self, settings: Alignment) -> np.ndarray:
        """Return what brings each reference to the grey scale of the first (reference,); all 1 for RELION's energy.

        It is measured on a few micrographs, which are kept for the stages if they fit.

        Raises
        ------
        InputError
            The references cannot be used.
        """
        n = len(self.data.references)
        if n == 1 or settings.relion:
            return np.ones(n, np.float32)
        how = settings.how_read
        with self._scaling:
            if how not in self._factors:
                names = choose(self.micrographs, n)
                read = self.several(names, settings, _itself, 1, lambda name: self._read(name, settings))
                factors, warnings = scale_factors(filter(None, map(itemgetter(1), read)), n, self.threads)
                for kept in filter(None, [self.kept.get((name, *how)) for name in names]):
                    bring_to_scale(kept, factors)
                self._factors[how] = factors
                self._scale_warnings += [line for line in warnings if line not in self._scale_warnings]
                self.warnings += [line for line in self._scale_warnings if line not in self.warnings]
        return self._factors[how]

    def extent_A(self, settings: Alignment) -> float:
        """Return the physical width of the boxes that particles are cut out in.

        Raises
        ------
        InputError
            A box size that is odd, too small for the reference's mask, or larger than a movie.
        """
        references = self.references(settings.relion)
        if not settings.box_size:
            return max(r.extent_A for r in references)
        extent, field = settings.box_size * self._least_A[0], self._least_A[1]
        needed = max(min(2 * r.mask_radius_A, r.extent_A) for r in references)  # no mask is one to the corners
        if settings.box_size % 2 or not needed <= extent <= field:
            raise InputError(
                f"box_size {settings.box_size} is {extent:.4g} Å wide, the mask {needed:.4g} Å, the least movie {field:.4g} Å; "
                "give an even size in between with a margin for the particle's defocused signal, or 0 for the reference's extent"
            )
        return extent

    @cached_property
    def _least_A(self) -> tuple[float, float]:
        """The finest pixel and the least side of a movie: every micrograph's box is asked for, and there are thousands."""
        movies = self.data.movies_with_particles
        return min(m.pixel_size_A for m in movies), min(min(m.height, m.width) * m.pixel_size_A for m in movies)

    def micrograph(self, name: str, settings: Alignment, factors: np.ndarray | None = None) -> Micrograph:
        """Return a micrograph in memory, read now or kept from before.

        ``factors`` bring references to one grey scale, measured now unless given.

        Raises
        ------
        InputError
            Its movie or gain cannot be used; that is remembered in ``failed``.
        """
        factors = self.grey_scale(settings) if factors is None else factors
        if name in self.failed:  # also where it was kept before that
            raise InputError(self.failed[name])
        kept = self.kept.get((name, *settings.how_read))
        self.device.activate()
        if kept is not None and kept.spectra.box >= settings.least_box(kept.placement.box):
            return kept.on(self.device.put)
        return self._read(name, settings, factors)

    def _read(self, name: str, settings: Alignment, factors: np.ndarray | None = None) -> Micrograph:
        """Read a micrograph and keep it if it fits; without ``factors`` its references are of their own grey scales."""
        if name in self.failed:
            raise InputError(self.failed[name])
        movie, particles = self.micrographs[name]
        references = self.references(settings.relion)
        extent_A = self.extent_A(settings)
        self.device.activate()
        self.kept.make_room_on(self.device)
        with self.device.telling_of_memory(f"{name} was read"), self._reading:
            try:
                micrograph = load_micrograph(
                    movie, particles, self.data.optics, references, extent_A=extent_A, relion=settings.relion,
                    recenter=settings.recenter, repair=settings.repair_hot_pixels, threads=self.threads, device=self.device,
                    room=self._room, keep=self._gain.put, kept_px=self._kept_px(movie, settings),
                )  # fmt: skip
            except InputError as error:
                self.failed[name] = str(error)
                raise
        self.seconds["reading movies"] = self._reading.seconds
        if factors is not None and (factors != 1).any():
            bring_to_scale(micrograph, factors)
        if self.keeps_micrographs:
            self.kept.add((name, *settings.how_read), micrograph, self.device)
        return micrograph

    def _kept_px(self, movie: Movie, settings: Alignment) -> int:
        """Return the box in which the transforms of a movie's patches are kept, px."""
        extent_A = self.extent_A(settings)
        box = movie_box(extent_A, movie.pixel_size_A)
        if settings.relion or not self.crop_to:
            return box
        least = smallest_box(box, box * movie.pixel_size_A, self.references(settings.relion))
        return min(box, max(self.crop_to, settings.least_box(box), least))

    def memory_handed_on(self) -> AbstractContextManager[None]:
        """Keep the memory of micrographs for the next ones, as long as the context lasts."""
        return self._room.open()

    def walk(self, names: list[str], settings: Alignment) -> Found:
        """Yield micrographs by name while the next one is being read; None for one that cannot be used (see ``failed``).

        Raises
        ------
        InputError
            The references cannot be used.
        """
        return self.several(names, settings, _itself, in_hand=1)

    def device_bytes(self, name: str, settings: Alignment) -> int:
        """Return what a micrograph takes on the GPU, bytes; nothing where the device is none."""
        if not self.device.is_gpu:
            return 0
        references, extent, reach = self.references(settings.relion), self.extent_A(settings), settings.window_reach_A
        movie, kept_px = self.micrographs[name][0], self._kept_px(self.micrographs[name][0], settings)
        return device_sizes(movie, self.particle_count(name), references, extent, reach, kept_px).total

    def together(self, sizes: dict[str, int]) -> int:
        """Return how many micrographs of these sizes may be on the device at a time, beside the references if they are there."""
        if self.device.slicer:
            return self.device.together(sizes)
        volumes = (volume for some in list(self._references.values()) for one in some for volume in one.volumes)
        return self.device.together(sizes, sum(volume.ft.nbytes for volume in volumes))

    def several(
        self, names: list[str], settings: Alignment, task: Task, in_hand: int = 0,
        read: Callable[[str], Micrograph] | None = None,
    ) -> Found:  # fmt: skip
        """Yield name and ``task(session, micrograph)`` in order; None for one that cannot be used (see ``failed``).

        There are as many micrographs at a time as there is room for, ``in_hand`` of whoever asks included. Once it is closed no
        task is begun, and those under way are waited for. ``read`` is ``micrograph`` unless given.
        """
        self.keys.of(names)  # a movie that changes once it was read does not pass for what was read
        stopped = Event()

        def work(name: str) -> Any:
            try:
                micrograph = read(name) if read else self.micrograph(name, settings)
            except InputError:
                if name not in self.failed:
                    raise
                return None
            with self.device.telling_of_memory(f"{name} was worked on"):
                return None if stopped.is_set() else task(self, micrograph)

        self.device.activate()
        at_once = self.together({name: self.device_bytes(name, settings) for name in names})
        # with one at a time, one has to be gone before the next one comes
        found = in_order(work, names, at_once - in_hand if at_once > 1 else 0)
        with self._room.open(self._largest(names, settings)), closing(found):
            try:
                for name, value in found:  # not ``yield from``: it would wait before this is told to stop
                    yield name, value
                    del value
            finally:
                stopped.set()
        self._tell_of_device()

    def _largest(self, names: list[str], settings: Alignment) -> int:
        """Return the size of the transforms of the largest of these micrographs."""
        sizes = [
            spectra_bytes(self.particle_count(name) * movie.n_frames, self._kept_px(movie, settings))
            for name, movie in ((name, self.micrographs[name][0]) for name in names)
        ]
        return max(sizes, default=0)

    def _tell_of_device(self) -> None:
        self.warnings += [line for line in self.device.warnings if line not in self.warnings]

    def track(self, micrograph: Micrograph, settings: Alignment, prior: MotionPrior) -> Tracks:
        """Return the final trajectories of a micrograph, found now or before."""
        self.device.activate()
        key = (micrograph.movie.micrograph, settings.track_key(prior))
        if (known := self.tracks.get(key)) is not None:
            return known
        found = track(micrograph, settings, prior, self.threads)
        size = found.displacement_A.nbytes
        if self._tracks_bytes + size <= TRACKS_SHARE * self.cache_bytes:
            self.kept.make_room(size)
            with self._lock:
                if key not in self.tracks and self.spool.reserve(size):
                    self.tracks[key] = found
                    self._tracks_bytes += size
        return found

    @contextmanager
    def setting_aside(self, n_bytes: int) -> Iterator[None]:
        """Keep memory of the limit free for what a stage makes itself, as long as the context lasts; micrographs make room."""
        self.kept.make_room(n_bytes)
        with self.spool.taking(n_bytes):
            yield

    def keep(self, array: np.ndarray) -> np.ndarray:
        """Return an array's numbers kept for the stage at work: in memory, for which micrographs make room, or on disk.

        Raises
        ------
        OSError
            The disk is full.
        """
        self.kept.make_room_on(self.device)
        if self.device.keeps(array):
            return array
        self.kept.make_room(array.nbytes)
        return self.spool.keep(to_host(array))


def _end_with_process(alive: weakref.ref[Session]) -> None:
    """Stop what goes on in the background as Python ends, which would abort the process where a thread is in compiled code."""
    session = alive()
    if session is not None and (worker := session._worker) is not None:
        for run in session.runs:
            run.cancel()
        worker.join(PATIENCE_S)


def _itself(_: Session, micrograph: Micrograph) -> Micrograph:
    return micrograph


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, xr.Dataset) and a.identical(b)) or (not isinstance(a, xr.Dataset) and a == b)
