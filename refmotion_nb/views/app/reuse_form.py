"""A small form that takes what another run has found from a file."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import panel as pn

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.browser import PathField
from refmotion_nb.views.app.roots import Roots

HYPERPARAMETERS = (".json", ".cs", ".csg", ".txt")
DOSE_WEIGHTS = (".nc", ".npy", ".cs", ".csg", ".star")


class ReuseForm:
    """A file to choose, a button to take it, and one to go back; folded away under a title."""

    def __init__(
        self,
        title: str,
        roots: Roots,
        suffixes: tuple[str, ...],
        about: str,
        attempt: Callable[..., Any],
        take: Callable[[Path | None], Any],
        *more: Any,
    ):
        """Make the widgets; ``attempt`` calls ``take`` with the file, or with None to go back, and tells what is wrong.

        ``more`` are widgets for what has to be said of some files.
        """
        self.more = more
        self.path = PathField("file", roots, suffixes, about)
        self.use = parts.button("Use this file", lambda: attempt(self._use, take), color="primary", width=130)
        self.back = parts.button("Use it no longer", lambda: attempt(take, None), width=140)
        self.told = parts.words("")
        self.view = parts.folded(title, self.path.view, *more, pn.Row(self.use, self.back, margin=0), self.told)

    def _use(self, take: Callable[[Path | None], Any]) -> None:
        if self.path.path is None:
            raise InputError("no file is given; choose one first")
        take(self.path.path)

    def refresh(self, may_run: bool, used: Path | None) -> None:
        """Let it be used by who may; ``used`` is the file that is taken now."""
        self.path.enable(may_run)
        for widget in self.more:
            widget.disabled = not may_run
        self.use.disabled, self.back.disabled = not may_run, not (may_run and used is not None)
        parts.say(
            self.told, "" if used is None else f"<small>The next run takes <code>{escape(str(used))}</code>.</small>"
        )
