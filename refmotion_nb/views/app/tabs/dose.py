"""The Dose tab: how fast the signal decays, the weights that follow, and weights changed by hand."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.store import write_netcdf
from refmotion_nb.stages.dose_weights import DoseWeights
from refmotion_nb.stages.weight_edits import WeightEdits, edit_weights, factors_of
from refmotion_nb.views import plots
from refmotion_nb.views.app import ending, parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.fields import WIDTH
from refmotion_nb.views.app.figure import Same
from refmotion_nb.views.app.reuse_form import DOSE_WEIGHTS, ReuseForm
from refmotion_nb.views.app.rights import TOLD
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.setting_words import UNSET

PLOTS = {
    "FCC": lambda *which: (plots.fcc(*which) + plots.fcc_curves(*which)).opts(shared_axes=False),
    "Weights": plots.weights,
    "Weights of all frames": plots.weight_map,
    "B-factor and scale": plots.b_factors,
}
MEANING = {
    "FCC": "How well each frame agrees with the reference, by dose and spatial frequency: signal fades with dose, first at "
    "high resolution. Points are measured, lines are the model that the weights are made of.",
    "Weights": "What share of the sum each e/Å² has at a few resolutions, measured, with a band of 90 % confidence; dashed: the "
    "standard curve of Grant & Grigorieff.",
    "Weights of all frames": "What share each e/Å² has, at all resolutions; beside it by the standard curve. At coarse detail "
    "(left) all frames count alike, at fine detail (right) those of low dose.",
    "B-factor and scale": "Per frame, relative to the best one. Fast motion blurs the first frames: a high B-factor.",
}
EDITED = "dose_weights_edited.nc"


class DoseTab(Tab):
    """Measure, look, compare, edit."""

    title = "Dose"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.start = parts.button("Measure dose weights", self._start, color="primary")
        self.status = parts.words("", align="center")
        self.ended = parts.words("")
        self.what = pn.widgets.RadioButtonGroup(label="Plot", options=list(PLOTS), value="FCC", margin=5)
        self.group = pn.widgets.Select(
            label="Movies exposed alike", options=["all"], visible=False, width=320, margin=5
        )
        self.beside = pn.widgets.CheckBoxGroup(label="Compare with", options=[], inline=True, margin=5)
        self.meaning = parts.words("")
        self.figure = self.new_figure(larger=1.5)
        for widget in (self.what, self.group, self.beside):
            widget.param.watch(lambda _: self._other(), "value")
        self.editor = _Editor(self)
        self.last_frequency = pn.widgets.FloatInput(
            label="dose_weights_last_frequency_per_A", value=None, placeholder=UNSET, width=WIDTH, margin=(2, 5),
            description="Frequency (1/Å) of the last bin of refm_empirical_dw.npy, where the files beside it do not tell.",
        )  # fmt: skip
        self.reuse = ReuseForm(
            "Dose weights of another run", self.engine.roots, DOSE_WEIGHTS,
            "dose_weights.nc, refm_empirical_dw.npy, hyperparams.cs or .csg, or RELION's bfactors.star", self.attempt,
            lambda path: self.engine.use_dose_weights(path, self.last_frequency.value), self.last_frequency,
        )  # fmt: skip
        self.view[:] = [
            self.problem, pn.Row(self.start, self.status, sizing_mode="stretch_width"), self.ended,
            parts.card("Signal and weights", pn.Row(self.what, self.group), self.beside, self.meaning, self.figure.view),
            self.editor.view, self.reuse.view,
        ]  # fmt: skip

    def _start(self) -> None:
        self.attempt(self.engine.run, "dose-weights")
        self.update()

    def _other(self) -> None:
        self.figure.clear()  # what is still there would be taken for what was chosen
        self.update()

    def refresh(self) -> None:
        """Show the newest FCC: unfinished while it is measured."""
        run = self.engine.last(DoseWeights)
        table, told = self._table()
        self.start.disabled = not self.viewer.may_run or self.engine.session is None or self.engine.live is not None
        self.status.object = escape(told) + ("" if self.viewer.may_run else f" <small>{TOLD}</small>")
        parts.say(self.ended, ending.told(ending.last_ended(self.engine, DoseWeights, "dose-weights")))
        self.reuse.view.visible = self.engine.session is not None
        self.reuse.refresh(self.viewer.may_run, self.engine.dose_weights_file)
        self.beside.param.update(options=list(self.engine.compared), visible=bool(self.engine.compared))
        self.editor.refresh(table if run is None or run.state == "done" else None)
        if table is None:
            self.figure.instead(self._next())
            self.meaning.object = ""
            return
        groups = [str(name) for name in table["group"].values]
        self.group.param.update(options=groups, visible=len(groups) > 1)
        group = self.group.value if len(groups) > 1 else None
        what, others = str(self.what.value), tuple(self.beside.value)
        self.meaning.object = MEANING[what]
        self.figure.show((what, group, others, Same(table)), lambda: self._draw(what, group, others, table))

    def _draw(self, what: str, group: str | None, others: tuple[str, ...], table: xr.Dataset) -> Any:
        found = {
            name: self.engine.compared[name].read("dose_weights") for name in others if name in self.engine.compared
        }
        runs = {"this run": table, **{name: one for name, one in found.items() if one is not None}}
        return PLOTS[what](*((runs, None) if len(runs) > 1 else (table, group)))

    def _table(self) -> tuple[xr.Dataset | None, str]:
        """Return the table to show, and what to say of it."""
        run = self.engine.last(DoseWeights)
        if run is not None and not run.snapshot.ended:
            work = run.snapshot.works[-1] if run.snapshot.works else None
            counted = f"{work.done} of {work.total} micrographs measured" if work else "starting"
            return run.snapshot.so_far, "stopping …" if run.stopping else counted
        found, file = self.engine.result("dose_weights"), self.engine.dose_weights_file
        origin = "" if found is None else origin_in_words(found)
        follows = f"the next run takes {file.name}" if file is not None and origin != f"from {file.name}" else ""
        return found, "; ".join(filter(None, (origin, follows)))

    def _next(self) -> str:
        if self.engine.session is None:
            return "Open data on the Data tab first; then the decay of signal with dose can be measured here."
        return "Nothing measured yet. “Measure dose weights” searches the hyperparameters first, if that has not been done."


def origin_in_words(table: xr.Dataset) -> str:
    """Return where dose weights come from."""
    if "from_file" in table.attrs:
        return f"from {table.attrs['from_file']}"
    return f"measured on {int(table['particles'].values[0])} particles" if "particles" in table else ""


class _Editor:
    """Weights changed by hand, saved as a file that the correction then takes."""

    def __init__(self, tab: DoseTab):
        self.tab = tab
        self.table: xr.Dataset | None = None
        self.frames = pn.widgets.TextInput(
            margin=5, label="Factors of frames", placeholder="1: 0, 2-4: 0.5", sizing_mode="stretch_width"
        )
        self.share = pn.widgets.FloatSlider(
            label="Share of the standard curve", start=0, end=1, step=0.05, value=0, margin=5
        )
        self.beyond = pn.widgets.FloatInput(
            margin=5, label="Standard curve beyond (Å); 0: never", start=0, value=0, step=0.5, width=220
        )
        self.path = pn.widgets.TextInput(label="Save as (in the output folder)", value=EDITED, width=280, margin=5)
        self.save = parts.button("Save and use", lambda: tab.attempt(self._save), color="primary")
        self.back = parts.button("Use the measured weights", lambda: tab.attempt(self._back))
        self.told = parts.words("")
        self.wrong = parts.problem()
        self.figure = tab.new_figure(larger=1.2)
        for widget in (self.frames, self.share, self.beyond):
            change = "value_throttled" if widget is self.share else "value"
            widget.param.watch(lambda _: self._draw(), change)
        left = pn.Column(
            self.frames, self.wrong,
            parts.words("Frame: factor. 0 leaves a frame out, 0.5 halves its weight; 2-4 are frames 2 to 4."), self.share,
            self.beyond, self.path, pn.Row(self.save, self.back), self.told, width=370,
        )  # fmt: skip
        self.view = parts.card("Change the weights by hand", pn.Row(left, self.figure.view), visible=False)

    def refresh(self, table: xr.Dataset | None) -> None:
        """Offer the editor for finished weights."""
        self.view.visible = table is not None and self.tab.viewer.may_run
        file = self.tab.engine.dose_weights_file
        self.back.disabled = file is None
        parts.say(self.told, "" if file is None else f"The next correction takes {escape(file.name)}.")
        if table is not None:
            self.table = table
            self._draw()

    def edits(self) -> WeightEdits:
        """Return what the widgets say."""
        return WeightEdits(factors_of(self.frames.value), self.beyond.value or None, self.share.value)

    def _draw(self) -> None:
        """Show the weights that the widgets stand for; what is no frame with a factor is told below its field."""
        table = self.table
        try:
            edits = self.edits()
        except InputError as error:
            parts.tell(self.wrong, str(error))
            return
        parts.tell(self.wrong, "")
        if table is None or edits == WeightEdits():
            self.figure.instead("Edited weights are drawn here beside those above.")
            return

        def both() -> Any:
            return plots.weights({"as they are": table, "edited": edit_weights(table, edits)})

        self.figure.show((Same(table), str(edits)), both)

    def _save(self) -> None:
        if self.table is None:
            raise InputError("there are no weights to edit yet; measure them first")
        out = self.tab.engine.out
        assert out is not None
        path = self.tab.engine.roots.resolve(out / self.path.value)
        if path.suffix != ".nc":
            raise InputError(f"{self.path.value}: dose weights are saved as NetCDF; let the name end with .nc")
        if path == out / "dose_weights.nc":
            raise InputError("dose_weights.nc is what the run writes itself; give another name")
        write_netcdf(path, edit_weights(self.table, self.edits()))
        self.tab.engine.use_dose_weights(path)
        self.tab.update()

    def _back(self) -> None:
        self.tab.engine.use_dose_weights(None)
        self.tab.update()
