"""Where work on micrographs is done: in this process, or in others that each have a session of the same data.

A *task* is called with the session of the place where it runs and a micrograph; what it returns either comes back or stays
where it is (*held*), to be worked on further by functions that are called with that session and held values. One task, one
micrograph: what comes out does not depend on where it was done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.numerics.threads import side_by_side
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.micrograph import Micrograph

if TYPE_CHECKING:
    from refmotion_nb.stages.session import Session

Task = Callable[["Session", Micrograph], Any]
Found = Generator[tuple[str, Any], None, None]  # names and what was found; closed, it ends what is under way


class Place(Protocol):
    """Somewhere to work on micrographs."""

    def each(self, names: list[str], settings: Alignment, task: Task) -> Found:
        """Yield name and ``task(session, micrograph)`` in the order of ``names``.

        Names of micrographs that cannot be used come with None; why is in the session's ``failed``.

        Raises
        ------
        InputError
            The references cannot be used, or the place is gone.
        """

    def hold(self, names: list[str], settings: Alignment, task: Task) -> Found:
        """Yield as ``each`` does, but held values."""

    def apply(self, function: Callable[..., Any], *columns: list[Any]) -> list[Any]:
        """Return, held, ``function(session, ...)`` of each row of columns, all at once; the first is held, others may be."""

    def values(self, held: list[Any]) -> list[Any]:
        """Return the values that are held."""


class Here:
    """In this process: one micrograph is read while another is worked on."""

    def __init__(self, session: Session):
        """Work for ``session``."""
        self._session = session

    def each(self, names: list[str], settings: Alignment, task: Task) -> Found:
        """Yield name and value, see ``Place``."""
        return self._session.several(names, settings, task)

    hold = each

    def apply(self, function: Callable[..., Any], *columns: list[Any]) -> list[Any]:
        """Return the values of all rows, found by as many threads as the session has."""
        call, device = partial(function, self._session), self._session.device
        n = device.at_once if device.is_gpu else self._session.threads

        def one(row: tuple[Any, ...]) -> Any:
            device.activate()  # which concerns one thread
            return call(*row)

        with device.telling_of_memory("micrographs were worked on"), one_blas_thread():
            return side_by_side(one, zip(*columns), n)

    def values(self, held: list[Any]) -> list[Any]:
        """Return them as they are."""
        return held
