"""What every stage shares: declared parameters, a key for stored results, progress, cancellation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, ClassVar

import param

from refmotion_nb.stages.runs import Cancelled as Cancelled
from refmotion_nb.stages.runs import Reporter as Reporter
from refmotion_nb.stages.runs import Run, recorded
from refmotion_nb.stages.runs import Silent as Silent


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

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes as class and settings: how it ran stays here."""
        return _with_settings, (type(self), {k: v for k, v in self.param.values().items() if k != "name"})

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change the result."""
        return {name: value for name, value in self.param.values().items() if name != "name"}

    def key(self, *upstream: str) -> str:
        """Return a hash of class, settings and the keys of what the stage builds on."""
        return hash_of(type(self).__name__, self.settings(), upstream)


def _with_settings(kind: type[Stage], settings: dict[str, Any]) -> Stage:
    return kind(**settings)
