"""The Correct tab: what it will cost, where it is done, how far it is, what it has found."""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar

import panel as pn

from refmotion_nb.data.limits import size
from refmotion_nb.data.reasons import alike, listed
from refmotion_nb.data.schema import InputError
from refmotion_nb.stages.correction import MotionCorrection
from refmotion_nb.stages.cost import Cost, cost_of_correction
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.runs import Run, Snapshot, Work
from refmotion_nb.views import plots
from refmotion_nb.views.app import ending, parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.fields import Field
from refmotion_nb.views.app.figure import Same
from refmotion_nb.views.app.rights import TOLD
from refmotion_nb.views.app.tab import Tab
from refmotion_nb.views.run_words import roughly
from refmotion_nb.views.scale import spread

SHOWN = 20  # micrographs whose trajectories can be looked at
OUTPUT = ("fourier_crop_to", "float16")
MACHINE = ("device", "threads", "cache_size_GB")
FIELD_PX = 190
JOBS = ("correct", "validate")
DRAWN = {"Local motion": plots.local_trajectories, "All motion": plots.trajectories, "Whole micrograph": plots.motion}


class CorrectTab(Tab):
    """Estimate, start, watch, cancel."""

    title = "Correct"
    kinds: ClassVar = {**dict.fromkeys(OUTPUT, MotionCorrection), **dict.fromkeys(MACHINE, Execution)}

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.settings = {
            name: Field(name, kind.param[name], self._change, FIELD_PX) for name, kind in self.kinds.items()
        }
        self.first = parts.words("")
        self.cost = self.new_figure(waiting="working out what it will cost …")  # which looks at each file that is there
        self.start = parts.button("Correct all particles", lambda: self._run("correct"), color="primary")
        self.whole = parts.button(
            "Correct and validate", lambda: self._run("validate"), color="primary", variant="outline"
        )
        self.cancel = parts.button("Cancel", self._cancel, color="warning", visible=False)
        self.ended, self.told = parts.words(""), parts.words("")
        self.failed = parts.words("")
        self.micrograph = pn.widgets.Select(label="Micrograph", options=[], width=260, margin=(2, 5))
        self.drawn = pn.widgets.RadioButtonGroup(
            label="Plot", options=list(DRAWN), value="Local motion", margin=(23, 5, 2, 5)
        )
        for widget in (self.micrograph, self.drawn):
            widget.param.watch(lambda _: self._other(), "value")
        self.figure = self.new_figure(larger=1.75)
        self.tracks = parts.card("Trajectories", pn.Row(self.micrograph, self.drawn), self.figure.view)
        form = pn.FlexBox(*(field.view for field in self.settings.values()), align_items="flex-end")
        self.view[:] = [
            self.problem,
            parts.card("Before it starts", self.first, self.cost.view, form, pn.Row(self.start, self.whole, self.cancel)),
            parts.card("Progress", self.ended, self.told, self.failed), self.tracks,
        ]  # fmt: skip
        self._listed: tuple[Any, list[str]] = ((), [])

    def refresh(self) -> None:
        """Show how far it is."""
        going = self.engine.live is not None
        idle = self.viewer.may_run and self.engine.session is not None and not going
        self.start.disabled = self.whole.disabled = not idle
        self.cancel.param.update(visible=going and self.viewer.may_run, disabled=not self.engine.can_cancel)
        for name, field in self.settings.items():
            field.show(self.engine.settings.get(name), idle)
        self._estimate()
        run, ended = (find(self.engine, MotionCorrection, *JOBS) for find in (ending.latest, ending.last_ended))
        by_progress = run is not None and run.snapshot.works and ended is not None and ended.exception is run.exception
        parts.say(self.ended, "" if by_progress else ending.told(ended))
        self._progress(run)
        self._trajectories(run)

    def _other(self) -> None:
        self.figure.clear()  # what is still there would be taken for what was chosen
        self.update()

    def _run(self, until: str) -> None:
        self.attempt(self.engine.run, until)
        self.update()

    def _cancel(self) -> None:
        self.attempt(self.engine.cancel)
        self.update()

    def _change(self, name: str, value: Any) -> None:
        self.engine.change(**{name: value})

    def _estimate(self) -> None:
        """Tell the cost; worked out again when something has ended or a setting changed."""
        engine, session, out = self.engine, self.engine.session, self.engine.out
        lacking = "" if session else "Open data on the Data tab first."
        parts.say(self.first, lacking + ("" if self.viewer.may_run else f"<p><small>{TOLD}</small></p>"))
        if session is None or engine.live is not None:  # the progress below tells the time that is left
            self.cost.clear()
            return
        mine = {name: value for name, value in engine.settings.items() if name in MotionCorrection.param}
        there = engine.store.stamp("tracks") if engine.store else 0
        key = Same(session), out, str(mine), there, tuple(run.snapshot.ended for run in engine.runs)
        self.cost.show(
            key, lambda: parts.words(cost_in_words(cost_of_correction(session, MotionCorrection(**mine), out)))
        )

    def _progress(self, run: Run | None) -> None:
        if run is None or not run.snapshot.works:
            self.told.object = escape(self._before())
            parts.say(self.failed, "")
            return
        work = run.snapshot.works[-1]
        text = progress_in_words(run.snapshot, work, ending.why(run) if run.state == "failed" else "", run.stopping)
        self.told.object = escape(text) if run.snapshot.ended else parts.bar(work.done, work.total, text)
        failed = dict(self.engine.session.failed) if self.engine.session else {}
        rows = "".join(
            f"<li><b>{escape(listed(names))}</b>: {escape(why)}</li>" for why, names in alike(failed.items()).items()
        )
        parts.say(self.failed, f"<b>{len(failed)} left out</b><ul>{rows}</ul>" if failed else "")

    def _before(self) -> str:
        live = self.engine.live
        if live is None or ending.until_of(live) not in JOBS:
            n, there = len(self._stored()), self.engine.out
            return f"{n} micrograph{'s' * (n != 1)} from an earlier run in {there}." if n else "Nothing corrected yet."
        if live.stopping:
            return "Stopping …"
        what = f"First {live.snapshot.works[-1].what}" if live.snapshot.works else "Starting"
        return f"{what}; particles are corrected after that."

    def _trajectories(self, run: Run | None) -> None:
        names = self._finished(run)
        self.tracks.visible = bool(names)
        if self.micrograph.options != names:
            chosen = self.micrograph.value
            self.micrograph.options = names
            if names:
                self.micrograph.value = chosen if chosen in names else names[0]
        name, store = self.micrograph.value, self.engine.store
        if not name or store is None:
            return
        group, draw = f"tracks/{name}", DRAWN[str(self.drawn.value)]
        self.figure.show(
            (name, self.drawn.value, store.path, store.stamp(group)), lambda: draw(_found(store.read(group), group))
        )

    def _finished(self, run: Run | None) -> list[str]:
        """Return some that are finished: the first while the rest is being done, then from the first to the last."""
        if run is not None and run.snapshot.micrographs and not run.snapshot.ended:
            return list(run.snapshot.micrographs[:SHOWN])
        names = self._stored()
        return [names[i] for i in spread(len(names), SHOWN)]

    def _stored(self) -> list[str]:
        """Return the micrographs whose trajectories lie in the output folder; listed again when that has changed."""
        store = self.engine.store
        key = (store.path, store.stamp("tracks")) if store else ()
        if key != self._listed[0]:
            self._listed = key, [group.removeprefix("tracks/") for group in store.groups("tracks")] if store else []
        return self._listed[1]


