"""Work on micrographs by the workers of a Dask cluster, each with a session of its own.

Workers read movies and write particles themselves: the folders must be there under the same names. What is held stays in the
memory of the worker that made it, and is made again elsewhere if that worker is lost.
"""

from __future__ import annotations

import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from platform import python_version_tuple
from threading import Condition, Lock, Semaphore
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from distributed import Client, Future, KilledWorker, WorkerPlugin, get_worker
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from refmotion_nb import __version__
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.numerics.room import reuse_freed_memory
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.bundles import Bundles, Given, Held, by_key, given
from refmotion_nb.stages.device import Device, choose_like
from refmotion_nb.stages.hosts import cache_bytes, hosts_of, never_pause, pause_again, sharing, workers_of
from refmotion_nb.stages.places import Found, Task
from refmotion_nb.stages.session import Session

AHEAD = 2  # micrographs per worker on their way: one in work, one being read
RECOUNTED_S = 1.0  # until workers are counted again: a scheduler tells of each of hundreds at length
GONE = (CommClosedError, ClosedClientError, CancelledError)  # what Dask raises once the scheduler is lost
_COMPUTING = Lock()  # a worker's: one task has all its threads

Item = TypeVar("Item")


class Workers:
    """The workers of a Dask cluster."""

    def __init__(
        self,
        client: Client,
        close: Callable[[], None] = lambda: None,
        spread: bool = False,
        cache_size_GB: str = "",
    ):
        """Take the client of a cluster; ``close`` is called when it is no longer needed, also if it cannot be used.

        If the session is to use a GPU, each worker takes that with most free memory; with ``spread`` workers are numbered from
        0 on, as those of a local cluster are, and take GPUs in turn. ``cache_size_GB`` is a
        machine's, shared by the workers there; by default it is as much as the session has here.

        Raises
        ------
        InputError
            There is no worker, or one has no, or another, version of this package or of what it stands on.
        """
        self.client = client
        self._close = close
        self._spread = spread
        self._cache_size_GB = cache_size_GB
        self._address = str(client.scheduler.address) if client.scheduler else "the given address"
        self._plugins: dict[int, tuple[weakref.ref[Session], WorkerSession, There]] = {}  # by the session's id
        self._placing = Lock()
        try:
            self._check()
        except BaseException:
            close()
            raise

    def __enter__(self) -> Workers:
        """Use it in a with block."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Let go of it."""
        self.close()

    @property
    def elsewhere(self) -> bool:
        """Whether they are a cluster's, which has machines of its own."""
        return not self._spread

    @property
    def about(self) -> str:
        """How many workers where, in words."""
        n = self.n_workers
        return f"{n} worker{'s' * (n > 1)} at {self._address}"

    @property
    def n_workers(self) -> int:
        """Number of workers now."""
        return len(workers_of(self.client))

    def place(self, session: Session) -> There:
        """Return the place where work for ``session`` is done; each worker is given its data, also those that come later.

        Workers begin afresh where the session has another device or cache than before, and let go of sessions that are gone.
        """
        with self._placing, _answering(self._address):  # stages may begin at a time
            for number, (alive, _, gone) in list(self._plugins.items()):
                if alive() is None:
                    self.client.unregister_worker_plugin(gone.plugin)
                    del self._plugins[number]
            _, known, there = self._plugins.get(id(session), (None, None, None))
            cache = self._cache_size_GB or session.cache_bytes
            wanted = WorkerSession(session.data, cache, hosts_of(self.client), session.device, self._spread)
            if there is None or known is None or known.settings != wanted.settings:
                if there is not None:
                    self.client.unregister_worker_plugin(there.plugin)
                there = There(self.client, self._address, session, f"refmotion-{uuid.uuid4().hex}")
                self._register(wanted, there.plugin)
                self._plugins[id(session)] = weakref.ref(session), wanted, there
        return there

    def each(
        self, work: Callable[[Item, int, Device], Any], items: Iterable[Item], device: Device
    ) -> Generator[Any, None, None]:
        """Yield ``work(item, threads, device)`` of each item in their order, or the InputError that it raised.

        For work that needs no session; threads and device are the worker's, the latter as ``device``.

        Raises
        ------
        InputError
            The cluster is gone.
        """
        hosts = hosts_of(self.client)

        def submit(item: Item) -> Future:
            with _answering(self._address):
                return self.client.submit(_without_session, work, item, device, self._spread, hosts, pure=False)

        for _, future in _ahead(self.client, submit, items):
            try:
                with _answering(self._address):
                    value = future.result()
            except KilledWorker:
                value = InputError("the workers that processed it died one after the other; give workers more memory")
            yield value

    def _register(self, plugin: WorkerSession, name: str) -> None:
        for attempt in range(3):
            try:
                self.client.register_plugin(plugin, name=name)
                return
            except CommClosedError:  # a worker has just died: the scheduler will have noticed
                if attempt == 2:
                    raise
                time.sleep(1)

    def close(self) -> None:
        """Take the data back from the workers; stop those that were started for this."""
        with suppress(Exception):  # whoever is gone has none, which Dask says in many ways
            for _, _, there in self._plugins.values():
                self.client.unregister_worker_plugin(there.plugin)
        self._plugins.clear()
        self._close()

    def _check(self) -> None:
        try:
            # a cluster that starts them waits for its queue; others are started by those who gave the address
            self.client.wait_for_workers(1, timeout=None if self.client.cluster else 60)
            found = self.client.run(_version)
        except (TimeoutError, CommClosedError, OSError):
            raise InputError(
                f"the Dask cluster at {self._address} has no workers; start some, then run again"
            ) from None
        except ImportError as error:
            raise InputError(f"a Dask worker cannot use this package ({error}); install it where workers run") from None
        for worker, theirs in found.items():
            if theirs != (ours := _version()):
                raise InputError(f"the Dask worker {worker} has {theirs}, here is {ours}; install the same")


