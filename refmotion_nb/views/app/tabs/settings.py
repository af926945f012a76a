"""The Settings tab: every parameter of the stages, from its declaration."""

from __future__ import annotations

from typing import Any

import panel as pn

from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.base import Stage
from refmotion_nb.stages.job import STAGES
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.fields import Field, fields_of
from refmotion_nb.views.app.tab import Tab

TITLES = {
    "Alignment": ("Alignment", "How particles are aligned in each frame: for the search, the weights and the correction."),
    "HyperparameterSearch": ("Search", "How the prior on motion is searched for; particles and seed are the dose weights' too."),
    "DoseWeights": ("Dose weights", "On what the decay of signal with dose is measured."),
    "MotionCorrection": ("Correction", "What is written."),
    "Validation": ("Validation", "What is reconstructed to compare."),
    "InputAudit": ("Check of the input", "Whether particles, reference and half sets belong together."),
    "Overrides": ("Prior given instead of searched", "All three strengths, or all three of RELION's; none: search."),
    "Execution": ("Machine", "Processors and memory; they do not change the results."),
}  # fmt: skip
COLUMNS = (
    ("Alignment", "InputAudit"),
    ("HyperparameterSearch", "DoseWeights", "Overrides"),
    ("MotionCorrection", "Validation", "Execution"),
)


class SettingsTab(Tab):
    """Fields by stage; what one page changes, all show."""

    title = "Settings"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the fields."""
        super().__init__(engine, viewer)
        self.fields: dict[str, Field] = {}
        self.told = parts.words("")
        self.reset = parts.button("Reset all to defaults", self._reset, width=190)
        cards = {kind.__name__: self._card(kind) for kind in (Alignment, *STAGES)}
        columns = [
            pn.Column(*(cards[name] for name in names if cards[name] is not None), styles={"flex": "1 1 310px"})
            for names in COLUMNS
        ]
        self.view[:] = [
            self.problem,
            pn.Row(self.told, self.reset, sizing_mode="stretch_width"),
            pn.FlexBox(*columns, sizing_mode="stretch_width", gap="4px"),
        ]

    def _card(self, kind: type[Stage]) -> Any:
        """Return the parameters of a stage that no card before has."""
        title, about = TITLES[kind.__name__]
        fresh: dict[str, Any] = {
            name: declared for name, declared in fields_of(kind).items() if name not in self.fields
        }
        if not fresh:
            return None
        made = {name: Field(name, declared, self._change) for name, declared in fresh.items()}
        self.fields |= made
        return parts.card(title, parts.words(f"<small>{about}</small>"), *(one.view for one in made.values()))

    def _change(self, name: str, value: Any) -> None:
        self.engine.change(**{name: value})

    def _reset(self) -> None:
        self.attempt(lambda: self.engine.change(**dict.fromkeys(self.engine.settings)))
        for one in self.fields.values():
            one.reset()

    def refresh(self) -> None:
        """Show the settings as they are, the changed ones marked."""
        settings, may = self.engine.settings, self.viewer.may_run
        for name, one in self.fields.items():
            one.show(settings.get(name), may)
        n = len(settings)
        told = f"<b>{n} changed</b> from the defaults (in colour)." if n else "All are at their defaults."
        goes = " What is running goes on with those it was started with." if self.engine.live else ""
        whose = "" if may else " You look on: only who may run changes them."
        self.told.object = f"<p>{told} They hold for the next run of any stage.{goes}{whose}</p>"
        self.reset.disabled = not (may and n)
