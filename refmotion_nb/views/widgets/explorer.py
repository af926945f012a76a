"""The prior explorer in a notebook: ipywidgets beside drawings that follow them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import ipywidgets as ipw
import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Dataset
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.session import Session
from refmotion_nb.views import explorer_drawing as drawing
from refmotion_nb.views.explorer import DISTANCES_A, ExplorerModel
from refmotion_nb.views.explorer_style import style_sheet
from refmotion_nb.views.explorer_words import place, readout
from refmotion_nb.views.svg import number

_STYLE = {"description_width": "62px"}
_SLIDER = {"width": "270px"}
_STEP = 0.01  # of log sliders, in powers of ten


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
        return _Panel(self.model).box

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.box._repr_mimebundle_(**kwargs)

    def __repr__(self) -> str:
        now = self.model.snapshot.now
        return (
            f"PriorExplorer of {self.model.exploration.name}: {place(self.hyperparameters)}; score {now.cv_score:.5f}, "
            f"local activity {now.activity_local:.2f} Å"
        )


class _Panel:
    """The widgets, and how they and the model keep in step."""

    def __init__(self, model: ExplorerModel):
        self.model = model
        self._silent = False
        vel, acc = model.relion_limits
        unit = "in RELION's units, for this movie's dose per frame"
        self.sliders: dict[str, Any] = {
            "strength": _log_slider("Strength", model.strengths, "Total prior strength r: larger allows less motion"),
            "balance_deg": ipw.FloatSlider(
                min=0, max=90, step=1, description="Balance", style=_STYLE, layout=_SLIDER, readout=False,
                tooltip="0°: only likeness of neighbours, 90°: only smoothness over dose",
            ),
            "distance_A": _log_slider("Distance", DISTANCES_A, "Distance over which neighbours move alike"),
            "s_vel": _log_slider("s_vel", vel, f"Sigma of velocity {unit}"),
            "s_div": _log_slider("s_div", DISTANCES_A, f"Sigma of divergence {unit}"),
            "s_acc": _log_slider("s_acc", acc, f"Sigma of acceleration {unit}"),
        }  # fmt: skip
        self.readouts = {name: ipw.Label(layout={"width": "125px"}) for name in self.sliders}
        self._placed = {name: np.nan for name in self.sliders}  # where each was put last, by us or by hand
        self.best = ipw.Button(description="Back to best", tooltip="What the search chose, else the best tried here")
        self.pin = ipw.ToggleButton(description="Pin", tooltip="Keep these trajectories to compare with, in grey")
        self.motion = ipw.ToggleButtons(
            options=[("Local motion", False), ("All motion", True)], style={"button_width": "100px"},
            tooltips=["Without the motion of the whole micrograph", "With it"],
        )  # fmt: skip
        self.magnified = ipw.Dropdown(
            options=[(f"× {number(m)}", m) for m in model.magnifications], value=model.snapshot.magnified,
            description="Magnified", layout={"width": "160px"}, style={"description_width": "68px"},
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
        return ipw.VBox([ipw.HTML(style_sheet()), both, self.text])

    def _connect(self) -> None:
        for name, slider in self.sliders.items():
            slider.observe(self._moved(name), "value")
        self.best.on_click(lambda _: self._place(self.model.back_to_best()))
        self.pin.observe(self._unless_silent(lambda new: self.model.pin() if new else self.model.unpin()), "value")
        self.motion.observe(self._unless_silent(lambda new: self.model.show(whole=new)), "value")
        self.magnified.observe(self._unless_silent(lambda new: self.model.show(magnified=new)), "value")
        self.model.watch(self.draw)

    def _unless_silent(self, act: Callable[[Any], Any]) -> Callable[[Any], None]:
        def changed(change: Any) -> None:
            if not self._silent:
                act(change["new"])

        return changed

    def _moved(self, name: str) -> Callable[[Any], None]:
        move = self.model.move_relion if name.startswith("s_") else self.model.move
        slider = self.sliders[name]

        def moved(new: float) -> None:
            # the browser rounds what it is told to whole steps and says so: that is no move by hand
            if _steps(slider, new, self._placed[name]) <= 0.51:
                return
            self._placed[name] = new
            self._place(move(**{name: new}), but=name)

        return self._unless_silent(moved)

    def _place(self, h: Hyperparameters, but: str = "") -> None:
        """Put all sliders, ``but`` the one that is being moved, where the hyperparameters are."""
        s_vel, s_div, s_acc = h.to_relion(self.model.exploration.dose_per_frame_e_A2)
        values = {"strength": h.strength, "balance_deg": h.balance_deg, "distance_A": h.distance_A,
                  "s_vel": s_vel, "s_div": s_div, "s_acc": s_acc}  # fmt: skip
        self._silent = True
        try:
            for name, slider in self.sliders.items():
                self.readouts[name].value = readout(name, values[name])
                value = _within(slider, values[name])
                if name != but and not _steps(slider, value, self._placed[name]) < 1e-6:
                    self._placed[name] = value
                    slider.value = value
        finally:
            self._silent = False

    def draw(self) -> None:
        """Show the newest snapshot."""
        snapshot = self.model.snapshot
        if snapshot.now.hyperparameters == self.model.wanted:  # else a slider is being moved
            self._place(self.model.wanted)
        self.picture.value = drawing.trajectories(self.model, snapshot, 450)
        self.numbers.value = drawing.html(f'<div class="numbers">{drawing.numbers(snapshot)}</div>')
        self.trail.value = drawing.trail(self.model, snapshot)
        self.text.value = drawing.text(self.model, snapshot)


def _log_slider(name: str, limits: tuple[float, float], hint: str) -> ipw.FloatLogSlider:
    low, high = np.log10(limits)
    return ipw.FloatLogSlider(
        value=limits[0], base=10, min=float(low), max=float(high), step=_STEP, description=name, tooltip=hint,
        readout=False, style=_STYLE, layout=_SLIDER,
    )  # fmt: skip


def _steps(slider: Any, one: float, other: float) -> float:
    """Return how many steps of a slider lie between two values."""
    if isinstance(slider, ipw.FloatLogSlider):
        one, other = np.log10(one), np.log10(other)
    return abs(one - other) / float(slider.step)


def _within(slider: Any, value: float) -> float:
    if isinstance(slider, ipw.FloatLogSlider):
        return float(np.clip(value, slider.base**slider.min, slider.base**slider.max))
    return float(np.clip(value, slider.min, slider.max))
