"""What every tab of the app has in common."""

from __future__ import annotations

from typing import Any, ClassVar

import panel as pn

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.figure import Figure
from refmotion_nb.views.app.rights import LOOKING_ON, seat


class Tab:
    """One tab on one page: widgets of its own over the engine that all pages share."""

    title: ClassVar[str] = ""
    served = False  # whether its page has files of the output folder to download

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets; ``view`` is what is shown."""
        self.engine: Any = seat(engine, viewer)  # the engine, which checks the viewer's right
        self.viewer = viewer
        self.problem = parts.problem()
        self.view: Any = pn.Column(self.problem, sizing_mode="stretch_width")
        self._figures: list[Figure] = []
        self.unread = False  # whether ``problem`` tells what could not be read

    def new_figure(self, **options: Any) -> Figure:
        """Return a place for a figure, for as long as the page is there; ``options`` are those of ``Figure``."""
        self._figures.append(Figure(self.engine, **options))
        return self._figures[-1]

    def refresh(self) -> None:
        """Bring what is shown up to date: see ``update``."""

    def update(self) -> None:
        """Refresh; what cannot be read is told at the top of the tab.

        Called on the page's own loop, when the tab is in front and something changed. What cannot be read is looked at once
        more first: a run may be putting another result in its place. All is sent in one message, so that no change of a
        figure can come before the figure.
        """
        try:
            with pn.io.hold():
                self._refresh()
        except (InputError, OSError) as error:
            self.unread = True
            parts.tell(self.problem, str(error))
        else:
            if self.unread:
                self.unread = False
                parts.tell(self.problem, "")

    def _refresh(self) -> None:
        try:
            self.refresh()
        except (InputError, OSError):
            self.refresh()

    def attempt(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what ``call`` returns; what is wrong with the input is shown at the top of the tab."""
        self.unread = False
        parts.tell(self.problem, "")
        try:
            if not self.viewer.may_run:
                raise InputError(LOOKING_ON)
            return call(*args, **kwargs)
        except (InputError, OSError) as error:
            parts.tell(self.problem, str(error))
            return None

    def close(self) -> None:
        """Let go of what the tab holds; the page is gone."""
        for figure in self._figures:
            figure.close()
