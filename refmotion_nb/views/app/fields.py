"""A few settings as widgets on a tab, made from the parameters' declarations; the Settings tab has all of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import panel as pn
import param

from refmotion_nb.stages.base import Stage
from refmotion_nb.views.app.tab import Tab


class Fields:
    """Widgets for some parameters of a stage, in step with the settings that all pages share."""

    def __init__(self, tab: Tab, kind: type[Stage], names: Iterable[str], **options: Any):
        """Make them; what is wrong with a value is shown on ``tab``."""
        self.tab = tab
        self.kind = kind
        self.widgets = {name: _widget(name, kind.param[name], **options) for name in names}
        self._placing = False
        for name, widget in self.widgets.items():
            widget.param.watch(partial(self._changed, name), "value")

    def refresh(self) -> None:
        """Show what the settings are now."""
        self._placing = True
        try:
            for name, widget in self.widgets.items():
                default = self.kind.param[name].default
                value = self.tab.engine.settings.get(name, default)
                changed = ["rm-changed"] if value != default else []
                widget.param.update(value=value, disabled=not self.tab.viewer.may_run, css_classes=changed)
        finally:
            self._placing = False

    def _changed(self, name: str, event: Any) -> None:
        if not self._placing:
            value = None if event.new == self.kind.param[name].default else event.new
            self.tab.attempt(self.tab.engine.change, **{name: value})
            self.refresh()


def _widget(name: str, declared: Any, **options: Any) -> Any:
    words = name.replace("_", " ")
    shared = {"label": words[:1].upper() + words[1:], "description": declared.doc, "value": declared.default, **options}
    if isinstance(declared, param.Selector):
        return pn.widgets.Select(options=list(declared.objects), **shared)
    if isinstance(declared, param.Integer):
        return pn.widgets.IntInput(step=1000 if (declared.default or 0) >= 1000 else 1, format="0,0", **shared)
    return pn.widgets.FloatInput(step=0.1 if abs(declared.default) < 10 else 1000, format="0,0.[00000]", **shared)
