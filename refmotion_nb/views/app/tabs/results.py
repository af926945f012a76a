"""The Results tab: what was gained, and where it lies."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.correction import MotionCorrection
from refmotion_nb.stages.validation import Validation
from refmotion_nb.views import plots
from refmotion_nb.views.app import comparing, ending, parts, written
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.figure import Same
from refmotion_nb.views.app.notebook import code_of, notebook_of
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.report_html import paragraphs
from refmotion_nb.views.report_maps import gains, resolution_table
from refmotion_nb.views.report_summary import next_step


class ResultsTab(Tab):
    """FSC, particles and maps before and after, tables, files."""

    title = "Results"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.nothing = parts.empty("")
        self.ended, self.files = parts.words(""), parts.words("")
        self.fsc, self.table, self.images, self.maps, self.written = (self.new_figure() for _ in range(5))
        self.micrograph = pn.widgets.Select(label="Micrograph", options=[], width=260, margin=5)
        self.micrograph.param.watch(lambda _: self.update(), "value")
        self.code = pn.widgets.TextAreaInput(
            margin=5,
            label="Code",
            disabled=True,
            rows=18,
            max_length=100_000,
            sizing_mode="stretch_width",
            css_classes=["rm-code"],
        )
        self.copy = pn.widgets.Button(label="Copy as notebook code", margin=5)
        self.copy.js_on_click(args={"code": self.code}, code="navigator.clipboard.writeText(code.value)")
        self.notebook = pn.widgets.FileDownload(
            margin=5,
            callback=lambda: notebook_of(code_of(engine)),
            filename="refmotion.ipynb",
            label="Download as .ipynb",
        )
        self.cards = {
            "fsc": parts.card("What was gained", self.table.view, self.fsc.view, styles=_beside(700)),
            "maps": parts.card("Map, central slice", self.maps.view, styles=_beside(1020)),
            "images": parts.card(
                "Particles, low-pass filtered to 10 Å", self.micrograph, self.images.view, styles=_beside(810)
            ),
            "written": parts.card("Particles and files", self.written.view, self.files, styles=_beside(810)),
        }
        found = pn.FlexBox(*self.cards.values(), align_items="stretch", sizing_mode="stretch_width", gap="0")
        self.cards["code"] = parts.card(
            "The same in a notebook",
            parts.words("Code that opens these data and does what was done here, with the settings in force."),
            pn.Row(self.copy, self.notebook), self.code,
        )  # fmt: skip
        self.view[:] = [self.problem, self.ended, self.nothing, found, self.cards["code"]]
        self._listed: Any = None

    def refresh(self) -> None:
        """Show what there is."""
        engine, validation, store = self.engine, self.engine.result("validation"), self.engine.store
        there = store is not None and store.has("particles")
        parts.say(self.ended, ending.told(ending.last_ended(engine, Validation, "correct", "validate")))
        self.nothing.param.update(visible=validation is None, object=escape(self._next(there)))
        self.cards["fsc"].visible = validation is not None
        if validation is not None:
            self.table.show(Same(validation), lambda: parts.words(gained(validation)))
            self.fsc.show(Same(validation), lambda: comparing.every_fsc({"": validation}))
        self.cards["code"].visible = engine.session is not None
        self.code.value = code_of(engine)
        self._maps(validation)
        self._images()
        self.cards["written"].visible = there
        if store is not None and there:
            stamp = store.path, store.stamp("particles"), store.stamp()
            self.written.show(stamp, lambda: parts.words(_written(store)))
            self._files()

    def _next(self, there: bool) -> str:
        if there:
            return "What was gained is not known yet: “Correct and validate” on the Correct tab compares half maps."
        if self.engine.session is None:
            return "Open data on the Data tab first, or start the app on a folder with results."
        return "Nothing corrected yet: start it on the Correct tab. “Correct and validate” also tells what was gained."

    def _maps(self, validation: xr.Dataset | None) -> None:
        found = [] if validation is None else written.maps_in(self.engine.out, self.engine.roots)
        self.cards["maps"].visible = bool(found)
        if found:
            key = tuple((path, path.stat().st_mtime_ns) for path in found)
            self.maps.show(key, lambda: plots.slices({path.stem: path for path in found}))

    def _images(self) -> None:
        """Show particles as they were corrected; before that, as they would be."""
        engine, session = self.engine, self.engine.session
        run = session.latest(MotionCorrection) if session else None
        search, dose = run.inputs[:2] if run else (engine.result("search"), engine.result("dose_weights"))
        ready = session is not None and search is not None and dose is not None and engine.live is None
        self.cards["images"].visible = ready
        if not ready:
            return
        names = list(session)
        if self.micrograph.options != names:
            self.micrograph.param.update(options=names, value=names[0])
        name, settings = self.micrograph.value, self._settings(run)
        key = name, Same(search), Same(dose), str(settings)
        self.images.show(key, lambda: plots.particles(session, name, search, dose, stage=_correction(settings)))

    def _settings(self, run: Any) -> dict[str, Any]:
        """Return the settings that particles were corrected with, else those they will be corrected with."""
        store = self.engine.store
        if run is not None:
            return run.settings
        return store.attrs.get("settings", {}) if store and store.has("particles") else self.engine.settings

    def _files(self) -> None:
        """List what was written, when the output folder has changed."""
        out = self.engine.out
        if (listed := (out, out.stat().st_mtime_ns)) != self._listed:
            self._listed = listed
            self.files.object = written.listing(out, self.engine.roots, self.served)


def _beside(width: int) -> dict[str, str]:
    """Return the style of a card that stands beside the next one where the page has room for ``width`` px of it."""
    return {"flex": f"1 1 {width}px", "min-width": "0"}


def gained(validation: xr.Dataset) -> str:
    """Return what was gained as HTML."""
    return paragraphs(gains(validation)) + resolution_table(validation)


def _written(store: ResultStore) -> str:
    particles = store.read("particles")
    if particles is None:
        raise InputError("the particles are being written anew; look again in a moment")
    told = written.in_words(particles, store.path.parent, list(store.attrs.get("warnings", [])))
    following = f"<p><b>What next</b></p>{paragraphs([next_step(store.attrs)])}"
    return told + (following if particles["written"].values.any() else "")


def _correction(settings: dict[str, Any]) -> MotionCorrection:
    try:
        return MotionCorrection(**{name: value for name, value in settings.items() if name in MotionCorrection.param})
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None
