"""Which hyperparameters the next run takes: given ones, or those it searches."""

from __future__ import annotations

from typing import Any

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.job import Overrides
from refmotion_nb.views.svg import number

GIVEN = tuple(name for name in Overrides.param if name != "name")


def dose_per_frame(engine: Any) -> float | None:
    """Return the dose per frame (e/Å²) by which RELION's units are those of the open movies; None without data."""
    return float(engine.session.data.movies[0].dose_per_frame_e_A2) if engine.session else None


def given(engine: Any) -> Hyperparameters | None:
    """Return the hyperparameters that are given in the settings; None if they are to be searched.

    Raises
    ------
    InputError
        Some are given that do not go together.
    """
    mine = {name: engine.settings[name] for name in GIVEN if name in engine.settings}
    return Overrides(**mine).hyperparameters(dose_per_frame(engine) or 1.0) if mine else None


def in_force(engine: Any) -> str:
    """Return in words which hyperparameters the next run takes."""
    if engine.hyperparameters_file is not None:
        return f"The next run takes the hyperparameters of the file {engine.hyperparameters_file}."
    try:
        h = given(engine)
    except InputError as error:
        return f"The hyperparameters in the settings do not go together: {error}"
    if h is None:
        return "The next run searches its hyperparameters."
    return f"The next run takes given hyperparameters: {in_words(h)}."


def in_words(h: Hyperparameters) -> str:
    """Return hyperparameters in a few words."""
    return (
        f"total strength {number(h.strength)}, balance {number(h.balance_deg)}°, "
        f"correlation distance {number(h.distance_A, 4)} Å"
    )


def are_given(engine: Any) -> bool:
    """Return whether the next run takes given hyperparameters instead of searching."""
    return engine.hyperparameters_file is not None or any(name in engine.settings for name in GIVEN)


def use(engine: Any, h: Hyperparameters) -> None:
    """Let the next run take hyperparameters instead of searching."""
    mine = {"spatial_strength": h.spatial_strength, "correlation_distance": h.distance_A,
            "acceleration_strength": h.acceleration_strength}  # fmt: skip
    engine.hyperparameters_file = None
    engine.change(**{**dict.fromkeys(GIVEN), **{name: float(f"{value:.6g}") for name, value in mine.items()}})


def search_instead(engine: Any) -> None:
    """Let the next run search."""
    engine.hyperparameters_file = None
    engine.change(**dict.fromkeys(GIVEN))