def _found(tracks: Any, group: str) -> Any:
    if tracks is None:
        raise InputError(f"{group} is being written anew; look again in a moment")
    return tracks


def cost_in_words(cost: Cost) -> str:
    """Return an estimate as HTML."""
    if not cost.micrographs:
        return (
            f"All {cost.finished} micrographs lie in the output folder; those made with other settings are made anew."
        )
    what = f"<b>{cost.micrographs} micrographs, {cost.particles} particles</b> to do"
    if cost.finished:
        what += f" ({cost.finished} lie in the output folder already)"
    if cost.seconds is None:
        time = "; how long it takes is known once the search or the dose weights have run on part of the data"
    else:
        time = (f": about <b>{roughly(cost.seconds)}</b>, at {cost.seconds_per_micrograph:.2g} s per micrograph as measured "
                f"when {escape(cost.basis)}")  # fmt: skip
    disk = f"Particles take {size(cost.bytes_needed)} of disk; {size(cost.bytes_free)} are free."
    if cost.bytes_needed > cost.bytes_free:
        disk = f"<b>Not enough disk space:</b> {disk} Make room, crop to a smaller box, or save 16-bit particles."
    return f"{what}{time}. {disk}"


def progress_in_words(snapshot: Snapshot, work: Work, error: str = "", stopping: bool = False) -> str:
    """Return how far a correction is, how fast it goes and what to do next."""
    done = f"{work.done} of {work.total} micrographs"
    if stopping:
        return f"Stopping after {done} …"
    if snapshot.state == "failed":
        return f"{done} done, then it failed: {error}"
    if snapshot.state == "cancelled":
        return f"Cancelled after {done}; what is finished is kept, “Correct all particles” goes on from there."
    here = len(snapshot.micrographs)
    from_earlier = work.done - here
    earlier = f", {from_earlier if here else 'all'} of them from an earlier run" if from_earlier else ""
    if snapshot.state == "done":
        return f"{done} done{earlier}. The Results tab lists what was written."
    left = work.seconds_left
    rate = f", {60 * work.rate_per_s:.3g} micrographs per minute" if work.rate_per_s is not None else ""
    return f"{done}{earlier}{rate}{f', about {roughly(left)} left' if left else ''}"
