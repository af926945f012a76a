"""What every stage shares: declared parameters, a key for stored results, progress, cancellation."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from threading import Lock
from time import perf_counter
from typing import Any, ClassVar, Self

import param

from refmotion_nb.data.schema import SettingError
from refmotion_nb.stages.runs import Cancelled as Cancelled
from refmotion_nb.stages.runs import Reporter as Reporter
from refmotion_nb.stages.runs import Run, recorded
from refmotion_nb.stages.runs import Silent as Silent


def in_words(parameter: param.Parameter) -> str:
    """Return which values a parameter may have."""
    if isinstance(parameter, param.Boolean):
        return "True or False"
    if isinstance(parameter, param.Selector):
        return " or ".join(map(str, parameter.objects))
    if not isinstance(parameter, param.Number):
        return "text"
    kind = "a whole number" if isinstance(parameter, param.Integer) else "a number"
    return f"{kind} {within(parameter)}".rstrip()


def within(parameter: param.Number) -> str:
    """Return between what a number has to be."""
    (low, high), (with_low, with_high) = parameter.bounds or (None, None), parameter.inclusive_bounds
    lowest = "" if low is None else f"{'from' if with_low else 'above'} {low:g}"
    highest = "" if high is None else f"{'up to' if with_high else 'below'} {high:g}"
    if lowest and highest:
        return f"{lowest} to {high:g}" if with_low and with_high else f"{lowest}, {highest}"
    return lowest or highest


class Stopwatch:
    """The time in which at least one of several threads is at something; entered by each while it is."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.seconds = 0.0
        self._lock = Lock()
        self._inside = 0
        self._since = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = perf_counter()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self.seconds += perf_counter() - self._since


def hash_of(*content: Any) -> str:
    """Return a short hash of settings, to recognise results by."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Stage(param.Parameterized):
    """One step of the job: settings declared once, which are also the options and the widgets."""

    ran: Run | None = None
    new_reporter: ClassVar[Callable[[], Reporter]] = Silent  # for runs that are given none

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``run`` remember how it went."""
        super().__init_subclass__(**kwargs)
        if "run" in vars(cls):
            type.__setattr__(cls, "run", recorded(vars(cls)["run"]))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return a stage with those of the settings, by name, that it has; None stands for the default.

        Raises
        ------
        SettingError
            A value that is not allowed.
        """
        stage = cls()
        for name in cls.param:
            value = settings.get(name)
            if name == "name" or value is None:
                continue
            given = f"{value:g}" if isinstance(value, float) else value
            refusal = SettingError(name, f"is {given}; give {in_words(cls.param[name])}")
            if isinstance(value, float) and not math.isfinite(value):
                raise refusal
            try:
                setattr(stage, name, value)  # one by one, so that the error can name it
            except ValueError:
                raise refusal from None
        return stage

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes as class and settings: how it ran stays here."""
        return _with_settings, (type(self), {k: v for k, v in self.param.values().items() if k != "name"})

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change the result."""
        values = {name: value for name, value in self.param.values().items() if name != "name"}
        # 6 is 6.0: keys are hashes of text
        return {name: float(value) if type(self.param[name]) is param.Number and value is not None else value
                for name, value in values.items()}  # fmt: skip

    def key(self, *upstream: str) -> str:
        """Return a hash of class, settings and the keys of what the stage builds on."""
        return hash_of(type(self).__name__, self.settings(), upstream)


def _with_settings(kind: type[Stage], settings: dict[str, Any]) -> Stage:
    return kind(**settings)
