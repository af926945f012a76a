"""The Search tab: rays step outwards and retire while you watch; then what was chosen, and why."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import panel as pn

from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.views import plots
from refmotion_nb.views.app import in_force, parts, search_state
from refmotion_nb.views.app.design import page_is_dark
from refmotion_nb.views.app.engine import Engine, Viewer, words_of
from refmotion_nb.views.app.fields import Field
from refmotion_nb.views.app.figure import Same
from refmotion_nb.views.app.live_rays import LiveRays, legend
from refmotion_nb.views.app.rights import TOLD
from refmotion_nb.views.app.search_state import Standing
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.report_html import folded
from refmotion_nb.views.report_search import RAY_TABLE, ray_table, search_warnings, tell_search
from refmotion_nb.views.svg import number

SETTINGS = ("thoroughness", "target_particles", "max_strength", "alignment_fraction")
LIVE = "As it went"
DRAWN = {"Rays": plots.rays, "Scores": plots.scores, "Activity": plots.activity, "Score surface": plots.score_surface}
ALL = "all"
_TIGHT = (4, 3)
_HOW = (
    "Each ray keeps a balance and a correlation distance and turns up the total strength of the prior step by step. "
    "Trajectories from the coarser part of the images are judged by the finer part against the other half map: the lowest "
    "score wins. A ray retires once the prior leaves no motion."
)


class SearchTab(Tab):
    """Settings and buttons on the left; how the search stands, its rays and its choice beside them."""

    title = "Search"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.dark = page_is_dark()
        self.fields = {name: Field(name, HyperparameterSearch.param[name], self._change) for name in SETTINGS}
        self.start = parts.button("Start search", self._start, color="primary", width=122, margin=_TIGHT)
        self.pause = parts.button("Pause", self._pause, width=78, margin=_TIGHT)
        self.cancel = parts.button("Cancel", self._cancel, color="warning", width=78, margin=_TIGHT)
        self.instead = parts.button("Search instead", self._instead, width=150, visible=False)
        self.note = parts.words("")
        self.going, self.status = parts.words(""), parts.words("")
        self.chosen = parts.words("")
        self.warning = parts.problem()
        self.empty = parts.empty("")
        self.choice = pn.widgets.RadioButtonGroup(options=[LIVE, *DRAWN], value=LIVE, margin=(4, 8))
        self.shown = pn.widgets.Select(options={"all distances": ALL}, value=ALL, width=190, margin=(4, 8))
        self.key = parts.words("")
        self.live: LiveRays | None = None
        self.figures = pn.Column(sizing_mode="stretch_width")
        self.drawn = self.new_figure(larger=1.25)
        self.choice.param.watch(lambda _: self._other(), "value")
        self.shown.param.watch(lambda _: self.update(), "value")
        self._arrange()

    def _arrange(self) -> None:
        buttons = pn.Row(self.start, self.pause, self.cancel, margin=(4, 0))
        fields = [field.view for field in self.fields.values()]
        left = pn.Column(
            parts.card("Search for hyperparameters", *fields, buttons, self.note, self.instead),
            parts.words(f"<small>{_HOW}</small>", margin=(4, 14)), styles={"flex": "0 1 330px"},
        )  # fmt: skip
        self.told = parts.card("State of the search", self.going, self.chosen, self.status)
        self.still = parts.card("Of the finished search", self.drawn.view)
        self.above = pn.FlexBox(self.choice, self.shown, margin=(2, 0), gap="0")
        self.picture = pn.Column(self.above, self.figures, self.still, sizing_mode="stretch_width")
        right = pn.Column(
            self.empty, self.told, self.warning, self.picture, styles={"flex": "1 1 400px", "min-width": "0"}
        )
        self.view[:] = [self.problem, pn.FlexBox(left, right, sizing_mode="stretch_width", gap="0")]

    # what is done

    def _change(self, name: str, value: Any) -> None:
        self.engine.change(**{name: value})
        self.update()

    def _start(self) -> None:
        if self.attempt(self.engine.run, "hyperparameters") is not None:
            self.choice.value = LIVE
        self.update()

    def _pause(self) -> None:
        going = self.engine.going
        paused = going is not None and going.state == "paused"
        self.attempt(self.engine.resume if paused else self.engine.pause)
        self.update()

    def _cancel(self) -> None:
        self.attempt(self.engine.cancel)
        self.update()

    def _instead(self) -> None:
        self.attempt(in_force.search_instead, self.engine)
        self.update()

    def _other(self) -> None:
        self.drawn.clear()  # what is still there would be taken for what was chosen
        self.update()

    # what is shown

    def refresh(self) -> None:
        """Bring it up to date."""
        now = search_state.standing(self.engine)
        for name, field in self.fields.items():
            field.show(self.engine.settings.get(name), self.viewer.may_run)
        self._buttons(now)
        self.told.visible = now.state != "none"
        self.empty.visible = now.state == "none"
        self.empty.object = self._next()
        self._status(now)
        self._pictures(now)

    def _next(self) -> str:
        """Return what stands where the rays will be, before there are any."""
        if not self.viewer.may_run:
            return "Nothing is searched yet; who runs this app starts a search."
        if self.engine.session is None:
            return "Nothing is searched yet. Open data on the Data tab, then press Start search."
        return "Nothing is searched yet. Press Start search: rays will step outwards here."

    def _buttons(self, now: Standing) -> None:
        going, may = self.engine.going, self.viewer.may_run
        self.start.disabled = going is not None or not may or self.engine.session is None
        self.pause.label = "Resume" if now.state == "paused" else "Pause"
        self.pause.disabled = not (now.going and may and self.engine.can_pause)
        self.cancel.disabled = not (now.going and may and self.engine.can_cancel)
        asked = in_force.are_given(self.engine)
        self.instead.visible = asked and may
        self.start.label = "Take them" if asked else "Start search"
        note = self._note(now, asked, going)
        parts.say(self.note, f"<small>{escape(note)}</small>" if note else "")

    def _note(self, now: Standing, asked: bool, going: Run | None) -> str:
        if not self.viewer.may_run:
            return TOLD
        if asked:
            return in_force.in_force(self.engine)
        if self.engine.session is None:
            return "Open data on the Data tab first."
        if going is not None:
            return "" if now.going else f"Waiting for what is going on now: {words_of(going)}."
        if search_state.searched_already(now, self.engine.settings):
            return "This search has been made with these settings; change one to search anew."
        return ""

    def _status(self, now: Standing) -> None:
        dose, table = in_force.dose_per_frame(self.engine), now.table
        self.going.visible = now.going
        if now.going:
            self.going.object = f'<div role="status">{parts.bar(*search_state.progress(now))}</div>'
        parts.say(self.status, "" if now.going else self._ended(now))
        known = table is not None and "strength" in table.attrs
        said = parts.tiles(search_state.best_tiles(table, dose, now.going)) if known else ""
        counts = f"<p>{escape(search_state.ended_counts(table, now.going))}</p>" if now.has_rays else ""
        self.chosen.object = f"{said}{counts}"
        parts.tell(self.warning, "\n".join(search_warnings(table)) if now.state == "done" and table is not None else "")

    def _ended(self, now: Standing) -> str:
        if now.state == "failed":
            return f'<p role="alert"><b>The search failed.</b> {escape(now.error)}</p>'
        if now.state == "cancelled":
            kept = " What it had found until then is below; nothing of it is stored." if now.has_rays else ""
            return f"<p><b>The search was cancelled.</b>{kept} Start it again at any time.</p>"
        if now.table is None:
            return ""
        near = f"<p>{escape(RAY_TABLE)}</p>{ray_table(now.table)}" if now.has_rays else ""
        return f"<p>{escape(tell_search(now.table))}</p>{folded('Rays, the best first', near) if near else ''}"

    def _pictures(self, now: Standing) -> None:
        self.picture.visible = now.state != "none" and (now.going or now.has_rays)
        if not self.picture.visible:
            return
        self.choice.visible = now.state == "done"
        live = not self.choice.visible or self.choice.value == LIVE
        self.shown.visible = live
        self.figures.visible, self.still.visible = live, not live
        if live:
            self._draw(now)
        else:
            name, table = self.choice.value, now.table
            self.drawn.show((name, Same(table)), lambda: DRAWN[name](table))

    def _draw(self, now: Standing) -> None:
        rays = search_state.rays_of(now, self.engine.settings)
        if self.live is None or not self.live.rays.same(rays):
            self.live = LiveRays(rays, self.dark)
            distances = {
                "all distances": ALL,
                **{f"highlight {number(z)} Å": float(z) for z in np.unique(rays.distance)},
            }
            self.shown.param.update(options=distances, value=ALL)
            self.key.object = legend(rays)
            self.figures[:] = [self._laid_out(self.live)]
        shown = self.shown.value
        self.live.update(now.table if now.has_rays else None, None if shown == ALL else shown)

    def _laid_out(self, live: LiveRays) -> Any:
        curves = parts.card(
            "Score and motion left, a curve for each ray", self.key,
            pn.pane.Bokeh(live.score, sizing_mode="stretch_width"), pn.pane.Bokeh(live.activity, sizing_mode="stretch_width"),
            styles={"flex": "1 1 440px", "min-width": "0"},
        )  # fmt: skip
        walked = parts.card(
            "Rays: a dot for each step, coloured by its score", pn.pane.Bokeh(live.map, sizing_mode="stretch_width"),
            styles={"flex": "1 1 480px", "min-width": "0"},
        )  # fmt: skip
        return pn.FlexBox(walked, curves, flex_wrap="wrap", align_items="stretch", sizing_mode="stretch_width", gap="0")
