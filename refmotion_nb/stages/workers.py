"""Work on micrographs by the workers of a Dask cluster, each with a session of its own.

Workers read movies and write particles themselves: the folders must be there under the same names. What is held stays in the
memory of the worker that made it, and is made again elsewhere if that worker is lost.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from distributed import Client, Future, KilledWorker, WorkerPlugin, get_worker
from distributed.comm import CommClosedError

from refmotion_nb import __version__
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.stages.places import Task
from refmotion_nb.stages.session import Session

if TYPE_CHECKING:
    from refmotion_nb.stages.alignment import Alignment

AHEAD = 2  # micrographs per worker on their way: one in work, one being read


class Workers:
    """The workers of a Dask cluster."""

    def __init__(self, client: Client, close: Callable[[], None] = lambda: None):
        """Take the client of a cluster; ``close`` is called when it is no longer needed.

        Raises
        ------
        InputError
            There is no worker, or one has no, or another, version of this package.
        """
        self.client = client
        self._close = close
        self._plugins: dict[int, tuple[Session, str]] = {}
        self._check()

    def __enter__(self) -> Workers:
        """Use it in a with block."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Let go of it."""
        self.close()

    @property
    def about(self) -> str:
        """How many workers where, in words."""
        n = self.n_workers
        return f"{n} worker{'s' * (n > 1)} at {self._address}"

    @property
    def _address(self) -> str:
        scheduler: Any = self.client.scheduler
        return str(scheduler.address) if scheduler else "the given address"

    @property
    def n_workers(self) -> int:
        """Number of workers now."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def place(self, session: Session) -> There:
        """Return the place where work for ``session`` is done; each worker is given its data, also those that come later."""
        if id(session) not in self._plugins:
            name = f"refmotion-{uuid.uuid4().hex}"
            hosts = [worker["host"] for worker in self.client.scheduler_info(n_workers=-1)["workers"].values()]
            share = session.cache_bytes / max(map(hosts.count, hosts), default=1)
            self._register(WorkerSession(session.data, share, session.device.kind), name)
            self._plugins[id(session)] = session, name  # the session too, so that no other takes its id
        return There(self.client, session, self._plugins[id(session)][1])

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
        for _, name in self._plugins.values():
            with suppress(OSError, ValueError, RuntimeError):  # whoever is gone has none
                self.client.unregister_worker_plugin(name)
        self._plugins.clear()
        self._close()

    def _check(self) -> None:
        try:
            self.client.wait_for_workers(1, timeout=60)
            found = self.client.run(_version)
        except (TimeoutError, CommClosedError, OSError):
            raise InputError(
                f"the Dask cluster at {self._address} has no workers; start some, then run again"
            ) from None
        except ImportError as error:
            raise InputError(f"a Dask worker cannot use this package ({error}); install it where workers run") from None
        for worker, version in found.items():
            if version != __version__:
                raise InputError(
                    f"the Dask worker {worker} has version {version} of refmotion_nb, this is {__version__}; install the same"
                )


class WorkerSession(WorkerPlugin):
    """What a worker keeps for a session of the client: one like it, made when it is first needed."""

    def __init__(self, data: Dataset, cache_bytes: float, device: str):
        """Take the data, the memory for what is kept, and the word for the device to use."""
        self._data, self._cache_bytes, self._device = data, cache_bytes, device

    def setup(self, worker: Any) -> None:
        """Begin on a worker."""
        self._threads, self._folder = worker.state.nthreads, worker.local_directory
        self._lock = Lock()
        self._session: Session | None = None
        self.turn = Semaphore(AHEAD)
        self.computing = Lock()

    def teardown(self, worker: Any) -> None:
        """End on a worker: give the memory back."""
        self._session = None

    @property
    def session(self) -> Session:
        """The session of this worker."""
        with self._lock:
            if self._session is None:
                one_blas_thread().__enter__()  # for good: the same bits as in one process
                self._session = Session(self._data, self._threads, self._cache_bytes, self._folder, device=self._device)
            self._session.device.activate()
            return self._session


@dataclass
class Outcome:
    """What became of a task: its value, or why its micrograph cannot be used."""

    value: Any
    failed: str = ""


class There:
    """The workers of a cluster, at work for one session."""

    def __init__(self, client: Client, session: Session, plugin: str):
        """Work for ``session``, which workers know as ``plugin``."""
        self._client, self._session, self._plugin = client, session, plugin

    def each(self, names: list[str], settings: Alignment, task: Task) -> Iterator[tuple[str, Any]]:
        """Yield name and value, see ``Place``; as many tasks are on their way as keep all workers busy."""
        factors = self._session.grey_scale(settings)
        left, under_way = deque(names), deque[tuple[str, Future]]()
        try:
            while left or under_way:
                while left and len(under_way) < 2 * AHEAD * self._n_workers:
                    under_way.append((left[0], self._submit_one(left.popleft(), settings, task, factors)))
                name, future = under_way.popleft()
                yield name, self._outcome(name, future).value
        finally:
            self._client.cancel([future for _, future in under_way])

    def hold(self, names: list[str], settings: Alignment, task: Task) -> Iterator[tuple[str, Any]]:
        """Yield name and held value, see ``Place``."""
        factors = self._session.grey_scale(settings)
        futures = [self._submit_one(name, settings, task, factors) for name in names]
        reasons = [self._client.submit(_reason, future, pure=False) for future in futures]
        for name, future, reason in zip(names, futures, reasons):
            self._outcome(name, reason)
            yield name, future

    def apply(self, function: Callable[..., Any], *columns: list[Any]) -> list[Any]:
        """Return the held values of all rows, made where the values they need are."""
        return [self._client.submit(_call, self._plugin, function, *row, pure=False) for row in zip(*columns)]

    def values(self, held: list[Any]) -> list[Any]:
        """Return what is held."""
        try:
            return [outcome.value for outcome in self._client.gather(held)]
        except KilledWorker as error:
            raise InputError(f"{error}; give workers more memory") from None

    @property
    def _n_workers(self) -> int:
        return max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def _submit_one(self, name: str, settings: Alignment, task: Task, factors: np.ndarray) -> Future:
        return self._client.submit(_on_micrograph, self._plugin, name, settings, task, factors, pure=False)

    def _outcome(self, name: str, future: Future) -> Outcome:
        """Wait for the outcome of a task; note if its micrograph cannot be used."""
        try:
            outcome = future.result()
        except KilledWorker:
            outcome = Outcome(
                None, f"the workers that processed {name} died one after the other; give workers more memory"
            )
        if outcome.failed:
            self._session.failed[name] = outcome.failed
        return outcome


def _version() -> str:
    import refmotion_nb

    return refmotion_nb.__version__


def _mine(plugin: str) -> WorkerSession:
    return cast(WorkerSession, get_worker().plugins[plugin])


def _on_micrograph(plugin: str, name: str, settings: Alignment, task: Task, factors: np.ndarray) -> Outcome:
    mine = _mine(plugin)
    with mine.turn:
        session = mine.session
        session.failed.pop(name, None)  # it is tried again as often as the client asks
        try:
            micrograph = session.micrograph(name, settings, factors)
        except InputError:
            if name not in session.failed:
                raise
            return Outcome(None, session.failed[name])
        with mine.computing:
            return Outcome(task(session, micrograph))


def _reason(outcome: Outcome) -> Outcome:
    return Outcome(None, outcome.failed)


def _call(plugin: str, function: Callable[..., Any], *row: Any) -> Outcome:
    values = [one.value if isinstance(one, Outcome) else one for one in row]
    return Outcome(function(_mine(plugin).session, *values))
