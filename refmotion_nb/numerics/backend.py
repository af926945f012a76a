"""Which array module an array belongs to, and how work is spread: over threads on the CPU, in large batches on a GPU.

Functions of this room follow the array they are given: what is on a GPU stays there, with the same code. Only the kernels
exist twice (``kernels_cpu``, ``kernels_gpu``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from scipy import fft
from threadpoolctl import ThreadpoolController

from refmotion_nb.numerics.device_sizes import transform_batch
from refmotion_nb.numerics.threads import side_by_side

_CACHE_BYTES = 1 << 19  # of intermediate results that a thread works on at a time
_LINES = 64  # rows or columns of a large image that one thread transforms at a time


def xp_of(array: Any) -> ModuleType:
    """Return the array module (numpy or cupy) that ``array`` belongs to."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def to_host(array: Any) -> np.ndarray:
    """Return ``array`` as a NumPy array, copied from the device if it lives there."""
    return array.get() if xp_of(array) is not np else np.asarray(array)


def beside(array: Any, values: Any, dtype: Any = None) -> Any:
    """Return ``values`` where ``array`` is: the same array if it is there already and of this type, else a copy."""
    return xp_of(array).asarray(values, dtype)


def all_beside(array: Any, values: Sequence[np.ndarray], dtype: Any = np.float64) -> list[Any]:
    """Return arrays of the host where ``array`` is, of one type and C-contiguous; to a GPU they go in one upload."""
    if xp_of(array) is np:
        return [np.ascontiguousarray(one, dtype) for one in values]
    together = beside(array, np.concatenate([one.ravel() for one in values]).astype(dtype, copy=False))
    ends = np.cumsum([one.size for one in values])
    return [together[end - one.size : end].reshape(one.shape) for one, end in zip(values, ends)]


def kernels_of(array: Any) -> ModuleType:
    """Return the kernels for an array: ``kernels_cpu`` or ``kernels_gpu``."""
    return _kernels("kernels_cpu" if xp_of(array) is np else "kernels_gpu")


@cache
def _kernels(name: str) -> ModuleType:
    return import_module(f"refmotion_nb.numerics.{name}")


def by_row(work: Callable[..., Any], out: Any, values: Any, *sets: Any) -> Any:
    """Fill ``out`` with ``work(value, matrix, ...)`` of every value and the matrices of its row, all (row, ...).

    On the CPU one comes after another, so that none of the large matrices is copied; on a GPU, where a call costs more than a
    copy, all at once: ``work`` may only multiply matrices and exchange their axes.
    """
    if xp_of(out) is np:
        for i, value in enumerate(values):
            out[i] = work(value, *(each[i] for each in sets))
        return out
    out[...] = work(values, *sets)
    return out


