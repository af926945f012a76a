"""The Data tab: open data, see what they hold and what was left out, look at movies and particles."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

import panel as pn

from refmotion_nb.data.check import Check, dataset_facts, left_out, movies_left_out
from refmotion_nb.data.schema import Dataset
from refmotion_nb.views.app import ending, parts
from refmotion_nb.views.app.browser import PathField
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.form import OpeningForm
from refmotion_nb.views.app.header import now_line
from refmotion_nb.views.app.movies import MovieBrowser
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.report_html import folded


class DataTab(Tab):
    """What is open beside the form that opens other data."""

    title = "Data"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the form; what is open is drawn by ``refresh``."""
        super().__init__(engine, viewer)
        self.form = OpeningForm(self.engine.roots, self.engine.check, self.engine.open, engine.example)
        self.out = PathField("results go to", self.engine.roots, (), "a folder; made when something is written")
        self.choose = parts.button(
            "Use this folder", lambda: self.attempt(self.engine.write_to, self.out.path or ""), width=140
        )
        self.going = parts.words("", visible=False)
        self.failed = parts.problem()
        self.checked = pn.Column(sizing_mode="stretch_width", margin=0)
        self.held = pn.Column(sizing_mode="stretch_width", margin=0)
        self.movies = MovieBrowser(engine, self.new_figure(larger=1.5, min_height=480))
        self.form_card = parts.folded("Open data", self.form.view, opened=True)
        self.others = parts.problem()
        out_card = parts.card("Output folder", self.out.view, self.choose, self.others)
        where = ", ".join(f"<code>{escape(str(folder))}</code>" for folder in engine.roots.folders)
        told = parts.words(f"<small>Files are read and written in {where} only.</small>")
        left = pn.Column(self.form_card, out_card, told, width=480, margin=0, styles={"flex": "0 1 480px"})
        right = pn.Column(
            self.problem, self.going, self.failed, self.checked, self.held, self.movies.view, sizing_mode="stretch_width",
            margin=0, styles={"flex": "1 1 640px"},
        )  # fmt: skip
        self.view[:] = [pn.FlexBox(left, right, flex_wrap="wrap", sizing_mode="stretch_width", gap="0")]
        self._shown: dict[str, Any] = {}

    def refresh(self) -> None:
        """Show what is open or being opened, and what was wrong."""
        engine, going = self.engine, self.engine.going
        opened = engine.opened
        busy = going is not None and going in (opened, engine.checked)
        self.going.param.update(object=now_line(going) if busy else "", visible=busy)
        parts.tell(self.failed, ending.why(opened) if opened is not None and opened.state == "failed" else engine.note)
        self.form.enable(self.viewer.may_run, going is None)
        self.out.enable(self.viewer.may_run)
        self.choose.disabled = not self.viewer.may_run or going is not None
        if self._new("out", engine.out):
            self.out.input.value = str(engine.out)
        whose = engine.of_other_data
        told = (
            f"The results in this folder are of other data, or of these read otherwise ({whose}): they are not shown. "
        )
        parts.tell(self.others, f"{told}A run replaces them; choose another folder to keep them." if whose else "")
        check = engine.checked
        if self._new("check", (check, check.state) if check is not None else None):
            self.checked[:] = _outcome(check) if check is not None and check.snapshot.ended else []
        if self._new("session", engine.session) and engine.session is not None:
            self.form_card.collapsed = True  # not before a check: its form may have to be mended
        if self._new("held", (engine.session, busy and engine.session is None, self.viewer.may_run)):
            self._hold(engine.session, busy)
        self.movies.refresh()

    def _new(self, what: str, state: Any) -> bool:
        changed = self._shown.get(what) != state
        self._shown[what] = state
        return changed

    def _hold(self, session: Any, busy: bool) -> None:
        if session is None:
            self.held[:] = [] if busy else self._nothing()
            return
        self.held[:] = [parts.card("What is open", parts.words(summary(session.data)))]

    def _nothing(self) -> list[Any]:
        """Return what stands where the data will be."""
        if not self.viewer.may_run:
            return [parts.empty("No data are open yet; who runs this app opens some.")]
        about = "144 simulated apoferritin particles on four movies; made once, in about half a minute (87 MB), then found again."
        return [
            parts.empty(
                "No data are open. Choose the files of a refinement and of motion correction on the left, and press Open."
            ),
            parts.card("Nothing at hand?", parts.words(f"<small>{about}</small>"), self.form.example),
        ]  # fmt: skip


def summary(data: Dataset) -> str:
    """Return the HTML of what a data set holds, and of what was left out and why."""
    return (
        parts.tiles(figures(data))
        + _listed(data)
        + folded("All facts", parts.table([*dataset_facts(data), *_files(data)]))
    )


def figures(data: Dataset) -> list[tuple[str, str]]:
    """Return the numbers to see at once (value, what it is)."""
    movies, particles = data.movies, data.particles
    frames, dose = ({getattr(movie, name) for movie in movies} for name in ("n_frames", "dose_per_frame_e_A2"))
    total = {movie.n_frames * movie.dose_per_frame_e_A2 for movie in movies}
    pixel = {movie.pixel_size_A for movie in movies}
    lost = sum(skip.row >= 0 for skip in data.skipped)
    return [
        (f"{particles.sizes['particle']:,}", "particles"), (f"{len(movies):,}", "movies"),
        (_span(frames), "frames each"), (f"{_span(dose)} e/Å²", "per frame"), (f"{_span(total)} e/Å²", "in all"),
        (f"{_span(pixel)} Å", "pixel"), (str(len(data.references)), "reference" + "s" * (len(data.references) != 1)),
        *([(f"{lost:,}", "particles left out")] if lost else []),
    ]  # fmt: skip


def _span(values: Iterable[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g}–{high:.4g}"


def _listed(data: Dataset) -> str:
    """Return what is worth a look, and what was left out and why."""
    drawn = ""
    if reasons := left_out(data):
        rows = [(f"{len(names):,}", why, f"e.g. on {names[0]}") for why, names in reasons.items()]
        drawn += "<h4>Particles left out</h4>" + parts.table(rows, ("particles", "why", ""))
    if idle := movies_left_out(data):
        rows = [(f"{len(names):,}", why, f"e.g. {names[0]}") for why, names in idle.items()]
        drawn += "<h4>Movies left out, without particles</h4>" + parts.table(rows, ("movies", "why", ""))
    if data.notes:
        drawn += "<h4>Worth a look</h4><ul>" + "".join(f"<li>{escape(note)}</li>" for note in data.notes) + "</ul>"
    return drawn


def _files(data: Dataset) -> list[tuple[str, str]]:
    maps = [
        (f"reference {i}", f"{one.half1}, {one.half2}; mask {one.mask or 'none'}")
        for i, one in enumerate(data.references, 1)
    ]
    return [*maps, *((what, str(path)) for what, path in data.sources)]


def _outcome(run: Any) -> list[Any]:
    """Return what a check found, as a card."""
    if run.state == "failed":
        return [parts.problem(ending.why(run))]
    if run.state != "done":
        return []
    found: Check = run.result
    heading = parts.problem("\n".join(f"• {one}" for one in found.problems)) if found.problems else (
        pn.pane.HTML("<b>Ready to process.</b> Press Open.", css_classes=["rm-good"], sizing_mode="stretch_width"))  # fmt: skip
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    told = parts.table(found.facts) + (f"<h4>Notes</h4><ul>{notes}</ul>" if notes else "")
    return [parts.card(f"Check: {found.title}", heading, parts.words(told))]
