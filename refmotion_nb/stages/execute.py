"""Where and with how much memory the work is done; none of it changes what comes out."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from threading import current_thread, main_thread
from types import ModuleType
from typing import TYPE_CHECKING, Any

import param

from refmotion_nb.data.files import read_text
from refmotion_nb.data.limits import bytes_of, cpu_count
from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics import gpu
from refmotion_nb.stages.base import Stage
from refmotion_nb.stages.device import APART, Device, choose, choose_apart

if TYPE_CHECKING:
    from distributed import Client

    from refmotion_nb.stages.session import Session
    from refmotion_nb.stages.workers import Workers


PATIENCE_S = 60.0  # with a scheduler that does not answer, or has not written its file yet
TRY_S = 5.0  # of it: until the file is read again, which may have been that of an earlier scheduler


class Execution(Stage):
    """Device, processors and memory."""

    device: Any = param.String(
        default="auto",
        doc="auto, cpu, cuda or cuda:N; auto takes the GPU with most free memory, or the CPU where there is none, and says so.",
    )  # fmt: skip
    threads = param.Integer(default=0, bounds=(0, None), doc="Processors to use; 0: all.")
    workers = param.Integer(
        default=1, bounds=(1, None),
        doc="Processes on this machine, which share the processors, and the GPUs if these are used; 1: this one. More need the "
        "extra dask.",
    )  # fmt: skip
    dask: Any = param.String(
        default="",
        doc="Address of the scheduler of a Dask cluster (tcp://host:8786), or the scheduler file it wrote: its workers read the "
        "movies and write the particles, in folders that must have the same names there.",
    )  # fmt: skip
    cache_size_GB: Any = param.String(
        default="60%",
        doc="In-memory cache: GB, or a share such as 60% of the memory (of the job's or container's limit, where there is one); "
        "with dask that of each machine. What does not fit is read again or kept on disk.",
    )  # fmt: skip
    gpus = param.Integer(default=1, bounds=(1, None), doc="Number of GPUs; more than 1: a process for each.")
    gpu_oversubscription_GB = param.Number(
        default=20.0, bounds=(0, None), doc="GPUs with more memory than this (GB) work on two micrographs at a time."
    )
    slicing_gpu_also_aligns = param.Boolean(
        default=True,
        doc="GPUs that slice the references also compute trajectories; off: the first one holds the references and predicts "
        "views, and the others, which have their memory to themselves, compute trajectories (gpus 2 or more).",
    )  # fmt: skip

    def check(self, elsewhere: bool = False) -> None:
        """Refuse settings that contradict each other or this machine; ``elsewhere`` as for ``choose_device``.

        Raises
        ------
        InputError
            Which setting, and what to give instead.
        """
        if self.dask and self.workers > 1:
            raise InputError("both dask and workers are given; a cluster has workers of its own, leave one out")
        choose(self.device, self.gpu_oversubscription_GB, elsewhere=elsewhere or bool(self.dask))
        if self.cache_bytes <= 0:
            raise InputError(f"cache_size_GB is {self.cache_size_GB}; give GB above 0, or a share such as 60%")
        if self.gpus > 1:
            self._check_gpus()
        self.choose_device(elsewhere)

    def _check_gpus(self) -> None:
        if self.dask or self.workers > 1:
            raise InputError(f"gpus {self.gpus} starts a process for each; leave dask and workers out, or gpus at 1")
        found, why = gpu.gpus()
        if self.device == "cpu" or len(found) < self.gpus:
            have = f"there {'is' if len(found) == 1 else 'are'} {', '.join(map(str, found)) or f'none ({why})'}"
            what = "device is cpu" if self.device == "cpu" else have
            raise InputError(f"gpus {self.gpus}: {what}; leave gpus at 1")

    def choose_device(self, elsewhere: bool = False) -> Device:
        """Return the device that these settings name; InputError where there is none.

        Where work is done by a cluster, given here or ``elsewhere``, GPUs are its workers' to find.
        """
        if not self.slicing_gpu_also_aligns:
            if self.gpus < 2:
                raise InputError(f"gpus is {self.gpus}; {APART}")
            return choose_apart(self.gpu_oversubscription_GB)
        return choose(self.device, self.gpu_oversubscription_GB, elsewhere=elsewhere or bool(self.dask))

    @property
    def cache_bytes(self) -> float:
        """Memory for the cache, bytes; InputError where the setting is neither a number of GB nor a share."""
        return bytes_of(str(self.cache_size_GB))

    @property
    def n_threads(self) -> int:
        """Processors in use."""
        return self.threads or cpu_count()

    @property
    def _aligning_gpus(self) -> int:
        """GPUs that compute trajectories."""
        return self.gpus if self.slicing_gpu_also_aligns else self.gpus - 1

    @contextmanager
    def at_work(self, session: Session) -> Iterator[None]:
        """Let a session's work be done where these settings say, if they name workers, as long as the context lasts.

        Raises
        ------
        InputError
            There are no such workers.
        """
        before = session.workers
        with self.opened() as workers:
            session.workers = workers or before
            try:
                yield
            finally:
                session.workers = before

    @contextmanager
    def opened(self) -> Iterator[Workers | None]:
        """Yield the workers that these settings name, None where this process does the work, and let go of them then.

        Raises
        ------
        InputError
            There are no such workers.
        """
        if not self.dask and self.workers == self._aligning_gpus == 1:
            yield None
            return
        with self._open() as workers:
            yield workers

    def _open(self) -> Workers:
        if self.dask:
            return dask(self.dask, str(self.cache_size_GB))
        return processes(self._aligning_gpus if self.gpus > 1 else self.workers, self.n_threads)


def dask(client: Any, cache_size_GB: str = "") -> Workers:
    """Return the workers of a Dask cluster, for ``Session(data, workers=...)``.

    ``client`` is a ``distributed.Client``, a cluster (``LocalCluster``, ``SLURMCluster``, ``LocalCUDACluster``), the address of a
    scheduler, or the path of its scheduler file, which may be about to be written. A cluster that starts its workers itself is
    given the time that its queue takes. Workers are to be processes, one task at a time each; their threads are
    used within it. ``cache_size_GB`` (a number, or a share such as 60%) is for each machine, shared by its workers; by default
    it is what the session has here. A worker that Dask gives a limit keeps less than half of that.

    Raises
    ------
    InputError
        Dask is not installed, nobody answers, workers lack this package, or ``cache_size_GB`` is no size.
    """
    workers = _workers_module()
    from distributed import Client

    if cache_size_GB:
        bytes_of(cache_size_GB)
    if isinstance(client, Client):
        return workers.Workers(client, cache_size_GB=cache_size_GB)
    try:
        own = _connected(client)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {client} ({error}); start one, or check the address") from None
    return workers.Workers(own, own.close, cache_size_GB=cache_size_GB)


def _connected(client: Any) -> Client:
    """Return the client of a cluster, an address, or a scheduler file: who starts a scheduler need not wait for its file."""
    from distributed import Client

    if not (isinstance(client, str | Path) and (Path(client).suffix == ".json" or Path(client).is_file())):
        return Client(client, timeout=PATIENCE_S)
    last = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Client(_address_in(client), timeout=min(TRY_S, PATIENCE_S))
        except (OSError, InputError):
            if time.monotonic() > last:
                raise
        time.sleep(0.2)


def _address_in(scheduler_file: str | Path) -> str:
    """Return the address that a Dask scheduler wrote to a file; InputError where there is none, or no file."""
    content = read_text(scheduler_file)
    try:
        return str(json.loads(content)["address"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{scheduler_file} is no scheduler file of Dask; give the one that the scheduler wrote, or its address"
        ) from None


def processes(n: int, threads: int = 0) -> Workers:
    """Return ``n`` worker processes on this machine, for ``Session(data, workers=...)``.

    They share ``threads`` processors, 0: all. Where the session is to use a GPU they are spread over all there are.

    Raises
    ------
    InputError
        Dask is not installed.
    """
    workers = _workers_module()
    from dask import config
    from distributed import Client, LocalCluster

    each = max(1, (threads or cpu_count()) // n)
    with ExitStack() as stack:
        # a process that dies is started again; Dask would give it up for good where that takes more than 15 s
        stack.enter_context(config.set({"distributed.deploy.lost-worker-timeout": "1000 days"}))
        # no dashboard; the scheduler's web server, which Dask starts in any case, answers this machine only. What fails in a
        # task comes back from it; what workers log beside is at most that the scheduler ended while they said they are there
        with _uninterrupted():
            cluster = LocalCluster(
                n_workers=n, threads_per_worker=each, memory_limit=0, silence_logs=logging.CRITICAL,
                dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            )  # fmt: skip
            stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster))
        return workers.Workers(client, stack.pop_all().close, spread=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Start processes that Ctrl-C, which a terminal sends to all, does not reach, and put it off here until they are there.

    This process ends them in order; half of them started, Dask would leave pages of errors.
    """
    resource_tracker.ensure_running()  # as processes are started otherwise, which lets signals through again
    waiting: list[Any] = []
    first = current_thread() is main_thread()  # only there signals are handled
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if first else {}
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT}
    )  # which threads and processes started now inherit
    try:
        for number in handlers:
            signal.signal(number, lambda *received: waiting.append(received))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, frame in waiting:
            if callable(handler := handlers[number]):
                handler(number, frame)


def _workers_module() -> ModuleType:
    try:
        return import_module("refmotion_nb.stages.workers")
    except ImportError as error:
        raise InputError(f'workers need Dask ({error}); python -m pip install "refmotion-nb[dask]"') from None
