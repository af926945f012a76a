"""Where and with how much memory the work is done; none of it changes what comes out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import param

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.backend import cpu_count
from refmotion_nb.stages.base import Stage
from refmotion_nb.stages.device import Device, choose

if TYPE_CHECKING:
    from refmotion_nb.stages.session import Session
    from refmotion_nb.stages.workers import Workers


PATIENCE_S = 30.0  # with a scheduler that does not answer


class Execution(Stage):
    """Device, processors and memory."""

    device: Any = param.String(
        default="auto",
        doc="auto, cpu, cuda or cuda:N; auto takes the GPU with most free memory, or the CPU where there is none, and says so.",
    )  # fmt: skip
    threads = param.Integer(default=0, bounds=(0, None), doc="Processors to use; 0: all.")
    workers = param.Integer(
        default=1, bounds=(1, None),
        doc="Processes on this machine, which share the processors; 1: this one. More need the extra dask.",
    )  # fmt: skip
    dask: Any = param.String(
        default="",
        doc="Address of the scheduler of a Dask cluster (tcp://host:8786), or the scheduler file it wrote: its workers read the "
        "movies and write the particles, in folders that must have the same names there.",
    )  # fmt: skip
    cache_size_GB: Any = param.String(
        default="60%",
        doc="In-memory cache: GB, or a share of the memory such as 60%. What does not fit is read again or kept on disk.",
    )  # fmt: skip
    gpus = param.Integer(default=1, bounds=(1, None), doc="Number of GPUs.")
    gpu_oversubscription_GB = param.Number(
        default=20.0, bounds=(0, None), doc="GPUs with more memory than this (GB) work on two micrographs at a time."
    )
    slicing_gpu_also_aligns = param.Boolean(
        default=True,
        doc="The GPU that slices the references also computes trajectories; off saves memory there and needs two GPUs.",
    )

    def check(self) -> None:
        """Refuse settings that contradict each other or this machine.

        Raises
        ------
        InputError
            Which setting, and what to give instead.
        """
        if self.dask and self.workers > 1:
            raise InputError("both dask and workers are given; a cluster has workers of its own, leave one out")
        self.choose_device()
        if self.cache_bytes <= 0:
            raise InputError(f"cache_size_GB is {self.cache_size_GB}; give GB above 0, or a share such as 60%")
        if not self.slicing_gpu_also_aligns and self.gpus < 2:
            raise InputError(
                f"slicing_gpu_also_aligns off needs a second GPU for the trajectories, gpus is {self.gpus}; give --gpus 2 or "
                "more, or leave it on"
            )
        if self.gpus > 1:
            raise InputError(
                f"gpus {self.gpus}: a process works on one GPU in this version; leave gpus at 1, and give --dask a cluster "
                "with one worker per GPU (dask-cuda)"
            )

    def choose_device(self) -> Device:
        """Return the device that these settings name; InputError where there is none."""
        return choose(self.device, self.gpu_oversubscription_GB)

    @property
    def cache_bytes(self) -> float:
        """Memory for the cache, bytes; InputError where the setting is neither a number of GB nor a share."""
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", str(self.cache_size_GB))
        if not found:
            raise InputError(f"cache_size_GB {self.cache_size_GB!r} is no size; give GB, or a share such as 60%")
        number, percent = found.groups()
        if percent:
            return float(number) / 100 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return float(number) * 1e9

    @property
    def n_threads(self) -> int:
        """Processors in use."""
        return self.threads or cpu_count()

    @contextmanager
    def at_work(self, session: Session) -> Iterator[None]:
        """Let a session's work be done where these settings say, if they name workers, as long as the context lasts.

        Raises
        ------
        InputError
            There are no such workers.
        """
        if not self.dask and self.workers == 1:
            yield
            return
        before = session.workers
        with dask(self.dask) if self.dask else processes(self.workers, self.n_threads) as session.workers:
            try:
                yield
            finally:
                session.workers = before


def dask(client: Any) -> Workers:
    """Return the workers of a Dask cluster, for ``Session(data, workers=...)``.

    ``client`` is a ``distributed.Client``, a cluster (``LocalCluster``, ``SLURMCluster``, ``LocalCUDACluster``), the address of a
    scheduler, or the path of its scheduler file. Workers are to be processes, one task at a time each; their threads are
    used within it.

    Raises
    ------
    InputError
        Dask is not installed, nobody answers, or workers lack this package.
    """
    workers = _workers_module()
    from distributed import Client

    if isinstance(client, Client):
        return workers.Workers(client)
    where = (
        {"scheduler_file": str(client)}
        if isinstance(client, str | Path) and Path(client).is_file()
        else {"address": client}
    )
    try:
        own = Client(**where, timeout=PATIENCE_S)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {client} ({error}); start one, or check the address") from None
    return workers.Workers(own, own.close)


def processes(n: int, threads: int = 0) -> Workers:
    """Return ``n`` worker processes on this machine, for ``Session(data, workers=...)``.

    They share ``threads`` processors, 0: all.

    Raises
    ------
    InputError
        Dask is not installed.
    """
    workers = _workers_module()
    from distributed import Client, LocalCluster

    each = max(1, (threads or cpu_count()) // n)
    cluster = LocalCluster(n_workers=n, threads_per_worker=each, memory_limit=0, dashboard_address=":0")
    client = Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return workers.Workers(client, close)


def _workers_module() -> ModuleType:
    try:
        return import_module("refmotion_nb.stages.workers")
    except ImportError as error:
        raise InputError(f'workers need Dask ({error}); python -m pip install "refmotion-nb[dask]"') from None
