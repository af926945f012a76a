"""Which array module an array belongs to, and how work on the CPU is spread over threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController


def xp_of(array: Any) -> ModuleType:
    """Return the array module (numpy or cupy) that ``array`` belongs to."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def to_host(array: Any) -> np.ndarray:
    """Return ``array`` as a NumPy array, copied from the device if it lives there."""
    return array.get() if xp_of(array) is not np else np.asarray(array)


def cpu_count() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class OneBlasThread:
    """Keeps BLAS to one thread from when the first of its users comes until the last has left, in whatever order.

    The number of threads belongs to the process: users who each put back what they found would end with what another
    had set.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._pools: ThreadpoolController | None = None
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._pools is None:
                import_module("scipy.linalg.blas")  # SciPy brings a BLAS of its own, which has to be there to be found
                self._pools = ThreadpoolController()
            if not self._users:
                self._limit = self._pools.limit(limits=1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._limit.restore_original_limits()


_BLAS = OneBlasThread()  # of the process, as what it counts the users of


def one_blas_thread() -> OneBlasThread:
    """Keep matrix products in one thread while active: ours are small, and many are under way in threads of our own."""
    return _BLAS


def over_chunks(n: int, work: Callable[[slice], None], threads: int, chunk: int = 0) -> None:
    """Call ``work`` on consecutive slices of ``range(n)`` from a pool of threads; the work must release the GIL.

    The slices depend on ``n`` and ``chunk`` only where ``chunk`` is given, so that sums taken slice by slice do not
    depend on the number of threads.
    """
    chunk = chunk or max(1, -(-n // (4 * max(threads, 1))))
    slices = [slice(i, min(i + chunk, n)) for i in range(0, n, chunk)]
    if threads <= 1 or len(slices) == 1:
        for part in slices:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slices):
            pass
