"""What every tab of the app has in common."""

from __future__ import annotations

from typing import Any, ClassVar

import panel as pn

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app.engine import Engine, Viewer


class Tab:
    """One tab on one page: widgets of its own over the engine that all pages share."""

    title: ClassVar[str] = ""

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets; ``view`` is what is shown."""
        self.engine = engine
        self.viewer = viewer
        self.problem = pn.pane.HTML("", css_classes=["rm-problem"], visible=False, sizing_mode="stretch_width")
        self.view: Any = pn.Column(self.problem, sizing_mode="stretch_width")

    def refresh(self) -> None:
        """Bring what is shown up to date: called on the page's own loop, when the tab is in front and something changed."""

    def attempt(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what ``call`` returns; what is wrong with the input is shown at the top of the tab."""
        from html import escape

        self.problem.visible = False
        try:
            if not self.viewer.may_run:
                raise InputError("you are looking on; ask the owner of this app for the right to run")
            return call(*args, **kwargs)
        except (InputError, OSError) as error:
            self.problem.param.update(object=escape(str(error)), visible=True)
            return None
