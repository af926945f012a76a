"""The prior explorer in a notebook: ipywidgets beside drawings that follow them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from threading import get_ident
from typing import Any

import ipywidgets as ipw
import xarray as xr
from IPython.display import display

from refmotion_nb.data.schema import Dataset
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.session import Session
from refmotion_nb.views import explorer_drawing as drawing
from refmotion_nb.views.explorer import ExplorerModel
from refmotion_nb.views.explorer_sliders import Slider, Sliders
from refmotion_nb.views.explorer_style import style_sheet
from refmotion_nb.views.explorer_words import place
from refmotion_nb.views.svg import number

_STYLE = {"description_width": "62px"}
_STILL = "rm-still"  # shown where widgets are not: in files made of the notebook, and once its kernel is gone


class PriorExplorer:
    """Sliders for the motion prior; the trajectories of one micrograph, their score and activity follow at once.

    ``rays`` is what a search found: the explorer starts there. ``tracks`` is the result where the sliders stand, whose attrs
    hold the prior as a search's do; ``model`` is what other views of the same explorer are made of.
    """

    def __init__(
        self,
        data: Dataset | Session | ExplorerModel,
        rays: xr.Dataset | None = None,
        micrograph: str | None = None,
        settings: HyperparameterSearch | None = None,
        reporter: Reporter | None = None,
    ):
        """Read one movie, by default of the micrograph with most particles; a few seconds.

        Raises
        ------
        InputError
            The micrograph cannot be explored, or ``rays`` are of another energy than ``settings``.
        """
        known = isinstance(data, ExplorerModel)
        self.model: ExplorerModel = data if known else ExplorerModel.of(data, rays, micrograph, settings, reporter)  # type: ignore

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Where the sliders stand."""
        return self.model.wanted

    @property
    def tracks(self) -> xr.Dataset:
        """The micrograph's trajectories where the sliders stand, waited for if they are not there yet."""
        return self.model.settle(60).tracks

    def move(self, **position: float) -> PriorExplorer:
        """Move sliders: ``strength``, ``balance_deg`` and ``distance_A``, or ``s_vel``, ``s_div`` and ``s_acc``."""
        relion = {name: position.pop(name) for name in ("s_vel", "s_div", "s_acc") if name in position}
        if relion:
            self.model.move_relion(**relion)
        if position or not relion:
            self.model.move(**position)
        return self

    @cached_property
    def box(self) -> ipw.Widget:
        """The widget, to put among others."""
        return Panel(self.model).box

    def _ipython_display_(self) -> None:
        """Show the widget, and for pages that have no kernel a picture, which the widget hides."""
        display(self.box)
        display({"text/html": self.still(), "text/plain": repr(self)}, raw=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.box._repr_mimebundle_(**kwargs)

    def still(self) -> str:
        """Return what is shown at the moment as HTML, without sliders."""
        model, snapshot = self.model, self.model.snapshot
        told = drawing.html("<small>As it was when the cell was run; sliders need a running notebook.</small>")
        numbers = drawing.html(f'<div class="numbers">{drawing.numbers(snapshot)}</div>')
        drawn = (drawing.trajectories(model, snapshot, 450), f"{numbers}{drawing.trail(model, snapshot)}")
        columns = "".join(f'<div style="flex: 0 1 450px">{one}</div>' for one in drawn)
        return (
            f'<div class="{_STILL}">{style_sheet()}{told}<div style="display: flex; flex-wrap: wrap; gap: 0 16px">{columns}</div>'
            f"{drawing.text(model, snapshot)}</div>"
        )

    def __repr__(self) -> str:
        now = self.model.snapshot.now
        return (
            f"PriorExplorer of {self.model.exploration.name}: {place(self.hyperparameters)}; score {now.cv_score:.5f}, "
            f"local activity {now.activity_local:.2f} Å"
        )


class Panel:
    """The widgets, and how they and the model keep in step."""

    def __init__(self, model: ExplorerModel):
        self.model = model
        self.places = Sliders(model)
        self._placing: set[int] = set()  # threads: what they set is no move by hand, another's may be
        self.sliders = {name: _slider(one) for name, one in self.places.all.items()}
        self.readouts = {name: ipw.Label(layout={"width": "125px"}) for name in self.sliders}
        self.best = ipw.Button(description="Back to best", tooltip="What the search chose, else the best tried here")
        self.pin = ipw.ToggleButton(description="Pin", tooltip="Keep these trajectories to compare with, in grey")
        self.motion = ipw.ToggleButtons(
            options=[("Local motion", False), ("All motion", True)], style={"button_width": "112px"},
            tooltips=["Without the motion of the whole micrograph", "With it"],
        )  # fmt: skip
        self.magnified = ipw.Dropdown(
            options=[(f"× {number(m)}", m) for m in model.magnifications], value=model.snapshot.magnified,
            description="Magnified", layout={"width": "155px"}, style={"description_width": "68px"},
        )  # fmt: skip
        self.picture, self.trail, self.numbers, self.text = (ipw.HTML() for _ in range(4))
        self.box = self._arranged()
        self.draw()
        self._connect()

    def _arranged(self) -> ipw.Widget:
        rows = [ipw.HBox([slider, self.readouts[name]]) for name, slider in self.sliders.items()]
        title = ipw.HTML(drawing.html("<small>the same in RELION's units</small>"))
        controls = [*rows[:3], title, *rows[3:], ipw.HBox([self.best, self.pin])]
        left = ipw.VBox([ipw.HBox([self.motion, self.magnified]), self.picture], layout={"width": "450px"})
        right = ipw.VBox([*controls, self.numbers, self.trail], layout={"width": "410px"})
        both = ipw.HBox([left, right], layout={"flex_flow": "row wrap", "grid_gap": "0 16px"})
        return ipw.VBox([ipw.HTML(f"{style_sheet()}<style>.{_STILL} {{ display: none }}</style>"), both, self.text])

    def _connect(self) -> None:
        for name, slider in self.sliders.items():
            slider.observe(self._moved(name), "value")
        self.best.on_click(lambda _: self._place(self.model.back_to_best()))
        self.pin.observe(self._by_hand(lambda new: self.model.pin() if new else self.model.unpin()), "value")
        self.motion.observe(self._by_hand(lambda new: self.model.show(whole=new)), "value")
        self.magnified.observe(self._by_hand(lambda new: self.model.show(magnified=new)), "value")
        self.model.watch(self.draw)

    def _by_hand(self, act: Callable[[Any], Any]) -> Callable[[Any], None]:
        def changed(change: Any) -> None:
            if get_ident() not in self._placing:
                act(change["new"])

        return changed

    def _moved(self, name: str) -> Callable[[Any], None]:
        def moved(position: float) -> None:
            h = self.places.by_hand(name, position)
            if h is not None:
                self._place(h, but=name)

        return self._by_hand(moved)

    def _place(self, h: Hyperparameters, but: str = "") -> None:
        """Put all sliders, ``but`` the one that is being moved, where the hyperparameters are."""
        self._placing.add(get_ident())
        try:
            for name, text in self.places.readouts(h).items():
                self.readouts[name].value = text
            for name, position in self.places.to_place(h, but).items():
                self.sliders[name].value = position
        finally:
            self._placing.discard(get_ident())

    def draw(self) -> None:
        """Show the newest snapshot."""
        snapshot = self.model.snapshot
        if snapshot.now.hyperparameters == self.model.wanted:  # else a slider is being moved
            self._place(self.model.wanted)
        self.picture.value = drawing.trajectories(self.model, snapshot, 450)
        self.numbers.value = drawing.html(f'<div class="numbers">{drawing.numbers(snapshot)}</div>')
        self.trail.value = drawing.trail(self.model, snapshot)
        self.text.value = drawing.text(self.model, snapshot)


def _slider(one: Slider) -> ipw.FloatSlider:
    low, high = one.ends
    return ipw.FloatSlider(
        value=low, min=low, max=high, step=one.step, description=one.label, tooltip=one.hint, readout=False, style=_STYLE,
        layout={"width": "270px"},
    )  # fmt: skip
