"""GPUs: which there are, how much memory is free, and work in batches that fit into it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

HEADROOM = 0.5  # of the free memory that one batch may take: another micrograph may be arriving meanwhile
UPLOAD_BYTES = 64 << 20  # at a time: CuPy keeps pinned memory of the next power of two, for good
MOST_AT_ONCE = 1 << 15  # particles in a batch; the third dimension of a grid has 16 bits
# of memory, as libraries say it
_ENDS = ("CUFFT_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")


@dataclass(frozen=True)
class Gpu:
    """A GPU as it is now."""

    number: int
    name: str
    free_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        return f"cuda:{self.number} ({self.name}, {self.free_bytes / 1e9:.1f} of {self.total_bytes / 1e9:.1f} GB free)"


def installed() -> bool:
    """Return whether CuPy is there; whether it works is another question."""
    return importlib.util.find_spec("cupy") is not None


def gpus(number: int | None = None) -> tuple[list[Gpu], str]:
    """Return the GPUs that can be used, or only that of a number, and if there is none why, in words.

    Each that is looked at loses some hundred MB to this process.
    """
    if not installed():
        return [], "CuPy is not installed"
    try:
        cupy = _cupy()
        count = cupy.cuda.runtime.getDeviceCount()
        found = [_gpu(cupy, one) for one in range(count) if number in (None, one)]
    except Exception as error:  # no driver, one too old for this CuPy, or a broken installation: all kinds of errors
        return [], f"CuPy finds no usable GPU ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return found, "" if found else "CuPy finds no GPU" if not count else f"there are {count} GPUs"


def count() -> int:
    """Return how many GPUs there are, without a look at any of them."""
    return int(_cupy().cuda.runtime.getDeviceCount())


def bus_ids() -> list[str]:
    """Return where on the machine's bus each GPU is, without a look at any of them; none where there is no usable GPU."""
    if not installed():
        return []
    try:
        return [str(_cupy().cuda.Device(number).pci_bus_id) for number in range(count())]
    except Exception:  # as above
        return []


def _gpu(cupy: ModuleType, number: int) -> Gpu:
    with cupy.cuda.Device(number):
        free, total = cupy.cuda.runtime.memGetInfo()
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"]
    return Gpu(number, name.decode() if isinstance(name, bytes) else str(name), int(free), int(total))


def use(number: int) -> None:
    """Make a GPU the one of the calling thread; each thread has to say so for itself."""
    _cupy().cuda.Device(number).use()


@contextmanager
def using(number: int) -> Iterator[None]:
    """Make a GPU the one of the calling thread as long as the context lasts."""
    with _cupy().cuda.Device(number):
        yield


def array_module() -> ModuleType:
    """Return CuPy."""
    return _cupy()


def upload(array: Any) -> Any:
    """Return an array on the thread's GPU, itself if it is there; CuPy copies through pinned memory, without waiting.

    From another GPU it is moved, and what both have under way is waited for.
    """
    cupy = _cupy()
    if isinstance(array, cupy.ndarray):
        return _moved(cupy, array)
    if not isinstance(array, np.ndarray) or array.nbytes <= UPLOAD_BYTES:
        return cupy.asarray(array)
    there = cupy.empty(array.shape, array.dtype)
    source, target = np.ascontiguousarray(array).reshape(-1), there.reshape(-1)
    step = UPLOAD_BYTES // array.itemsize
    for start in range(0, len(source), step):
        target[start : start + step] = cupy.asarray(source[start : start + step])
    return there


def _moved(cupy: ModuleType, array: Any) -> Any:
    if array.device.id == cupy.cuda.runtime.getDevice():
        return array
    with array.device:
        synchronise()  # the copy is given to this GPU, which knows nothing of the other's work
    there = cupy.asarray(array)
    synchronise()  # before the other may use the array's memory for something else
    return there


def synchronise() -> None:
    """Wait until the thread's GPU has done all that it was given: for measuring times."""
    _cupy().cuda.runtime.deviceSynchronize()


def free_bytes() -> int:
    """Return how much memory can be taken on the thread's GPU, that which CuPy holds in reserve included."""
    cupy = _cupy()
    return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())


def in_batches(n: int, work: Callable[[slice], Any], item_bytes: int) -> list[Any]:
    """Call ``work`` on consecutive slices of ``range(n)`` that fit into the memory, see ``backend.over_chunks``.

    Raises
    ------
    MemoryError
        One item alone does not fit.
    """
    cupy = _cupy()
    memory = memory_of(cupy, cupy.cuda.runtime.getDevice())
    results: list[Any] = []
    start, most = 0, n
    while start < n:
        size = min(n - start, most, memory.batch(free_bytes(), item_bytes))
        try:
            results.append(work(slice(start, start + size)))
            start += size
            continue
        except Exception as error:
            if not _is_end_of_memory(error):
                raise
            if size == 1:
                raise MemoryError(str(error)) from error
        most = (size + 1) // 2
        memory.halve()
        importlib.import_module("cupy.fft.config").get_plan_cache().clear()  # this thread's; plans are made again
        cupy.get_default_memory_pool().free_all_blocks()  # now that no error holds on to what was being made
    if most == n:
        memory.recover()
    return results


def _is_end_of_memory(error: Exception) -> bool:
    """Return whether CuPy, or one of the libraries it calls, had no memory left, or the host."""
    return isinstance(error, MemoryError) or ended_there(error)


def ended_there(error: Exception) -> bool:
    """Return whether it was the memory of a GPU that ended, by an error or by what ``in_batches`` raised it from."""
    first = error.__cause__ or error
    return isinstance(first, _cupy().cuda.memory.OutOfMemoryError) or any(end in str(first) for end in _ENDS)


class Memory:
    """What has been learnt about the memory of one GPU: by how much batches had to be smaller than they were thought."""

    def __init__(self) -> None:
        self.share = 1.0
        self.note = ""  # for the user
        self._lock = Lock()

    def batch(self, free: int, item_bytes: int) -> int:
        """Return how many items of ``item_bytes`` go into a batch, given the free memory."""
        return max(1, min(MOST_AT_ONCE, int(HEADROOM * self.share * free / max(item_bytes, 1))))

    def halve(self) -> None:
        """Take smaller batches from now on, since one did not fit."""
        with self._lock:
            self.share *= 0.5
            self.note = (
                "the memory of the GPU ran out; work goes on in smaller batches, more slowly (other programs may use this "
                "GPU; a higher gpu_oversubscription_GB keeps one micrograph there at a time)"
            )

    def recover(self) -> None:
        """Take slightly larger batches from now on, since nothing failed: who else needed the memory may have left."""
        with self._lock:
            self.share = min(1.0, 1.01 * self.share)


@cache
def memory_of(cupy: ModuleType, number: int) -> Memory:
    """Return what is known of the memory of a GPU."""
    return Memory()


def note_of(number: int) -> str:
    """Return what the user should know of a GPU's memory, once it ran out; else nothing."""
    return memory_of(_cupy(), number).note


def _cupy() -> ModuleType:
    if "cupy" in sys.modules:
        return sys.modules["cupy"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy tells of toolkits it does not find and does not need here
        import cupy

    return cupy
