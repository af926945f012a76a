"""A field for a path on the server, with a browser of the folders that may be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import panel as pn

from refmotion_nb.data.schema import InputError
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.report_html import count

UP = ".. (up)"


class PathField:
    """A path to type, or to choose among what ``roots`` hold; ``suffixes`` are those of files, none: a folder."""

    def __init__(self, label: str, roots: Roots, suffixes: tuple[str, ...] = (), about: str = ""):
        """Make the widgets; ``roots`` are as the viewer has them, who may not list them while looking on."""
        self.roots = roots
        self.suffixes = suffixes
        self.folder = roots.folders[0]
        self.input = pn.widgets.TextInput(
            label=label, placeholder=about, sizing_mode="stretch_width", min_width=220, margin=(2, 5)
        )
        self.browse = parts.button("Browse", self._toggle, width=76, margin=(23, 5, 2, 0))
        self.problem = parts.problem()
        self.panel: Any = None  # made when it is first asked for
        self.view = pn.Column(
            pn.Row(self.input, self.browse, sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width",
            margin=0,
        )

    def _build(self) -> None:
        """Make what browses."""
        self.where = pn.widgets.Select(label="folder", options={}, sizing_mode="stretch_width", margin=(2, 5))
        self.entries = pn.widgets.MultiSelect(
            label="what is in it", options=[], size=9, sizing_mode="stretch_width", margin=(2, 5)
        )
        picked: Any = self.entries  # its events are not typed
        picked.on_double_click(lambda event: self._take(event.option))
        self.take = parts.button("Choose", self._take_selected, width=150, margin=(2, 5), color="primary")
        self.shut = parts.button("Close", self._toggle, width=76, margin=(2, 5))
        self.told = parts.words("", margin=(2, 5))
        self.panel = pn.Column(
            self.where, self.entries, pn.Row(self.take, self.shut, self.told, sizing_mode="stretch_width"), visible=False,
            sizing_mode="stretch_width", css_classes=["rm-card"],
        )  # fmt: skip
        self.entries.param.watch(lambda _: self._name_button(), "value")
        self.where.param.watch(lambda event: self._go(event.new) if event.new else None, "value")
        self.view[:] = [self.view[0], self.problem, self.panel]

    @property
    def path(self) -> Path | None:
        """The path given, checked against the roots when it is used."""
        given = (self.input.value or "").strip()
        return Path(given) if given else None

    def enable(self, may_run: bool) -> None:
        """Let it be changed, or not."""
        self.input.disabled = self.browse.disabled = not may_run
        if not may_run and self.panel is not None:
            self.panel.visible = False

    def _toggle(self) -> None:
        if self.panel is None:
            self._build()
        if not self.panel.visible and not self.browse.disabled:
            given = self.path
            start = self.folder
            if given is not None and self.roots.holds(given):
                placed = self.roots.resolve(given)
                start = placed if placed.is_dir() else placed.parent
            self._go(start)
        self.panel.visible = not self.panel.visible and not self.browse.disabled

    def _go(self, folder: Path) -> None:
        """List a folder."""
        parts.tell(self.problem, "")
        try:
            found = self.roots.list(folder, self.suffixes)
        except InputError as error:
            parts.tell(self.problem, str(error))
            return
        self.folder = found.folder
        above = [one for one in (found.folder, *found.folder.parents) if self.roots.holds(one)]
        where = list(dict.fromkeys([*above, *self.roots.folders]))
        with pn.io.hold():
            if self.where.value != found.folder or list(self.where.options.values()) != where:
                self.where.param.update(options={str(one): one for one in where}, value=found.folder)
            up = [UP] if len(above) > 1 else []
            files = list(found.files) if self.suffixes else []
            self.entries.param.update(options=[*up, *(f"{name}/" for name in found.folders), *files], value=[])
            kind = (
                f"{count(len(files), 'file')} ({', '.join(self.suffixes)})"
                if self.suffixes
                else count(len(found.folders), "folder")
            )
            self.told.object = f"<small>{kind}{'; more than are listed here' if found.cut else ''}</small>"
            self._name_button()

    def _name_button(self) -> None:
        picked = self.entries.value[0] if self.entries.value else ""
        into = picked == UP or picked.endswith("/")
        self.take.label = "Open folder" if into else "Choose this folder" if not self.suffixes else "Choose"
        self.take.disabled = bool(self.suffixes and not picked)

    def _take_selected(self) -> None:
        self._take(self.entries.value[0] if self.entries.value else "")

    def _take(self, entry: str) -> None:
        """Go into a folder, or choose a file (or, where folders are asked for, the one shown)."""
        if entry == UP:
            self._go(self.folder.parent)
        elif entry.endswith("/"):
            self._go(self.folder / entry)
        elif entry or not self.suffixes:
            self.input.value = str(self.folder / entry)
            self.panel.visible = False
