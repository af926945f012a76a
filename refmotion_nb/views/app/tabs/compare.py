"""The Compare tab: the present run beside stored ones."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import panel as pn

from refmotion_nb.views.app import comparing, parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.tab import Tab

EMPTY = "Nothing to compare yet. Run a search or a correction, or give the output folder of an earlier run above and press Add."
_WHAT = (
    "Each is an output folder with results.zarr in it; relative paths begin at the first folder that the app may use."
)


class CompareTab(Tab):
    """The runs, one view of them, and what differs."""

    title = "Compare"

    def __init__(self, engine: Engine, viewer: Viewer):
        """Make the widgets."""
        super().__init__(engine, viewer)
        self.folder = pn.widgets.TextInput(
            label="Results folder", placeholder="refmotion-results-2", width=420, margin=(0, 5)
        )
        self.add = parts.button("Add", self._add, color="primary", width=80, align="end", margin=(0, 5))
        self.folder.param.watch(lambda _: self.update(), "value_input")
        self.runs = pn.Column(sizing_mode="stretch_width", margin=(6, 0, 0, 0))
        self.what = pn.widgets.RadioButtonGroup(options=list(comparing.VIEWS), value="FCC", margin=(4, 8))
        self.about = parts.words("")
        self.figure = self.new_figure(larger=1.25)
        self.tables = self.new_figure()
        self.empty = parts.empty(EMPTY)
        self.what.param.watch(lambda _: self._other(), "value")
        choose = pn.Row(self.folder, self.add, margin=0)
        self.differ = parts.card("What differs", self.tables.view)
        self.drawn = parts.card("Side by side", pn.Column(self.what, self.about), self.figure.view)
        self.view[:] = [
            parts.card("Runs to compare", parts.words(f"<small>{_WHAT}</small>"), choose, self.problem, self.runs),
            self.empty, self.drawn, self.differ,
        ]  # fmt: skip
        self._listed: Any = None

    def _add(self) -> None:
        if self.attempt(comparing.add, self.engine, self.folder.value_input or self.folder.value) is not None:
            self.folder.value = self.folder.value_input = ""
        self.update()

    def _remove(self, name: str) -> None:
        self.attempt(comparing.remove, self.engine, name)
        self.update()

    def _other(self) -> None:
        self.figure.clear()  # what is still there would be taken for what was chosen
        self.update()

    def refresh(self) -> None:
        """Bring it up to date."""
        found, may = comparing.sources(self.engine), self.viewer.may_run
        self._list(tuple(found), may)
        self.folder.disabled = self.add.disabled = not may
        self.empty.visible = not found
        self.drawn.visible = self.differ.visible = bool(found)
        if not found:
            return
        view = comparing.VIEWS[self.what.value]
        self.about.object = f"<small>{escape(view.about)}</small>"
        stamp = tuple((name, source.stamp()) for name, source in found.items())
        self.figure.show((self.what.value, stamp), lambda: comparing.drawing(found, view))
        self.tables.show(stamp, lambda: parts.words(comparing.tables(found)))

    def _list(self, names: tuple[str, ...], may: bool) -> None:
        """Show the runs, with a button to take each stored one away."""
        if (names, may) == self._listed:
            return
        self._listed = names, may
        where = {name: store.path.parent for name, store in self.engine.compared.items()}
        self.runs[:] = [self._named(name, where.get(name, self.engine.out), may) for name in names]

    def _named(self, name: str, folder: Any, may: bool) -> Any:
        told = parts.words(f"<b>{escape(name)}</b> <code>{escape(str(folder))}</code>", sizing_mode=None)
        if name == comparing.PRESENT:
            return told
        away = parts.button(
            "Remove", partial(self._remove, name), width=80, height=30, margin=(0, 8, 0, 0), disabled=not may
        )
        return pn.Row(told, away, margin=0)
