"""The Correct tab."""

from __future__ import annotations

from refmotion_nb.views.app.tab import Tab


class CorrectTab(Tab):
    """."""

    title = "Correct"