class WorkerSession(WorkerPlugin):
    """What a worker keeps for a session of the client: one like it, made when it is first needed."""

    def __init__(self, data: Dataset, cache: float | str, workers: Counter[str], device: Device, spread: bool = False):
        """Take the data, a machine's cache (bytes, or as ``cache_size_GB``), workers by host, and the session's device.

        A worker takes such a device of its own machine; with ``spread`` the GPU that its number falls on, of those that align.
        """
        # tables of the input are for those who write them again: a gigabyte for a million particles, to every worker
        self._data, self._cache, self._workers = replace(data, tables=(), cs_rows=()), cache, workers
        self._device, self._spread = device, spread

    @property
    def settings(self) -> tuple[Any, ...]:
        """What the session of a worker is made with, beside the data."""
        return self._cache, self._device.kind, self._device.oversubscription_GB, self._device.slicer is not None

    def setup(self, worker: Any) -> None:
        """Begin on a worker."""
        self._threads, self._folder = worker.state.nthreads, worker.local_directory
        self._name = worker.name
        self._sharing = sharing(self._workers, worker)
        self._cache_bytes = cache_bytes(self._cache, self._sharing, worker)
        never_pause(worker)
        self._lock = Lock()
        self._session: Session | None = None
        self._keeping = ExitStack()
        self.solving: Any = nullcontext()
        self.berths = Berths()
        self.computing = Lock()

    def teardown(self, worker: Any) -> None:
        """End on a worker: give the memory back."""
        self._keeping.close()
        self._session = None
        if not any(isinstance(other, WorkerSession) for other in worker.plugins.values()):
            pause_again(worker)

    @property
    def session(self) -> Session:
        """The session of this worker."""
        with self._lock:
            if self._session is None:
                one_blas_thread().__enter__()  # for good: the same bits as in one process
                reuse_freed_memory()
                device = choose_like(self._device, self._spread, self._name, self._sharing)
                if device.is_gpu:
                    self.solving = Semaphore(device.at_once)
                self._session = Session(self._data, self._threads, self._cache_bytes, self._folder, device=device)
                self._keeping.enter_context(self._session.memory_handed_on())
            self._session.device.activate()
            return self._session


