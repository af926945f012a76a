"""A run in a notebook while it goes on: bars, throughput, time left, live rays, and buttons to pause and to cancel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ipywidgets as ipw
from IPython.display import DisplayHandle, display

from refmotion_nb.stages.runs import Cancelled, Run
from refmotion_nb.views.live_rays import rays_drawing
from refmotion_nb.views.repr_page import Page, Row, head_of, style
from refmotion_nb.views.reprs import rays_of, run_head

EVERY_S = 0.25
_INTERRUPT = "To stop, interrupt the kernel (■): what is finished is kept."


class RunPanel:
    """Widgets that follow a run from a thread of their own until it ends or they are closed."""

    def __init__(self, run: Run, buttons: bool = False):
        """Make the widgets; ``buttons`` are of use only while the kernel can hear them: for runs in the background."""
        self.run = run
        self.head, self.rays = ipw.HTML(), ipw.HTML()
        self.pause = ipw.Button(description="Pause", icon="pause", tooltip="Wait at the next report, until resumed")
        self.cancel = ipw.Button(
            description="Cancel", icon="stop", tooltip="Stop at the next report; what is finished is kept"
        )
        self.pause.on_click(self._pause)
        self.cancel.on_click(self._cancel)
        below = ipw.HBox([self.pause, self.cancel]) if buttons else ipw.HTML(_framed(f"<small>{_INTERRUPT}</small>"))
        self.box = ipw.VBox([ipw.HTML(f"<style>{style()}</style>"), self.head, below, self.rays])
        self._drawn: Any = None
        self._updating = threading.Lock()
        self._handle: DisplayHandle | None = None
        run.watched = True
        self.update()

    @property
    def is_open(self) -> bool:
        """Whether the widgets have not been closed."""
        return self.box.comm is not None

    def update(self) -> None:
        """Bring the widgets up to date."""
        with self._updating:
            self.head.value = _framed(head_of(self._page()))
            rays = rays_of(self.run)
            if rays is not None and rays is not self._drawn:
                self._drawn = rays
                self.rays.value = _framed(rays_drawing(rays, self.run.snapshot.ended))
            paused, stopping = self.run.state == "paused", self.run.stopping
            self.pause.description, self.pause.icon = ("Resume", "play") if paused else ("Pause", "pause")
            self.pause.disabled = stopping or self.run.state not in ("running", "paused")
            self.cancel.disabled = stopping or self.run.snapshot.ended

    def _page(self) -> Page:
        # nothing that folds: it would shut whenever the page changes
        page = run_head(self.run)
        error = (Row("error", self.run.error, changed=True),) if self.run.error else ()
        return replace(page, rows=(*page.rows, *error))

    def show(self) -> None:
        """Display the panel and return; a thread keeps it up to date."""
        self._handle = display(self.box, display_id=True)
        threading.Thread(target=self._follow, name=f"panel of {self.run.name}", daemon=True).start()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Display the panel for a run in the foreground, which ends within."""
        self._handle = display(self.box, display_id=True)
        follower = threading.Thread(target=self._keep_up, name=f"panel of {self.run.name}", daemon=True)
        follower.start()
        try:
            yield
        except (Cancelled, KeyboardInterrupt) as stop:
            stop._render_traceback_ = lambda: [f"{self.run.name} was stopped; what was finished is kept"]  # type: ignore
            raise  # IPython then says this instead of where it happened to be
        finally:
            follower.join()
            self.finish()

    def finish(self) -> None:
        """Put the page of the run, which lasts in a saved notebook, where the widgets were."""
        if not self.is_open:
            return
        self.update()
        if self._handle is not None:
            self._handle.update(self.run)
            self.close()

    def close(self) -> None:
        """Take the widgets away."""
        for one in (*self.box.children, self.pause, self.cancel, self.box):
            one.close()

    def _follow(self) -> None:
        self._keep_up()
        self.finish()

    def _keep_up(self) -> None:
        while self.is_open and not self.run.ends_within(EVERY_S):
            self.update()

    def _pause(self, _: ipw.Button) -> None:
        (self.run.resume if self.run.state == "paused" else self.run.pause)()
        self.update()

    def _cancel(self, _: ipw.Button) -> None:
        self.run.cancel()
        self.update()


def _framed(html: str) -> str:
    return f'<div class="rm-repr">{html}</div>'
