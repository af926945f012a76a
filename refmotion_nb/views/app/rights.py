"""Who may do what: the engine as one viewer has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app.engine import Engine, Viewer

READING = frozenset({"stamp", "last", "result", "changed", "join", "leave"})  # calls that anybody may make
OWNERS = frozenset({"allow"})
LOOKING_ON = "you are looking on; ask the owner of this app for the right to run"


class Seat:
    """The engine with every call that may change something refused to who looks on, whatever page or button it is from."""

    def __init__(self, engine: Engine, viewer: Viewer):
        """Take the engine and the viewer whose right counts."""
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "_viewer", viewer)

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has; its calls check the right each time they are made."""
        value = getattr(self._engine, name)
        return self._checked(value) if callable(value) and name not in READING else value

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what the engine has, with the right to.

        Raises
        ------
        InputError
            The viewer looks on.
        """
        self._checked(setattr)(self._engine, name, value)

    def _checked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def checking(*args: Any, **kwargs: Any) -> Any:
            if not self._viewer.may_run:
                raise InputError(LOOKING_ON)
            if call.__name__ in OWNERS and not self._viewer.owner:
                raise InputError("only an owner of this app gives and takes the right to run")
            return call(*args, **kwargs)

        return checking


def seat(engine: Engine | Seat, viewer: Viewer) -> Any:
    """Return the engine as ``viewer`` has it."""
    return Seat(engine._engine if isinstance(engine, Seat) else engine, viewer)