class Berths:
    """Lets in as many micrographs at a time as a device has room for."""

    def __init__(self) -> None:
        self._inside: list[int] = []  # bytes of each
        self._changed = Condition()

    @contextmanager
    def taken(self, name: str, n_bytes: int, together: Callable[[dict[str, int]], int]) -> Iterator[None]:
        """Wait for room for a micrograph, and hold it as long as the context lasts; ``together`` as a session's.

        Raises
        ------
        InputError
            It alone does not fit.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._inside) < together({name: max(n_bytes, *self._inside, 0)}))
            self._inside.append(n_bytes)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(n_bytes)
                self._changed.notify_all()


@dataclass
class Outcome:
    """What became of a task: its value, or why its micrograph cannot be used."""

    value: Any
    failed: str = ""
    worker: str = ""  # address of who worked on it


class There:
    """The workers of a cluster, at work for one session."""

    def __init__(self, client: Client, address: str, session: Session, plugin: str):
        """Work for ``session``, which workers know as ``plugin``; ``address`` is the scheduler's."""
        self.plugin = plugin
        self._client, self._address = client, address
        self._session: Session = weakref.proxy(session)  # which holds on to workers, not they to it
        self._read_at: dict[str, str] = {}  # the worker that read a micrograph last, and may have kept it
        self._bundles = Bundles(client)

    def each(self, names: list[str], settings: Alignment, task: Task) -> Found:
        """Yield name and value, see ``Place``; as many tasks are on their way as keep all workers busy."""
        work = self._work(names, settings, task)
        for name, future in _ahead(self._client, lambda name: self._begin(name, work), names):
            yield name, future and self._outcome(name, future).value

    def hold(self, names: list[str], settings: Alignment, task: Task) -> Found:
        """Yield name and held value, see ``Place``."""
        work = self._work(names, settings, task)
        futures = [self._begin(name, work) for name in names]
        reasons = [future and self._submit(_reason, future) for future in futures]
        for name, future, reason in zip(names, futures, reasons):
            if future and reason:
                self._outcome(name, reason)
            yield name, future and Held(future)

    def apply(self, function: Callable[..., Any], *columns: list[Any]) -> list[Any]:
        """Return the held values of all rows, made where the first of a row is."""
        rows, found = [*zip(*columns)], dict[int, Held]()
        with _answering(self._address):
            threads = sum(worker["nthreads"] for worker in workers_of(self._client).values())
            bundles = self._bundles.of([row[0] for row in rows], threads)
        for bundle in bundles:
            put, futures = given(rows[i] for i in bundle)
            future = self._submit(_call, function, put, *futures)
            found |= {i: Held(future, k) for k, i in enumerate(bundle)}
        return [found[i] for i in range(len(rows))]

    def values(self, held: list[Any]) -> list[Any]:
        """Return what is held."""
        futures = by_key(held)
        try:
            with _answering(self._address):
                outcomes = dict(zip(futures, self._client.gather([*futures.values()])))
        except KilledWorker as error:
            raise InputError(f"{error}; give workers more memory") from None
        return [one.of(outcomes[one.future.key].value) for one in held]

    def _begin(self, name: str, work: Future) -> Future | None:
        """Have a task done, by the worker that read the micrograph before if it is not too busy; not if it has failed."""
        if name in self._session.failed:
            return None
        there = {"workers": [self._read_at[name]], "allow_other_workers": True} if name in self._read_at else {}
        return self._submit(_on_micrograph, name, work, **there)

    def _submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
        with _answering(self._address):
            return self._client.submit(function, self.plugin, *arguments, pure=False, **options)

    def _work(self, names: list[str], settings: Alignment, task: Task) -> Future:
        """Return, held, what is to be done to every micrograph: it is sent once, and workers hand it on to each other."""
        session = self._session
        session.keys.of(names)  # before any is read, as in one process
        return self._submit(
            Work, settings, task, session.grey_scale(settings), session.keeps_micrographs, session.crop_to
        )

    def _outcome(self, name: str, future: Future) -> Outcome:
        """Wait for the outcome of a task; note if its micrograph cannot be used."""
        try:
            with _answering(self._address):
                outcome = future.result()
        except KilledWorker:
            outcome = Outcome(
                None, f"the workers that processed {name} died one after the other; give workers more memory"
            )
        if outcome.failed:
            self._session.failed[name] = outcome.failed
        if outcome.worker:
            self._read_at[name] = outcome.worker
        return outcome


