"""The Search tab."""

from __future__ import annotations

from refmotion_nb.views.app.tab import Tab


class SearchTab(Tab):
    """."""

    title = "Search"
