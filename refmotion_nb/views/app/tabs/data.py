"""The Data tab."""

from __future__ import annotations

from refmotion_nb.views.app.tab import Tab


class DataTab(Tab):
    """."""

    title = "Data"
