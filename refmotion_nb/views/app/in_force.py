"""Which hyperparameters the next run takes: given ones, those of a file, or those it searches."""

from __future__ import annotations

from typing import Any

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import MotionPrior
from refmotion_nb.stages.job import Overrides
from refmotion_nb.stages.reuse import read_prior, write_prior
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.views.app.engine import GIVEN
from refmotion_nb.views.svg import number

CHOSEN = "hyperparameters_chosen.json"  # in the output folder: a prior that was chosen by hand


def dose_per_frame(engine: Any) -> float | None:
    """Return the dose per frame (e/Å²) by which RELION's units are those of the open movies; None without data."""
    return float(engine.session.data.movies_with_particles[0].dose_per_frame_e_A2) if engine.session else None


def given(engine: Any) -> Hyperparameters | None:
    """Return the hyperparameters that are given, by the settings or a file; None if they are to be searched.

    Raises
    ------
    InputError
        Some are given that do not go together, or a file that cannot be used.
    """
    dose = dose_per_frame(engine) or 1.0
    if engine.hyperparameters_file is not None:
        mine = {name: value for name, value in engine.settings.items() if name in HyperparameterSearch.param}
        return read_prior(engine.hyperparameters_file, HyperparameterSearch(**mine), dose, "").hyperparameters
    mine = {name: engine.settings[name] for name in GIVEN if name in engine.settings}
    return Overrides(**mine).hyperparameters(dose) if mine else None


def in_force(engine: Any) -> str:
    """Return in words which hyperparameters the next run takes."""
    path = engine.hyperparameters_file
    try:
        h = given(engine)
    except InputError as error:
        return (
            f"The hyperparameters {'in the settings do not go together' if path is None else 'cannot be used'}: {error}"
        )
    if h is None:
        return "The next run searches its hyperparameters."
    return f"The next run takes given hyperparameters: {in_words(h)}{'' if path is None else f', of the file {path}'}."


def in_words(h: Hyperparameters) -> str:
    """Return hyperparameters in a few words."""
    return (
        f"total strength {number(h.strength)}, balance {number(h.balance_deg)}°, "
        f"correlation distance {number(h.distance_A, 4)} Å"
    )


def are_given(engine: Any) -> bool:
    """Return whether the next run takes given hyperparameters instead of searching."""
    return engine.hyperparameters_file is not None or any(name in engine.settings for name in GIVEN)


def use(engine: Any, prior: MotionPrior, energy: str) -> None:
    """Let the next run take a whole prior of the open data instead of searching; it is kept in the output folder."""
    engine.change(**dict.fromkeys(GIVEN))
    path = engine.roots.resolve(engine.out / CHOSEN)
    write_prior(path, prior, dose_per_frame(engine) or 1.0, energy, engine.session.keys)
    engine.use_hyperparameters(path)


def search_instead(engine: Any) -> None:
    """Let the next run search."""
    engine.hyperparameters_file = None
    engine.change(**dict.fromkeys(GIVEN))
