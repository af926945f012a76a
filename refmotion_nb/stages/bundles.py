"""Rows of work put together to tasks of a Dask cluster where there are many of them.

The scheduler takes some ms for each task, and a step of a search on a micrograph with few particles takes hardly more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future

TASKS = 2  # for each thread of all workers, so that one that is done has something to take over


@dataclass(frozen=True)
class Held:
    """A value that a worker holds: that of a task, or one of those that a task found for several rows."""

    future: Future
    row: int | None = None

    def of(self, value: Any) -> Any:
        """Return it, given the value of its task."""
        return value if self.row is None else value[self.row]


@dataclass(frozen=True)
class Given:
    """A held value as a task is given it: the number of the outcome that has it, and the row there."""

    number: int
    row: int | None

    def of(self, values: list[Any]) -> Any:
        """Return it, given the values of all outcomes."""
        return values[self.number] if self.row is None else values[self.number][self.row]


class Bundles:
    """Which rows are worked on together: those that a worker holds, the same ones in every step."""

    def __init__(self, client: Client):
        """Take the client of the cluster."""
        self._client = client
        self._worker: dict[Any, str] = {}  # of values that were bundled last, by keys of their futures

    def of(self, first: list[Held], threads: int) -> list[list[int]]:
        """Return the rows of each bundle, given the ``first`` held value of every row and all workers' ``threads``."""
        futures = by_key(first)
        most = max(1, int(len(first) / (TASKS * max(1, threads))))
        where: dict[Any, Any] = {key: key for key in futures}
        if len(futures) < len(first):  # of an earlier bundle
            most = len(first)
        elif most > 1:
            unknown = [future for key, future in futures.items() if key not in self._worker]
            for future in unknown:  # by its own client, whatever others there are
                future.exception()
            found = {key: next(iter(workers), "") for key, workers in self._client.who_has(unknown).items()}
            self._worker = where = {key: self._worker.get(key) or found.get(key, "") for key in futures}
        together: dict[Any, list[int]] = {}
        for row, one in enumerate(first):
            together.setdefault(where[one.future.key], []).append(row)
        return [rows[i : i + most] for rows in together.values() for i in range(0, len(rows), most)]


def by_key(items: Iterable[Any]) -> dict[Any, Future]:
    """Return the futures of those items that are held, each once, by their keys."""
    return {one.future.key: one.future for one in items if isinstance(one, Held)}


def given(rows: Iterable[tuple[Any, ...]]) -> tuple[list[list[Any]], list[Future]]:
    """Return rows with held values as tasks are given them, and the futures to be given with them."""
    rows = list(rows)
    futures = by_key(one for row in rows for one in row)
    number = {key: k for k, key in enumerate(futures)}
    put = [[Given(number[one.future.key], one.row) if isinstance(one, Held) else one for one in row] for row in rows]
    return put, [*futures.values()]
