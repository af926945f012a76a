"""The explorer's six sliders, whatever draws them: where they stand for hyperparameters, and which of their moves count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.views.explorer import DISTANCES_A, ExplorerModel
from refmotion_nb.views.explorer_words import readout

RELION = ("s_vel", "s_div", "s_acc")


@dataclass(frozen=True)
class Slider:
    """One slider; its position is the value, or the value's power of ten."""

    label: str
    low: float
    high: float
    step: float  # of positions
    hint: str
    log: bool = True

    @property
    def ends(self) -> tuple[float, float]:
        """Return the lowest and the highest position."""
        return (float(np.log10(self.low)), float(np.log10(self.high))) if self.log else (self.low, self.high)

    def position(self, value: float) -> float:
        """Return where a value is, at most at an end."""
        value = float(np.clip(value, self.low, self.high))
        return float(np.clip(np.log10(value) if self.log else value, *self.ends))

    def value(self, position: float) -> float:
        """Return the value at a position."""
        return float(10.0**position) if self.log else float(position)


class Sliders:
    """The sliders of one view, in step with the model that several views may share."""

    def __init__(self, model: ExplorerModel):
        self.model = model
        vel, acc = model.relion_limits
        unit = "in RELION's units, for this movie's dose per frame"
        self.all = {
            "strength": Slider("Strength", *model.strengths, 0.01, "Total prior strength r: larger allows less motion"),
            "balance_deg": Slider(
                "Balance", 0.0, 90.0, 1.0, "0°: only likeness of neighbours, 90°: only smoothness over dose", log=False
            ),
            "distance_A": Slider("Distance", *DISTANCES_A, 0.01, "Distance over which neighbours move alike"),
            "s_vel": Slider("s_vel", *vel, 0.01, f"Sigma of velocity {unit}"),
            "s_div": Slider("s_div", *DISTANCES_A, 0.01, f"Sigma of divergence {unit}"),
            "s_acc": Slider("s_acc", *acc, 0.01, f"Sigma of acceleration {unit}"),
        }
        self._placed = dict.fromkeys(self.all, np.nan)  # positions, by us or by hand

    def by_hand(self, name: str, position: float) -> Hyperparameters | None:
        """Move the model if a slider was moved by hand; None where the browser only rounds what it was told to a step."""
        slider = self.all[name]
        if abs(position - self._placed[name]) <= 0.51 * slider.step:
            return None
        self._placed[name] = position
        move = self.model.move_relion if name in RELION else self.model.move
        return move(**{name: slider.value(position)})

    def to_place(self, h: Hyperparameters, but: str = "") -> dict[str, float]:
        """Return the positions of the sliders that are not where hyperparameters want them, ``but`` the one in hand."""
        wanted = {name: self.all[name].position(value) for name, value in self.values(h).items() if name != but}
        moved = {name: at for name, at in wanted.items() if not abs(at - self._placed[name]) < 1e-9}
        self._placed |= moved
        return moved

    def values(self, h: Hyperparameters) -> dict[str, float]:
        """Return the values of all sliders for hyperparameters."""
        relion = h.to_relion(self.model.exploration.dose_per_frame_e_A2)
        ours = {"strength": h.strength, "balance_deg": h.balance_deg, "distance_A": h.distance_A}
        return {**ours, **dict(zip(RELION, relion))}

    def readouts(self, h: Hyperparameters) -> dict[str, str]:
        """Return the values of all sliders with their units."""
        return {name: readout(name, value) for name, value in self.values(h).items()}