def rfft2(images: Any, crop_to: int = 0) -> Any:
    """Return the half planes (image, y, x // 2 + 1) of images (image, y, x), forward normalised.

    They are those of images Fourier-cropped to ``crop_to`` px, if that is given.
    """
    n, box, width = images.shape
    crop_to = crop_to or width
    if xp_of(images) is np:
        if crop_to == width:
            return fft.rfft2(images, norm="forward", workers=1)
        columns = fft.rfft(images, norm="forward", workers=1)[..., : crop_to // 2 + 1]
        return _cropped(fft.fft(columns, axis=-2, norm="forward", workers=1), crop_to)
    xp, norm = xp_of(images), np.float32(1 / (box * width))
    out = xp.empty((n, crop_to, crop_to // 2 + 1), np.complex64)
    for part in _transformed_together(n, box):
        # CuPy's own normalising is a pass more
        xp.multiply(_cropped(_device_fft().rfft2(images[part]), crop_to), norm, out=out[part])
    return out


def _cropped(half: Any, box: int) -> Any:
    """Return half planes (image, y, x // 2 + 1) without the frequencies that images of ``box`` px cannot have."""
    rows = half.shape[-2]
    if rows == box:
        return half
    return xp_of(half).concatenate(
        [half[:, : box - box // 2, : box // 2 + 1], half[:, rows - box // 2 :, : box // 2 + 1]], axis=1
    )


def irfft2(half: Any, box: int) -> Any:
    """Return the images (image, box, box) of forward normalised half planes.

    As everywhere in SciPy the imaginary parts that real images cannot have are ignored: those of the columns kx = 0 and
    kx = box / 2 after the transform along y. cuFFT leaves open what it does with them, so it never sees them.
    """
    if xp_of(half) is np:
        return fft.irfft2(half, (box, box), norm="forward", workers=1)
    out = xp_of(half).empty((len(half), box, box), np.float32)
    for part in _transformed_together(len(half), box):
        out[part] = _real_along_x(_device_fft().ifft(half[part], axis=-2, norm="forward"), box, "forward")
    return out


def rfft2_large(image: Any, threads: int) -> Any:
    """Return the half plane (y, x // 2 + 1) complex64 of one large image (y, x) float32, not normalised.

    Since SciPy 1.18 the last bits of a transform depend on among how many threads it is shared and with how many others it is
    done: on the CPU by one thread each, the same ones together always.
    """
    if xp_of(image) is not np:
        return _device_fft().rfft2(image)
    out = np.empty((image.shape[0], image.shape[1] // 2 + 1), np.complex64)

    def along_x(part: slice) -> None:
        out[part] = fft.rfft(image[part], workers=1)

    def along_y(part: slice) -> None:
        out[:, part] = fft.fft(out[:, part], axis=0, workers=1)

    over_chunks(len(out), along_x, threads, chunk=_LINES)
    over_chunks(out.shape[1], along_y, threads, chunk=_LINES)
    return out


def irfft2_large(half: Any, shape: Sequence[int], threads: int) -> Any:
    """Return the image (y, x) float32 of a half plane that ``rfft2_large`` made, which is used up; as there and in ``irfft2``."""
    if xp_of(half) is not np:
        return _real_along_x(_device_fft().ifft(half, axis=-2), shape[1])
    out = np.empty(shape, np.float32)

    def along_y(part: slice) -> None:
        half[:, part] = fft.ifft(half[:, part], axis=0, workers=1)

    def along_x(part: slice) -> None:
        out[part] = fft.irfft(half[part], shape[1], workers=1)

    over_chunks(half.shape[1], along_y, threads, chunk=_LINES)
    over_chunks(len(out), along_x, threads, chunk=_LINES)
    return out


def _real_along_x(columns: Any, width: int, norm: str = "backward") -> Any:
    """Return the images of half planes on a GPU that are transformed along y already, less imaginary parts they cannot have."""
    columns = xp_of(columns).ascontiguousarray(columns)
    parts = columns.view(columns.real.dtype).reshape(*columns.shape, 2)
    parts[..., 0, 1] = 0
    if width % 2 == 0:
        parts[..., -1, 1] = 0
    return _device_fft().irfft(columns, width, axis=-1, norm=norm)


def _device_fft() -> Any:
    return importlib.import_module("cupyx.scipy.fft")


def _transformed_together(n: int, box: int) -> Iterator[slice]:
    """Yield slices of one size that cover ``range(n)``: for each size CuPy makes, and keeps, a plan with room to work in.

    The last one reaches back over what is transformed already, which costs less than calls for ever smaller rests.
    """
    size = transform_batch(n, box)
    for start in range(0, n, size):
        yield slice(min(start, n - size), min(start, n - size) + size)


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
                self._take_over()
                self._limit = self._pools.limit(limits=1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._take_over()
                self._limit.restore_original_limits()
                self._take_over()

    def _take_over(self) -> None:
        """Let any thread set the number: threadpoolctl 3.8 leaves it to the thread that did so first, and says nothing."""
        for library in self._pools.lib_controllers if self._pools else ():
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)


_BLAS = OneBlasThread()  # of the process, as what it counts the users of


def one_blas_thread() -> OneBlasThread:
    """Keep matrix products in one thread while active: ours are small, and many are under way in threads of our own."""
    return _BLAS


def over_chunks(
    n: int, work: Callable[[slice], Any], threads: int, chunk: int = 0, *, like: Any = None, item_bytes: int = 0
) -> list[Any]:
    """Call ``work`` on consecutive slices of ``range(n)`` and return what it returned, in order.

    On the CPU they are shared out among threads; the work must release the GIL. They depend on ``n`` and ``chunk`` only
    where ``chunk`` is given, so that sums taken slice by slice do not depend on the number of threads.

    Where the array ``like`` is on a GPU they are as large as its free memory allows at ``item_bytes`` of temporary arrays
    each, one after another. One that does not fit after all is begun again with half as many: work must come to the same
    then, so it may add to a result only once nothing can fail any more.
    """
    if like is not None and xp_of(like) is not np:
        from refmotion_nb.numerics import gpu

        return gpu.in_batches(n, work, item_bytes)
    chunk = chunk or max(1, -(-n // (4 * max(threads, 1))))
    slices = [slice(i, min(i + chunk, n)) for i in range(0, n, chunk)]
    return side_by_side(work, slices, threads)


def in_cache(n: int, item_bytes: int, like: Any) -> Iterator[slice]:
    """Yield slices of ``range(n)`` whose items stay in the second-level cache of a CPU; one of all where ``like`` is on a GPU."""
    step = max(1, _CACHE_BYTES // item_bytes) if xp_of(like) is np else n
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
