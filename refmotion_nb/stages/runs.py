"""Runs of stages: what is told while one goes on, kept so that anybody can look at it, pause it or stop it."""

from __future__ import annotations

import functools
import inspect
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.backend import one_blas_thread

SHOW_EVERY_S = 0.2  # an unfinished result is worked out no more often,
SHOW_SHARE = 0.1  # nor does it take more of the time than this


class Cancelled(Exception):
    """The user stopped the stage; what was finished is kept."""


class Reporter(Protocol):
    """What a stage tells while it runs."""

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work of ``total`` units."""

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Report ``n`` more units done, with facts worth showing."""

    def done(self) -> None:
        """End the piece of work."""


class Viewer(Reporter, Protocol):
    """A reporter that can also look at an unfinished result."""

    def show(self, make: Callable[[], xr.Dataset]) -> None:
        """Take the unfinished result that ``make`` returns, if somebody wants to see it."""


class Silent:
    """A reporter that says nothing; ``cancel()`` stops the stage at its next report."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work."""

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Go on, unless the stage was cancelled."""
        if self._cancelled.is_set():
            raise Cancelled

    def done(self) -> None:
        """End a piece of work."""

    def show(self, make: Callable[[], xr.Dataset]) -> None:
        """Look at nothing."""

    def cancel(self) -> None:
        """Ask the stage to stop."""
        self._cancelled.set()


def viewer_of(reporter: Reporter | None) -> Viewer:
    """Return a reporter that can be shown unfinished results: itself, or one that passes on the rest."""
    if reporter is None:
        return Silent()
    return reporter if isinstance(reporter, Run | Silent) else Run(None, (), reporter)


class Clock:
    """Seconds, as ``time.perf_counter`` counts them, that stand still while a run is paused."""

    def __init__(self) -> None:
        self._state: tuple[float, float | None] = 0.0, None  # s of all pauses, and when the present one began

    def __call__(self) -> float:
        """Return the time."""
        lost, stopped = self._state
        return (time.perf_counter() if stopped is None else stopped) - lost

    def stop(self) -> None:
        """Stand still."""
        self._state = self._state[0], time.perf_counter()

    def go_on(self) -> None:
        """Go on where it stopped."""
        lost, stopped = self._state
        if stopped is not None:
            self._state = lost + time.perf_counter() - stopped, None


START_UP = 1.5  # times the first report: until then, what is loaded and compiled once, and the first of each worker


@dataclass(frozen=True)
class Work:
    """A piece of work within a run."""

    what: str
    total: int
    done: int = 0
    found: int = 0  # of those done: by an earlier run
    started: float = 0.0  # s, of ``clock``
    seconds: float | None = None  # once it has ended, pauses left out
    units: str = ""  # what is counted, as far as the reports tell: micrographs or steps
    looked_s: float = 0.0  # s to the last report of units found done
    first_s: float | None = None  # s from there to the first report of units done, what is loaded for it included
    settled: tuple[int, float] = (0, 0.0)  # units and s at the last report that start-up had a part in
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False, compare=False)

    @property
    def elapsed_s(self) -> float:
        """Time it has taken so far, s, pauses left out."""
        return self.clock() - self.started if self.seconds is None else self.seconds

    @property
    def rate_per_s(self) -> float | None:
        """Units done per second, those found done left out: of all once it has ended, until then without start-up.

        None before anything is done that start-up has no part in.
        """
        if self.seconds is not None:
            units, seconds = self.done - self.found, self.seconds - self.looked_s
        else:
            units, seconds = self.done - self.settled[0], self.elapsed_s - self.settled[1]
        return units / seconds if units > 0 and seconds > 0 and self.first_s is not None else None

    def advanced(self, n: int, facts: Mapping[str, Any]) -> Work:
        """Return the work with ``n`` more units done."""
        found = n if "from_an_earlier_run" in facts else 0
        units = self.units
        if n:
            units = (
                "micrographs" if {"micrograph", "from_an_earlier_run"} & set(facts) and units != "steps" else "steps"
            )
        done, looked_s, first_s, settled = self.done + n, self.looked_s, self.first_s, self.settled
        if found:
            looked_s = self.elapsed_s
        elif n:
            elapsed = self.elapsed_s
            first_s = elapsed - looked_s if first_s is None else first_s
            settled = (done, elapsed) if elapsed - looked_s <= START_UP * first_s else settled
        return replace(
            self, done=done, found=self.found + found, units=units, looked_s=looked_s, first_s=first_s, settled=settled
        )

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present rate, s; None before there is one, or after the end."""
        rate = self.rate_per_s
        return None if rate is None or self.seconds is not None else max(self.total - self.done, 0) / rate


