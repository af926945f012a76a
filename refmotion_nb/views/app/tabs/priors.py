"""The Priors tab."""

from __future__ import annotations

from refmotion_nb.views.app.tab import Tab


class PriorsTab(Tab):
    """."""

    title = "Priors"
