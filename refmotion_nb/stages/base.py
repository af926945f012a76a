"""What every stage shares: declared parameters, a key for stored results, progress, cancellation."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import param


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

    def cancel(self) -> None:
        """Ask the stage to stop."""
        self._cancelled.set()


def hash_of(*content: Any) -> str:
    """Return a short hash of settings, to recognise results by."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Ran:
    """The last run of a stage, for people to look at."""

    state: str = "running"  # then done, cancelled or failed
    started: float = field(default_factory=time.perf_counter)
    seconds: float | None = None  # once it has ended
    result: Any = None
    error: str = ""


def _remembered(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def remembering(self: Stage, *args: Any, **kwargs: Any) -> Any:
        self.ran = ran = Ran()
        try:
            ran.result = run(self, *args, **kwargs)
            ran.state = "done"
            return ran.result
        except (Cancelled, KeyboardInterrupt):
            ran.state = "cancelled"
            raise
        except BaseException as error:
            ran.state, ran.error = "failed", str(error)
            raise
        finally:
            ran.seconds = time.perf_counter() - ran.started

    return remembering


class Stage(param.Parameterized):
    """One step of the job: settings declared once, which are also the options and the widgets."""

    ran: Ran | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``run`` remember how it went."""
        super().__init_subclass__(**kwargs)
        if "run" in vars(cls):
            type.__setattr__(cls, "run", _remembered(vars(cls)["run"]))

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change the result."""
        return {name: value for name, value in self.param.values().items() if name != "name"}

    def key(self, *upstream: str) -> str:
        """Return a hash of class, settings and the keys of what the stage builds on."""
        return hash_of(type(self).__name__, self.settings(), upstream)
