"""Work spread over threads: side by side until all is done, or in order, the next ahead of who takes what comes out.

To start threads for each bit of work takes longer than many a bit, so those that work side by side are kept. Whoever has such
work takes part in it: it never waits for threads that are busy elsewhere, and may itself be part of such work.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import Any, TypeVar
from weakref import ref

Item = TypeVar("Item")


def side_by_side(work: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """Return ``work(item)`` of all items, in their order, done by this thread and up to ``threads`` - 1 others.

    Work must release the GIL to gain from that. Once a call fails no more are begun; when those under way have ended, the
    error of the first item that failed is raised, or what interrupted this thread.
    """
    items = list(items)
    others = min(threads, len(items)) - 1
    if others < 1:
        return [work(item) for item in items]
    shared = _Shared(work, items)
    _HELPERS.call(shared, others)
    return shared.finish()


def in_order(work: Callable[[Item], Any], items: Iterable[Item], ahead: int) -> Generator[tuple[Item, Any], None, None]:
    """Yield each item with ``work(item)``, while ``ahead`` of those that follow are under way in threads of their own.

    With 0 ahead each is done when it is asked for. Once it is closed no more are begun, and those under way are waited for.
    """
    if not ahead:
        for item in items:
            yield item, work(item)
        return
    left, under_way = iter(items), deque[tuple[Item, Future[Any]]]()
    with ThreadPoolExecutor(ahead) as pool:
        try:
            under_way += ((item, pool.submit(work, item)) for item in islice(left, ahead))
            while under_way:
                item, future = under_way.popleft()
                found = future.result()
                under_way += ((one, pool.submit(work, one)) for one in islice(left, 1))
                del future  # which holds what was found
                yield item, found
                del found
        finally:
            pool.shutdown(cancel_futures=True)


class _Shared:
    """Work on items that several threads take, one after another."""

    def __init__(self, work: Callable[[Any], Any], items: list[Any]):
        self._work = work
        self._left = deque(enumerate(items))
        self._found: list[Any] = [None] * len(items)
        self._errors: dict[int, BaseException] = {}
        self._changed = Condition(Lock())
        self._helping = 0

    def help(self) -> None:
        """Take part, unless nothing is left to begin."""
        with self._changed:
            if not self._left:
                return
            self._helping += 1
        try:
            self._take_part()
        finally:
            with self._changed:
                self._helping -= 1
                self._changed.notify_all()

    def finish(self) -> list[Any]:
        """Take part until all is done, and return what was found."""
        try:
            self._take_part()
        finally:
            self._left.clear()  # as it is, unless this thread was interrupted
            self._wait()
        if self._errors:
            error = self._errors[min(self._errors, key=lambda i: (isinstance(self._errors[i], Exception), i))]
            self._errors.clear()  # else the error, whose traceback holds this, would keep what it holds from being freed
            raise error
        return self._found

    def _wait(self) -> None:
        """Wait until nobody helps any more: who is interrupted meanwhile must not take away what others work on."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._helping)
        except BaseException:
            self._wait()
            raise

    def _take_part(self) -> None:
        while self._left:
            try:
                i, item = self._left.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._found[i] = self._work(item)
            except BaseException as error:  # whoever waits is told
                self._errors[i] = error
                self._left.clear()


class _Helpers:
    """Threads that wait for work of others to take part in; as many as were ever wanted at a time."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[ref[_Shared]] = SimpleQueue()
        self._lock = Lock()
        self._n = 0

    def call(self, shared: _Shared, n: int) -> None:
        """Let ``n`` of them take part as soon as they are free."""
        with self._lock:
            for _ in range(n - self._n):
                Thread(target=self._help, name="refmotion helper", daemon=True).start()
            self._n = max(self._n, n)
        for _ in range(n):
            self._calls.put(ref(shared))  # work that is finished is not kept for those who come late

    def _help(self) -> None:
        while True:
            _help_with(self._calls.get())


def _help_with(call: ref[_Shared]) -> None:
    if (shared := call()) is not None:
        shared.help()


_HELPERS = _Helpers()  # of the process
if hasattr(os, "register_at_fork"):  # threads stay behind
    os.register_at_fork(after_in_child=_HELPERS.__init__)  # type: ignore[misc]
