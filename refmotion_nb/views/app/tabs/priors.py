"""The Priors tab: one micrograph under any prior, tried by hand; what is tried can be taken for the next run."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn

from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.views.app import ending, in_force, parts
from refmotion_nb.views.app.design import page_is_dark
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.explorer import ExplorerPane, explorer_pane
from refmotion_nb.views.app.exploring import explore, explored, micrographs
from refmotion_nb.views.app.reuse_form import HYPERPARAMETERS, ReuseForm
from refmotion_nb.views.app.tab import Tab

_WHAT = (
    "The prior says how much particles may move on their own, how smoothly, and how far neighbours move alike. Move the "
    "sliders: the trajectories of one micrograph follow, and the score tells how well the finer detail agrees with them."
)
NO_DATA = "No data are open. Open some on the Data tab, then try priors on one of its micrographs here."
NOT_YET = "Choose a micrograph above and press Explore: it is read once, then the sliders act at once."
NOTHING_TO_SEE = "No micrograph is explored yet; who runs this app chooses one."


class PriorsTab(Tab):
    """A choice of micrograph, the explorer of it, and what the next run will take."""

    title = "Priors"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.dark = page_is_dark()
        self.micrograph = pn.widgets.Select(label="Micrograph", options={}, width=330, margin=(0, 5))
        self.go = parts.button("Explore", self._explore, color="primary", width=100, align="end", margin=(0, 4))
        self.use = parts.button(
            "Use these hyperparameters", self._use, color="primary", width=220, align="end", margin=(0, 4)
        )
        self.instead = parts.button("Search instead", self._instead, width=130, align="end", margin=(0, 4))
        self.force = parts.words("", margin=(0, 4, 2, 4))
        self.status = parts.words("")
        self.empty = parts.empty(NO_DATA)
        self.place = pn.Column(sizing_mode="stretch_width")
        self.pane: ExplorerPane | None = None
        self._listed: Any = None
        self.force_box = pn.Column(
            self.force, pn.Row(self.use, self.instead, margin=0), margin=(0, 0, 6, 20), styles={"flex": "1 1 380px"},
        )  # fmt: skip
        above = pn.FlexBox(
            pn.Row(self.micrograph, self.go, margin=(6, 0)), self.force_box, align_items="flex-end", gap="0",
            sizing_mode="stretch_width",
        )  # fmt: skip
        self.card = parts.card(
            "Try a prior on one micrograph", parts.words(f"<small>{_WHAT}</small>"), above, self.status
        )
        self.reuse = ReuseForm(
            "Hyperparameters of another run", self.engine.roots, HYPERPARAMETERS,
            "hyperparameters.json, hyperparams.cs or .csg, or RELION's opt_params_all_groups.txt", self.attempt,
            self.engine.use_hyperparameters,
        )  # fmt: skip
        self.view[:] = [self.problem, self.card, self.reuse.view, self.empty, self.place]

    def _explore(self) -> None:
        self.attempt(explore, self.engine, self.micrograph.value)
        self.update()

    def _use(self) -> None:
        if self.pane is not None:
            model = self.pane.model
            prior = model.exploration.prior.with_hyperparameters(model.wanted)
            self.attempt(in_force.use, self.engine, prior, model.exploration.settings.energy)
        self.update()

    def _instead(self) -> None:
        self.attempt(in_force.search_instead, self.engine)
        self.update()

    def refresh(self) -> None:
        """Bring it up to date."""
        session, run, may = self.engine.session, explored(self.engine), self.viewer.may_run
        self._list(session)
        self._show(run)
        ready = self.pane is not None
        going = run is not None and not run.snapshot.ended
        self.card.visible = self.reuse.view.visible = session is not None
        self.reuse.refresh(may, self.engine.hyperparameters_file)
        self.empty.visible = not ready and not going
        self.empty.object = escape(NO_DATA if session is None else NOT_YET if may else NOTHING_TO_SEE)
        self.micrograph.disabled, self.go.disabled = not may, going or not may
        self.use.disabled, self.instead.disabled = not (ready and may), not (may and in_force.are_given(self.engine))
        whose = "" if may else " <small>You look on: the owner moves the sliders, your page follows.</small>"
        self.force.object = f"{escape(in_force.in_force(self.engine))}{whose}"
        parts.say(self.status, self._said(run))
        if self.pane is not None:
            for widget in (
                *self.pane.sliders.values(),
                self.pane.best,
                self.pane.pin,
                self.pane.motion,
                self.pane.magnified,
            ):
                widget.disabled = not may

    def _list(self, session: Any) -> None:
        if session is not self._listed:
            self._listed = session
            options = micrographs(session) if session is not None else {}
            self.micrograph.param.update(options=options, value=next(iter(options.values()), None))

    def _show(self, run: Run | None) -> None:
        """Have a view of this page on the explorer that is ready, if there is one."""
        model = run.result if run is not None and run.state == "done" else None
        if model is None and (run is None or run.snapshot.ended) and self.pane is not None:
            self.close()
            self.pane, self.place[:] = None, []
        elif model is not None and (self.pane is None or self.pane.model is not model):
            self.close()
            self.pane = explorer_pane(model, self.dark, self.viewer)
            self.place[:] = [parts.card(f"Prior explorer: {model.exploration.name}", self.pane)]
            self.micrograph.value = model.exploration.name

    def close(self) -> None:
        """Let the explorer tell this page nothing more."""
        if self.pane is not None:
            self.pane.stop()

    def _said(self, run: Run | None) -> str:
        if run is None:
            return ""
        if run.state == "failed":
            return f'<p role="alert"><b>{escape(run.stage.micrograph)} cannot be explored:</b> {escape(ending.why(run))}</p>'
        if not run.snapshot.ended:
            work = run.snapshot.works[-1] if run.snapshot.works else None
            done = (work.done, work.total) if work else (0, 0)
            what = (
                "reading references",
                "reading the movie",
                "finding correlation windows",
                "first trajectories",
                "ready",
            )
            return parts.bar(*done, f"Preparing {run.stage.micrograph}: {what[min(done[0], 4)]}")
        latest = self.engine.session.latest(HyperparameterSearch) if self.engine.session else None
        if latest is not None and run.state == "done" and latest.result is not run.stage.search:
            return "<small>A search has finished since: press Explore to begin with what it chose.</small>"
        return ""