@dataclass(frozen=True)
class Snapshot:
    """How a run stands; never changed, replaced by the next version."""

    version: int = 0
    state: str = "waiting"  # then running or paused, then done, cancelled or failed
    works: tuple[Work, ...] = ()  # in their order; the last is in hand
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # the last told of each
    told: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # in the last report
    micrographs: tuple[str, ...] = ()  # finished in the last piece of work that names them
    so_far: xr.Dataset | None = None  # the unfinished result
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "cancelled", "failed")


class Run:
    """One run of a stage or job: a reporter that remembers, passes on what it is told, and can be paused and cancelled.

    The run of a stage within a job is paused and goes on with that of the job, and is watched if that is.
    """

    def __init__(self, stage: Any, inputs: tuple[Any, ...] = (), reporter: Reporter | None = None):
        """Stand ready to follow ``stage.run(..., *inputs)``; ``reporter`` is told everything too."""
        self.stage = stage
        self.inputs = inputs
        settings = getattr(stage, "settings", {})
        self.settings: dict[str, Any] = dict(settings() if callable(settings) else settings)
        self.snapshot = Snapshot()
        self.result: Any = None
        self.exception: BaseException | None = None
        self.seconds: float | None = None  # once it has ended, pauses left out
        self.started = time.perf_counter()
        self.ended_at: float | None = None  # likewise
        self._reporter = reporter
        self._outer = reporter if isinstance(reporter, Run) and reporter.stage is not None else None
        self._clock: Clock = Clock() if self._outer is None else self._outer._clock
        self._lock = threading.Lock()
        self._go_on, self._ended = threading.Event(), threading.Event()
        self._go_on.set()
        self._cancelled = False
        self._show_from = 0.0
        # whether anybody looks at unfinished results
        self.watched: bool = self._outer is not None and self._outer.watched

    @property
    def name(self) -> str:
        """What is run."""
        return type(self.stage).__name__

    @property
    def state(self) -> str:
        """In one word: waiting, running, paused, done, cancelled or failed."""
        state = self.snapshot.state
        return "paused" if state == "running" and self._outer is not None and self._outer.state == "paused" else state

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled but goes on until its next report."""
        return self._cancelled and not self.snapshot.ended

    @property
    def error(self) -> str:
        """Why it failed, if it did."""
        return self.snapshot.error

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work of ``total`` units."""
        with self._lock:
            works = (*self.snapshot.works, self._work(what, total))
            self._show_from = 0.0  # what the work before has come to is shown at once
            self._change(works=works, micrographs=(), told=MappingProxyType({}))
        if self._reporter is not None:
            self._reporter.start(total, what)

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Report ``n`` more units done; wait here while paused.

        Raises
        ------
        Cancelled
            The run was cancelled.
        """
        with self._lock:
            *before, now = self.snapshot.works or (self._work("", 0),)
            named = (facts["micrograph"],) if "micrograph" in facts and "failed" not in facts else ()
            now = now.advanced(n, facts)
            self._change(
                works=(*before, now), micrographs=(*self.snapshot.micrographs, *named), told=MappingProxyType(facts),
                facts=MappingProxyType({**self.snapshot.facts, **facts}),
            )  # fmt: skip
        if self._reporter is not None:
            self._reporter.advance(n, **facts)
        self._go_on.wait()
        if self._cancelled:
            raise Cancelled

    def done(self) -> None:
        """End the piece of work."""
        with self._lock:
            if self.snapshot.works:
                *before, now = self.snapshot.works
                self._change(works=(*before, replace(now, seconds=now.elapsed_s)))
        if self._reporter is not None:
            self._reporter.done()

    def show(self, make: Callable[[], xr.Dataset]) -> None:
        """Keep an unfinished result to look at; ``make`` is called only while ``watched``, and not too often."""
        make = functools.cache(make)
        if isinstance(self._reporter, Run):  # of a job, whose stage this is
            self._reporter.show(make)
        begun = time.perf_counter()
        if self.watched and begun >= self._show_from:
            so_far = make()
            with self._lock:
                self._change(so_far=so_far)
            now = time.perf_counter()
            self._show_from = now + max(SHOW_EVERY_S, (now - begun) / SHOW_SHARE)

    def cancel(self) -> None:
        """Ask the run to stop; it does at its next report, and keeps what is finished."""
        self._cancelled = True
        self._go_on.set()

    def pause(self) -> None:
        """Ask the run to wait at its next report."""
        if self._outer is not None:
            self._outer.pause()
            return
        with self._lock:
            if self.snapshot.state == "running":
                self._go_on.clear()
                self._clock.stop()
                self._change(state="paused")

    def resume(self) -> None:
        """Let a paused run go on."""
        if self._outer is not None:
            self._outer.resume()
            return
        with self._lock:
            if self.snapshot.state == "paused":
                self._clock.go_on()
                self._change(state="running")
        self._go_on.set()

    def wait(self, timeout_s: float | None = None) -> Any:
        """Return the result once it is there.

        Raises
        ------
        TimeoutError
            It has not ended in time.
        Exception
            Whatever ended the run.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"{self.name} is still {self.state}")
        if self.exception is not None:
            raise self.exception
        return self.result

    def ends_within(self, timeout_s: float) -> bool:
        """Wait for the end of the run, so long at most; return whether it has ended."""
        return self._ended.wait(timeout_s)

    def follow(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns, remembering how it went, within the reporter's context ``watching(run)`` if any."""
        watching = getattr(self._reporter, "watching", None)
        with nullcontext() if watching is None else watching(self):
            return self._follow(call)

    def _follow(self, call: Callable[[], Any]) -> Any:
        self.started, begun = time.perf_counter(), self._clock()
        try:
            if self._cancelled:
                raise Cancelled
            with self._lock:
                self._change(state="running")
            self.result = call()
            state = "done"
            return self.result
        except (Cancelled, KeyboardInterrupt) as stop:
            self.exception, state = stop, "cancelled"
            raise
        except BaseException as error:
            self.exception, state = error, "failed"
            raise
        finally:
            self.seconds, self.ended_at = self._clock() - begun, time.perf_counter()
            if isinstance(self.exception, (Cancelled, KeyboardInterrupt, InputError, MemoryError, OSError)):
                traceback.clear_frames(self.exception.__traceback__)  # a run is kept, what it was at work on is not
            with self._lock:
                self._change(state=state, error=str(self.exception) if state == "failed" else "")
            self._ended.set()

    def fail(self, error: BaseException) -> None:
        """End a run that could not even begin; nothing changes for one that has ended."""
        if not self.snapshot.ended:
            self.exception, self.ended_at = error, time.perf_counter()
            with self._lock:
                self._change(state="failed", error=str(error))
            self._ended.set()

    @classmethod
    def of_result(cls, stage: Any, inputs: tuple[Any, ...], result: Any) -> Run:
        """Return the record of a result that is there already, from a store."""
        run = cls(stage, inputs)
        run.result, run.seconds, run.ended_at = result, 0.0, run.started
        run.snapshot = Snapshot(state="done")
        run._ended.set()
        return run

    def _work(self, what: str, total: int) -> Work:
        return Work(what, total, started=self._clock(), clock=self._clock)

    def _change(self, **parts: Any) -> None:
        self.snapshot = replace(self.snapshot, version=self.snapshot.version + 1, **parts)


def recorded(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let a ``run`` method leave a ``Run`` in ``self.ran``, and among the runs of the session that it is given."""
    signature = inspect.signature(run)

    @functools.wraps(run)
    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        _, *given = bound.arguments.values()
        reporter = bound.arguments.get("reporter")
        sessions = [s for s in (getattr(self, "session", None), *given) if hasattr(s, "runs")]
        if isinstance(reporter, Run) and reporter.stage is self and reporter.state == "waiting":
            mine = reporter  # submitted: a session has it already
        else:
            inputs = tuple(value for value in given if value is not reporter and not hasattr(value, "runs"))
            mine = Run(self, inputs, reporter or self.new_reporter())
            for session in sessions[:1]:
                session.runs.append(mine)
        self.ran = mine  # the latest: another thread may run the same stage
        if "reporter" in signature.parameters:
            bound.arguments["reporter"] = mine
        with one_blas_thread():  # what is small for BLAS's own threads is under way in those of the session
            return mine.follow(lambda: run(*bound.args, **bound.kwargs))

    return recording
