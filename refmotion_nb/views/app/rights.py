"""Who may do what: what all pages share as one viewer has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app.engine import Viewer
from refmotion_nb.views.app.roots import Roots

READING = frozenset({
    "stamp", "last", "result", "changed", "join", "leave",  # of the engine
    "place", "resolve", "holds",  # of the folders that may be used
    "watch", "settle",  # of the explorer
})  # calls that anybody may make  # fmt: skip
OWNERS = frozenset({"allow"})
LOOKING_ON = "you are looking on; ask the owner of this app for the right to run"

TOLD = "You are looking on: the owner of this app can give you the right to run."  # where buttons are off for it


class Seat:
    """What all pages share, with every call refused to who looks on that is not for all, whatever widget it is from."""

    def __init__(self, shared: Any, viewer: Viewer):
        """Take the engine (or its folders, or its explorer) and the viewer whose right counts."""
        object.__setattr__(self, "_shared", shared)
        object.__setattr__(self, "_viewer", viewer)

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has; its calls check the right each time they are made."""
        value = getattr(self._shared, name)
        if isinstance(value, Roots):
            return Seat(value, self._viewer)
        return self._checked(value) if callable(value) and name not in READING else value

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what the engine has, with the right to.

        Raises
        ------
        InputError
            The viewer looks on.
        """
        self._checked(setattr)(self._shared, name, value)

    def _checked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def checking(*args: Any, **kwargs: Any) -> Any:
            if not self._viewer.may_run:
                raise InputError(LOOKING_ON)
            if call.__name__ in OWNERS and not self._viewer.owner:
                raise InputError("only an owner of this app gives and takes the right to run")
            return call(*args, **kwargs)

        return checking


def seat(shared: Any, viewer: Viewer) -> Any:
    """Return the engine, or the explorer, as ``viewer`` has it."""
    return Seat(shared._shared if isinstance(shared, Seat) else shared, viewer)
