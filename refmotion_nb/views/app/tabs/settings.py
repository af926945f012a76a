"""The Settings tab."""

from __future__ import annotations

from refmotion_nb.views.app.tab import Tab


class SettingsTab(Tab):
    """."""

    title = "Settings"