def _ahead(client: Client, submit: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Yield items with their futures in order, as many submitted as keep all workers busy; at the end the rest is cancelled."""
    left, under_way = deque(items), deque[tuple[Item, Future]]()
    most, counted = 0, -np.inf
    try:
        while left or under_way:
            if time.monotonic() > counted + RECOUNTED_S:
                most, counted = 2 * AHEAD * max(1, len(workers_of(client))), time.monotonic()
            while left and len(under_way) < most:
                under_way.append((left[0], submit(left.popleft())))
            yield under_way.popleft()
    finally:
        with suppress(*GONE):
            client.cancel([future for _, future in under_way if future])


def _without_session(
    work: Callable[[Any, int, Device], Any], item: Any, like: Device, spread: bool, hosts: Counter[str]
) -> Any:
    worker = get_worker()
    with _COMPUTING, one_blas_thread():
        try:
            return work(item, worker.state.nthreads, choose_like(like, spread, worker.name, sharing(hosts, worker)))
        except InputError as error:
            return error


def _version() -> str:
    """Return the versions that have to be alike: of Python, NumPy and pandas those that read what others have pickled."""
    numpy, pandas = (module.__version__.partition(".")[0] for module in (np, pd))
    return f"refmotion_nb {__version__}, Python {'.'.join(python_version_tuple()[:2])}, NumPy {numpy}, pandas {pandas}"


def _mine(plugin: str) -> WorkerSession:
    return cast(WorkerSession, get_worker().plugins[plugin])


@dataclass(frozen=True)
class Work:
    """What is to be done to micrographs."""

    plugin: str
    settings: Alignment
    task: Task
    factors: np.ndarray  # (reference,) of grey scale
    keeps: bool  # micrographs that are read, if they fit
    crop_to: int  # as of the session


def _on_micrograph(plugin: str, name: str, work: Work) -> Outcome:
    mine = _mine(plugin)
    session = mine.session
    session.crop_to = work.crop_to
    with mine.berths.taken(name, session.device_bytes(name, work.settings), session.together):
        session.keeps_micrographs = work.keeps
        session.failed.pop(name, None)  # it is tried again as often as the client asks
        try:
            micrograph = session.micrograph(name, work.settings, work.factors)
        except InputError:
            if name not in session.failed:
                raise
            return Outcome(None, session.failed[name], get_worker().address)
        with mine.computing, session.device.telling_of_memory(f"{name} was worked on"):
            value = work.task(session, micrograph)
        del micrograph  # before the next one has its room
        return Outcome(value, worker=get_worker().address)


def _reason(plugin: str, outcome: Outcome) -> Outcome:
    return replace(outcome, value=None)


def _call(plugin: str, function: Callable[..., Any], rows: list[list[Any]], *outcomes: Outcome) -> Outcome:
    session, have, values = _mine(plugin).session, [outcome.value for outcome in outcomes], list[Any]()
    for row in rows:
        arguments = [one.of(have) if isinstance(one, Given) else one for one in row]
        with _mine(plugin).solving, session.device.telling_of_memory("micrographs were worked on"):
            values.append(function(session, *arguments))
    return Outcome(values)


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """Say in words that a scheduler is gone, where Dask would raise one of many errors."""
    try:
        yield
    except GONE:
        raise InputError(
            f"the Dask scheduler at {address} is gone; start it again, then run again: finished micrographs are kept"
        ) from None
