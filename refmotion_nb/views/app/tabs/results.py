"""The Results tab: what was gained, and where it lies."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn
import xarray as xr

from refmotion_nb.views import plots
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.figure import Figure
from refmotion_nb.views.app.notebook import code_of, notebook_of
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.report_maps import gains, resolution_table

FILES = {
    "report.html": "report", "particles.star": "particles for RELION", "particles.cs": "particles for CryoSPARC",
    "particles.csg": "their group, to import in CryoSPARC", "dose_weights.nc": "dose weights, to edit or reuse",
    "hyperparameters.json": "hyperparameters, to reuse", "bfactors.star": "B-factors as RELION writes them",
}  # fmt: skip


class ResultsTab(Tab):
    """FSC, particles and maps before and after, tables, files."""

    title = "Results"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.nothing = parts.empty("")
        self.fsc, self.images, self.maps = Figure(engine), Figure(engine), Figure(engine)
        self.table = pn.pane.HTML("", sizing_mode="stretch_width", css_classes=["rm-words"])
        self.written = pn.pane.HTML("", sizing_mode="stretch_width", css_classes=["rm-words"])
        self.micrograph = pn.widgets.Select(label="Micrograph", options=[], width=260)
        self.micrograph.param.watch(lambda _: self.refresh(), "value")
        self.downloads = pn.GridBox(ncols=3)
        self.code = pn.widgets.TextAreaInput(
            label="Code",
            disabled=True,
            rows=18,
            max_length=100_000,
            sizing_mode="stretch_width",
            css_classes=["rm-code"],
        )
        self.copy = pn.widgets.Button(label="Copy as notebook code")
        self.copy.js_on_click(args={"code": self.code}, code="navigator.clipboard.writeText(code.value)")
        self.notebook = pn.widgets.FileDownload(
            callback=lambda: notebook_of(code_of(engine)),
            filename="refmotion.ipynb",
            label="Download as .ipynb",
        )
        self.cards = {
            "fsc": parts.card("What was gained", self.table, self.fsc.view),
            "maps": parts.card("Map, central slice", self.maps.view),
            "images": parts.card("Particles, low-pass filtered to 10 Å", self.micrograph, self.images.view),
            "written": parts.card("Particles and files", self.written, self.downloads),
        }
        code = parts.card(
            "The same in a notebook",
            parts.words("Code that opens these data and does what was done here, with the settings in force."),
            pn.Row(self.copy, self.notebook), self.code,
        )  # fmt: skip
        self.view[:] = [self.problem, self.nothing, *self.cards.values(), code]
        self._listed: Any = None

    def refresh(self) -> None:
        """Show what there is."""
        engine, validation = self.engine, self.engine.result("validation")
        particles = self._particles()
        self.nothing.param.update(visible=validation is None and particles is None, object=escape(self._next()))
        self.cards["fsc"].visible = validation is not None
        if validation is not None:
            self.table.object = "".join(f"<p>{line}</p>" for line in gains(validation)) + resolution_table(validation)
            self.fsc.show(id(validation), lambda: plots.fsc(validation))
        self.code.value = code_of(engine)
        self._maps(validation)
        self._images()
        self.cards["written"].visible = particles is not None
        if particles is not None:
            self.written.object = written_in_words(particles, engine.out, self._warnings())
            self._files()

    def _next(self) -> str:
        if self.engine.session is None:
            return "Open data in the Data tab first, or start the app on a folder with results."
        return "Nothing corrected yet: start it in the Correct tab. “Correct and validate” also tells what was gained."

    def _particles(self) -> xr.Dataset | None:
        return self.engine.store.read("particles") if self.engine.store else None

    def _warnings(self) -> list[str]:
        return list(self.engine.store.attrs.get("warnings", [])) if self.engine.store else []

    def _maps(self, validation: xr.Dataset | None) -> None:
        out = self.engine.out
        assert out is not None
        there = [path for path in (out / "Maps").glob("*.mrc") if validation is not None and "_half" not in path.name]
        there.sort(key=lambda path: (path.stem != "rigid", path.stem))  # before, then after
        self.cards["maps"].visible = bool(there)
        if there:
            key = tuple((path, path.stat().st_mtime_ns) for path in there)
            self.maps.show(key, lambda: plots.slices({path.stem: path for path in there}))

    def _images(self) -> None:
        session, search, dose = self.engine.session, self.engine.result("search"), self.engine.result("dose_weights")
        ready = session is not None and search is not None and dose is not None and self.engine.live is None
        self.cards["images"].visible = ready
        if not ready:
            return
        assert session is not None
        names = list(session)
        if self.micrograph.options != names:
            self.micrograph.options = names
        name = self.micrograph.value or names[0]
        self.images.show((name, id(search), id(dose)), lambda: plots.particles(session, name, search, dose))

    def _files(self) -> None:
        out = self.engine.out
        assert out is not None
        there = [name for name in FILES if (out / name).is_file()]
        there += [path.name for path in sorted(out.glob("particles_*.star"))]
        if there != self._listed:
            self._listed = there
            self.downloads[:] = [
                pn.widgets.FileDownload(str(out / name), label=f"{name}: {FILES.get(name, 'particles for RELION')}", embed=False,
                                        auto=True, filename=name, width=330, margin=(4, 5))
                for name in there
            ]  # fmt: skip


def written_in_words(particles: xr.Dataset, out: Path | None, warnings: list[str]) -> str:
    """Return how many particles were written, why others were not, and what the run warned of, as HTML."""
    written = particles["written"].values
    reasons, counts = np.unique(particles["reason"].values[~written].astype(str), return_counts=True)
    lost = "".join(f"<li>{n} not written: {escape(reason)}</li>" for reason, n in zip(reasons, counts))
    told = "".join(f"<li>{escape(line)}</li>" for line in dict.fromkeys(warnings))
    return (
        f"<p><b>{int(written.sum())} of {len(written)} particles written</b> to {escape(str(out))}</p>"
        f"{f'<ul>{lost}</ul>' if lost else ''}{f'<p>Warnings:</p><ul>{told}</ul>' if told else ''}"
    )
