"""The Compare tab."""

from __future__ import annotations

from refmotion_nb.views.app.tab import Tab


class CompareTab(Tab):
    """."""

    title = "Compare"
