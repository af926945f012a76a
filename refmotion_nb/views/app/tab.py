"""What every tab of the app has in common."""

from __future__ import annotations

from typing import Any, ClassVar

import panel as pn

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.rights import LOOKING_ON, seat


class Tab:
    """One tab on one page: widgets of its own over the engine that all pages share."""

    title: ClassVar[str] = ""

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets; ``view`` is what is shown."""
        self.engine: Any = seat(engine, viewer)  # the engine, which checks the viewer's right
        self.viewer = viewer
        self.problem = parts.problem()
        self.view: Any = pn.Column(self.problem, sizing_mode="stretch_width")

    def refresh(self) -> None:
        """Bring what is shown up to date: called on the page's own loop, when the tab is in front and something changed."""

    def attempt(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what ``call`` returns; what is wrong with the input is shown at the top of the tab."""
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
