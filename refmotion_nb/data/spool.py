"""Arrays in memory while they fit, in files without a name beyond: what is too large slows a run down, it does not fail."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import IO

import numpy as np

from refmotion_nb.data.files import write_at
from refmotion_nb.data.limits import size

SEGMENT_BYTES = 256 << 20  # arrays share files, since a process may not have many of them open
_ALIGN_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spool:
    """A memory limit that several things share, and files for the arrays that exceed it.

    The files have no name: they go with the process, however it ends, and nobody takes them for results. Memory and
    disk are free again as soon as an array is no longer in use.
    """

    def __init__(self, limit_bytes: float, folder: str | Path | None = None) -> None:
        """Hold up to ``limit_bytes``; files are made in ``folder``, by default the system's for temporary files."""
        self.limit_bytes = limit_bytes
        self.folder = Path(folder or tempfile.gettempdir())
        self.held_bytes = 0  # in memory now
        self.peak_bytes = 0  # in memory at any time
        self.spilled_bytes = 0  # on disk now
        self._lock = RLock()  # an array may be collected at any time, even while one is being kept
        self._file: IO[bytes] | None = None
        self._closing: weakref.finalize | None = None
        self._map: mmap.mmap | None = None
        self._used = 0  # bytes of the file in hand

    def reserve(self, n_bytes: int) -> bool:
        """Take ``n_bytes`` of the limit, if as many are free."""
        with self._lock:
            if self.held_bytes + n_bytes > self.limit_bytes:
                return False
            self.held_bytes += n_bytes
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
            return True

    def release(self, n_bytes: int) -> None:
        """Give back what ``reserve`` took."""
        with self._lock:
            self.held_bytes -= n_bytes

    @contextmanager
    def taking(self, n_bytes: int) -> Iterator[None]:
        """Take up to ``n_bytes`` of the limit, as much as is free, as long as the context lasts."""
        with self._lock:
            taken = int(min(n_bytes, max(self.limit_bytes - self.held_bytes, 0)))
            self.reserve(taken)
        try:
            yield
        finally:
            self.release(taken)

    def keep(self, array: np.ndarray) -> np.ndarray:
        """Return the same numbers: the array itself while it fits, else mapped from a file, not to be changed.

        Raises
        ------
        OSError
            The disk is full.
        """
        if array.base is not None:  # else the memory of what it is a part of would not be counted
            array = array.copy()
        if not array.nbytes or self.reserve(array.nbytes):
            weakref.finalize(array, self.release, array.nbytes).atexit = False
            return array
        with self._lock:
            mapped = self._spill(np.ascontiguousarray(array))  # (n,), of which every view holds on to it
            self.spilled_bytes += array.nbytes
            weakref.finalize(mapped, self._forget, array.nbytes).atexit = False
            return mapped.reshape(array.shape)

    def close(self) -> None:
        """Let go of the file in hand; arrays stay as long as they are in use."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._file = self._map = self._closing = None

    def _forget(self, n_bytes: int) -> None:
        with self._lock:
            self.spilled_bytes -= n_bytes

    def _spill(self, array: np.ndarray) -> np.ndarray:
        try:
            if self._map is None or self._used + array.nbytes > len(self._map):
                self._begin(max(SEGMENT_BYTES, array.nbytes))
            assert self._file is not None and self._map is not None
            # written, not assigned through the map: a full disk is an error then, not a signal that ends the process
            write_at(self._file.fileno(), array.reshape(-1).view(np.uint8).data, self._used)
        except OSError as error:
            if error.errno in _FULL:
                what = f"{os.strerror(errno.ENOSPC)} for {size(array.nbytes)} beyond cache_size_GB"
                raise OSError(error.errno, what, str(self.folder)) from None
            raise
        found = np.frombuffer(self._map, array.dtype, array.size, self._used)
        self._used += -(-array.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        return found

    def _begin(self, n_bytes: int) -> None:
        self.close()
        self._file = tempfile.TemporaryFile(dir=self.folder, prefix=".", suffix=".spool")
        self._closing = weakref.finalize(self, self._file.close)  # also where it goes with others that know each other
        os.ftruncate(self._file.fileno(), n_bytes)  # takes no room yet
        self._map, self._used = mmap.mmap(self._file.fileno(), n_bytes), 0
