"""Fields made from declared parameters: kind, bounds, choices and help come from the one declaration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import param

from refmotion_nb.stages.device import choices
from refmotion_nb.views.app import parts
from refmotion_nb.views.setting_words import UNSET, help_of

WIDTH = 270  # px
CHECKED, LETTER = 60, 8  # of a box to check with its help, and of a letter of its name


class Field:
    """One parameter on the page: its widget, marked where it is changed, and what was wrong with the last entry."""

    def __init__(self, name: str, declared: param.Parameter, change: Callable[[str, Any], None], width: int = WIDTH):
        """Make the widget; ``change`` is called with name and value (None: the default), and may refuse by ValueError."""
        self.name = name
        self.declared = declared
        self._change = change
        self._setting = False
        self.widget = _widget(name, declared, width)
        self.problem: Any = None  # made when it is needed, as there are many fields
        self.view = pn.Column(self.widget, margin=0, width=width + 20)
        if isinstance(self.widget, pn.widgets.Checkbox):  # has no help of its own
            help_icon = pn.widgets.TooltipIcon(value=help_of(declared), margin=0, width=20)
            self.view[:] = [pn.Row(self.widget, help_icon, margin=0)]
            self.view.width = max(self.view.width, CHECKED + LETTER * len(name))  # its name stands in one line
        self.widget.param.watch(self._entered, "value")

    def _entered(self, event: Any) -> None:
        if self._setting:
            return
        value = event.new
        if value == "" and not isinstance(self.declared, param.Selector):
            value = None
        self.reset()
        try:
            self._change(self.name, None if value == self.declared.default else value)
        except (ValueError, OSError) as error:
            self.problem = parts.problem(str(error))
            self.view[:] = [self.view[0], self.problem]

    def show(self, value: Any, may_change: bool) -> None:
        """Show the value that counts: None is the default."""
        shown = self.declared.default if value is None else value
        self._setting = True
        try:
            if self.widget.value != shown and self.problem is None:
                self._offer(shown)
                text = isinstance(self.widget, pn.widgets.TextInput | pn.widgets.Select)  # where "" stands for no value
                self.widget.value = "" if shown is None and text else shown
        finally:
            self._setting = False
        changed = value is not None and value != self.declared.default
        self.widget.css_classes = ["rm-field", "rm-changed"] if changed else ["rm-field"]
        self.widget.disabled = not may_change

    def _offer(self, value: Any) -> None:
        """Let the device be one that another page or a notebook named."""
        if self.name == "device" and value not in self.widget.options.values():
            self.widget.options = {**self.widget.options, value: value}

    def reset(self) -> None:
        """Forget a refused entry."""
        if self.problem is not None:
            self.problem, self.view[:] = None, [self.view[0]]


def fields_of(kind: type[param.Parameterized]) -> dict[str, param.Parameter]:
    """Return the parameters that a stage declares, by name."""
    return {name: kind.param[name] for name in kind.param if name != "name"}


def _widget(name: str, declared: param.Parameter, width: int) -> Any:
    if isinstance(declared, param.Boolean) and not declared.allow_None:
        return pn.widgets.Checkbox(label=name, value=declared.default, margin=(5, 5))
    common = {
        "label": name,
        "value": declared.default,
        "width": width,
        "margin": (2, 5),
        "description": help_of(declared),
    }
    if name == "device":
        return pn.widgets.Select(options=choices(), **common)
    if isinstance(declared, param.Boolean):
        options = {UNSET: "", "on": True, "off": False}  # a browser is not told a None, and would show nothing
        return pn.widgets.Select(options=options, **{**common, "value": ""})
    if isinstance(declared, param.Selector):
        return pn.widgets.Select(options=list(declared.objects), **common)
    if isinstance(declared, param.Number):
        kind = pn.widgets.IntInput if isinstance(declared, param.Integer) else pn.widgets.FloatInput
        return kind(placeholder=UNSET, **common)
    return pn.widgets.TextInput(placeholder=UNSET, **{**common, "value": declared.default or ""})
