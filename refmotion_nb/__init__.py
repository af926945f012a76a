"""Reference-based motion correction for single-particle cryo-EM, composed in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refmotion_nb.data.cryosparc.csfile import read_cs
    from refmotion_nb.data.cryosparc.project import open_cryosparc, open_exposures, survey_cryosparc
    from refmotion_nb.data.maps import read_map
    from refmotion_nb.data.relion.project import open_movies, open_relion, survey
    from refmotion_nb.data.schema import Dataset, Gain, InputError, Reference
    from refmotion_nb.data.star import read_star
    from refmotion_nb.data.store import ResultStore
    from refmotion_nb.data.synthetic.example import example
    from refmotion_nb.data.synthetic.settings import SimulationSettings
    from refmotion_nb.data.synthetic.simulate import simulate
    from refmotion_nb.numerics.prior import Hyperparameters
    from refmotion_nb.stages import execute
    from refmotion_nb.stages.audit import InputAudit
    from refmotion_nb.stages.correction import MotionCorrection
    from refmotion_nb.stages.dose_weights import DoseWeights
    from refmotion_nb.stages.job import Job
    from refmotion_nb.stages.micrographs import MicrographCorrection
    from refmotion_nb.stages.one_micrograph import correlation, hand_picked, trajectories
    from refmotion_nb.stages.search import HyperparameterSearch, best
    from refmotion_nb.stages.session import Session
    from refmotion_nb.stages.validation import Validation
    from refmotion_nb.views import plots
    from refmotion_nb.views.app.serve import app
    from refmotion_nb.views.progress import progress
    from refmotion_nb.views.report import write_report
    from refmotion_nb.views.widgets.explorer import PriorExplorer

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "DoseWeights",
    "Gain",
    "HyperparameterSearch",
    "Hyperparameters",
    "InputAudit",
    "InputError",
    "Job",
    "MicrographCorrection",
    "MotionCorrection",
    "PriorExplorer",
    "Reference",
    "ResultStore",
    "Session",
    "SimulationSettings",
    "Validation",
    "app",
    "best",
    "correlation",
    "example",
    "execute",
    "hand_picked",
    "open_cryosparc",
    "open_exposures",
    "open_movies",
    "open_relion",
    "plots",
    "progress",
    "read_cs",
    "read_map",
    "read_star",
    "simulate",
    "survey",
    "survey_cryosparc",
    "trajectories",
    "write_report",
]

# where each public name lives: imported when it is first used, so that importing the package costs nothing
_HOME = {
    "Dataset": "data.schema",
    "DoseWeights": "stages.dose_weights",
    "Gain": "data.schema",
    "HyperparameterSearch": "stages.search",
    "Hyperparameters": "numerics.prior",
    "InputAudit": "stages.audit",
    "InputError": "data.schema",
    "Job": "stages.job",
    "MicrographCorrection": "stages.micrographs",
    "MotionCorrection": "stages.correction",
    "PriorExplorer": "views.widgets.explorer",
    "Reference": "data.schema",
    "ResultStore": "data.store",
    "Session": "stages.session",
    "SimulationSettings": "data.synthetic.settings",
    "Validation": "stages.validation",
    "app": "views.app.serve",
    "best": "stages.search",
    "correlation": "stages.one_micrograph",
    "example": "data.synthetic.example",
    "execute": "stages",
    "hand_picked": "stages.one_micrograph",
    "open_cryosparc": "data.cryosparc.project",
    "open_exposures": "data.cryosparc.project",
    "open_movies": "data.relion.project",
    "open_relion": "data.relion.project",
    "plots": "views",
    "progress": "views.progress",
    "read_cs": "data.cryosparc.csfile",
    "read_map": "data.maps",
    "read_star": "data.star",
    "simulate": "data.synthetic.simulate",
    "survey": "data.relion.project",
    "survey_cryosparc": "data.cryosparc.project",
    "trajectories": "stages.one_micrograph",
    "write_report": "views.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOME:
        from importlib import import_module

        home = import_module(f"refmotion_nb.{_HOME[name]}")
        value = getattr(home, name, None) or import_module(f"{home.__name__}.{name}")  # a namespace is a module
        globals()[name] = value
        import_module("refmotion_nb.views.reprs").attach()
        import_module("refmotion_nb.views.progress").attach()
        return value
    message = f"refmotion_nb has no {name!r}"
    if not name.startswith("_"):
        from difflib import get_close_matches

        lower = {known.lower(): known for known in __all__}
        if near := get_close_matches(name.lower(), lower, n=1):
            message += f"; did you mean {lower[near[0]]!r}?"
    raise AttributeError(message, name=name)


def __dir__() -> list[str]:
    """List the public names, those not imported yet included."""
    return sorted({*globals(), *__all__})
