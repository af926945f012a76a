"""Numba's ``njit`` with machine code kept on disk safely: several processes may compile at once, and any may be killed.

Numba's own cache notes which file has the code for which types before it writes that file, and reads and writes its notes
without a lock. Two processes that compile one function for different types at the same time can leave a note that leads to the
code for other types, which is then run: strided arrays are read as contiguous ones, without an error.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import numba

try:
    from numba.core.caching import FunctionCache, IndexDataCacheFile
except ImportError:  # these are not public: another Numba may have none, and keeps code in its own way
    FunctionCache = IndexDataCacheFile = object  # type: ignore[assignment,misc]


def njit(*, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function, as ``numba.njit`` with these options does."""

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if cache and dispatcher is not function:  # as it is with NUMBA_DISABLE_JIT
            # likewise; or there is no folder that can be written to
            with suppress(AttributeError, TypeError, RuntimeError):
                dispatcher.enable_caching()
                dispatcher._cache = _Cache(function)
        return dispatcher

    return compiled


class CodeFile(IndexDataCacheFile):
    """The files of one function: one with the code for each set of types, and notes on which is which."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the code for the types of ``key``; it is noted once it is there."""
        with self._held(fcntl.LOCK_EX):
            names = self._load_index()
            known = set(names.values())
            name = names.get(key) or next(one for n in count(1) if (one := self._data_name(n)) not in known)
            self._save_data(name, data)
            self._save_index({**names, key: name})

    def load(self, key: Any) -> Any:
        """Return the code for the types of ``key``, or None."""
        with suppress(Exception), self._held(fcntl.LOCK_SH):  # as below
            return super().load(key)

    def _load_index(self) -> dict[Any, str]:
        try:
            return super()._load_index()
        except Exception:  # another user keeps it to themselves, or a power failure left it empty or in pieces
            return {}

    @contextmanager
    def _held(self, how: int) -> Iterator[None]:
        """Hold the folder as long as the block lasts; some network file systems have no locks."""
        handle = -1
        with suppress(OSError):  # nor is there a folder before anything was saved
            handle = os.open(self._cache_path, os.O_RDONLY)
            fcntl.flock(handle, how)
        try:
            yield
        finally:
            if handle >= 0:
                os.close(handle)


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = CodeFile(self._cache_path, self._impl.filename_base, locator.get_source_stamp())

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # without room on the disk code is not kept
            super().save_overload(sig, data)


def kept() -> bool:
    """Tell whether there is a folder for compiled code, or every process compiles anew."""
    cache = getattr(product, "_cache", None)  # with NUMBA_DISABLE_JIT nothing is compiled
    return cache is None or cache.cache_path is not None


@njit(inline="always")
def product(a, b):
    """Return the product of two complex numbers, in compiled functions, in place of ``a * b``.

    Numba makes the code of that once a process, with the options of whichever function needs it first, so that the order in
    which functions are compiled would decide about the last bits of all others.
    """
    return complex(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)
