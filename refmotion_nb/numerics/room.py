"""Memory that one micrograph leaves to the next.

The system gives fresh memory page by page, cleared: for the transforms of a micrograph that takes about a fifth of the time of
reading its movie.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any

import numpy as np

_MALLOC = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, as large as glibc's own ever become
SPARE = 2  # pieces of memory that wait for another use, at most
SLACK = 1.25  # of the memory that an array which stays may take, more than its own


class Room:
    """Gives arrays, and while it is open keeps the memory of those nobody uses any more for the next."""

    def __init__(self) -> None:
        self._spare: list[np.ndarray] = []
        self._users = 0
        self._least_bytes = 0  # of a new piece, so that it is of use to all; what is not touched costs nothing
        self._lock = RLock()  # an array may be collected at any time

    @contextmanager
    def open(self, least_bytes: int = 0) -> Iterator[None]:
        """Keep memory for the next until all who opened it have left; give new pieces ``least_bytes`` or more."""
        with self._lock:
            self._users += 1
            self._least_bytes = max(self._least_bytes, least_bytes)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._least_bytes = 0
                    self._spare.clear()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array with arbitrary values."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._lock:
            if not self._users:
                return np.empty(shape, dtype)
            piece = next((one for one in self._spare if one.nbytes >= n_bytes), None)
            self._spare = [one for one in self._spare if one is not piece and one.nbytes >= self._least_bytes]
        used = piece is not None
        if piece is None:
            piece = np.empty(max(n_bytes, self._least_bytes), np.uint8)
        # over a buffer, and not a view of the piece: every part of an array holds on to the array, not to what is below;
        # beyond it a new piece takes nothing yet, which ``settled`` is to see
        memory = piece.data if used else piece.data[:n_bytes]
        array: np.ndarray = np.frombuffer(memory, np.uint8, n_bytes)
        weakref.finalize(array, self._left, piece).atexit = False
        return array.view(dtype).reshape(shape)

    def _left(self, piece: np.ndarray) -> None:
        with self._lock:
            if self._users and len(self._spare) < SPARE:
                self._spare.append(piece)


def settled(array: np.ndarray) -> np.ndarray:
    """Return an array that is to stay: itself, or a copy where it lies in memory for much more, which others can use then."""
    whole: Any = array
    while getattr(whole, "base", None) is not None:
        whole = whole.base
    return array if whole.nbytes <= SLACK * array.nbytes else array.copy()


def reuse_freed_memory() -> None:
    """Let the C library use again what was freed, as it does unless told otherwise, and as Dask tells its workers.

    They are started with MALLOC_TRIM_THRESHOLD_, which also fixes what is taken from the system for each array alone: every
    array beyond 128 kB. Without effect where the C library is not glibc.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)
