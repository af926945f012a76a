"""One micrograph under any hyperparameters, at once: its correlation windows are in memory, the movie is not needed again."""

from __future__ import annotations

from threading import Lock

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import AXES, Dataset, InputError
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.numerics.rays import activity
from refmotion_nb.numerics.trajectories import Solution
from refmotion_nb.stages.alignment import (
    Geometry,
    MotionPrior,
    alignment_windows,
    score_windows,
    trajectory_problem,
)
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.reuse import default_prior
from refmotion_nb.stages.search import HyperparameterSearch, SearchMicrograph, prior_attrs
from refmotion_nb.stages.session import Session

START = Hyperparameters(1.0, 50.0, 3000.0)  # where a search that knows nothing begins
TOLERANCE = 1e-5  # energy still to be gained, per particle and frame: some thousandths of an ångström


class PriorExploration:
    """Trajectories, score and activity of one micrograph as a function of hyperparameters, as the search computes them.

    Every solution starts from the motion that motion correction found, so that it depends on the hyperparameters only, not
    on the way that led there; several threads may ask.
    """

    def __init__(
        self, micrograph: SearchMicrograph, layout: xr.Dataset, prior: MotionPrior, settings: HyperparameterSearch
    ):
        """Hold a micrograph's windows and the variables of its ``tracks`` that no prior changes; see ``prepare``."""
        self.micrograph = micrograph
        self.layout = layout
        self.prior = prior
        self.settings = settings
        self._position = layout["position"].values  # (particle,) which of the windows
        self._lock = Lock()

    @classmethod
    def prepare(
        cls,
        data: Dataset | Session,
        micrograph: str | None = None,
        settings: HyperparameterSearch | None = None,
        prior: MotionPrior | None = None,
        reporter: Reporter | None = None,
    ) -> PriorExploration:
        """Read one movie and compute its windows; by default of the micrograph with most particles.

        ``prior`` is that of a search, of which dose profile, common motion and grey scale are taken; else they are as a
        search starts with, the grey scale of this micrograph its own.

        Raises
        ------
        InputError
            There is no such micrograph, it has less than two particles, or its movie cannot be used.
        """
        session = data if isinstance(data, Session) else Session(data)
        settings, reporter = settings or HyperparameterSearch(), reporter or Silent()
        name = chosen(session, micrograph)
        reporter.start(4, f"preparing {name}")
        session.references(settings.relion)
        reporter.advance(what="references")
        m = session.micrograph(name, settings)
        reporter.advance(what="movie")
        prior = prior or default_prior(START, settings)
        one = m.distinct()
        windows = alignment_windows(one, settings, False, session.threads).scaled(prior)
        score = score_windows(one, settings, session.threads)
        reporter.advance(what="correlation windows")
        found = cls(SearchMicrograph(name, Geometry.of(one), windows, score), layout_of(m), prior, settings)
        found.at(prior.hyperparameters)  # kernels are compiled now rather than at the first move
        reporter.advance(what="trajectories")
        reporter.done()
        return found

    @property
    def name(self) -> str:
        """Name of the micrograph."""
        return self.micrograph.name

    @property
    def dose_per_frame_e_A2(self) -> float:
        """Dose per frame (e/Å²), by which RELION's units depend on the movie."""
        return float(self.layout.attrs["dose_per_frame_e_A2"])

    def solve(self, hyperparameters: Hyperparameters, tolerance: float = TOLERANCE) -> Solution:
        """Return the trajectories under a prior, ``tolerance`` above the lowest energy per particle and frame."""
        m = self.micrograph
        with self._lock, one_blas_thread():
            prior = self.prior.with_hyperparameters(hyperparameters)
            problem = trajectory_problem(m.windows, m.geometry, [prior], self.settings.relion)
            return problem.solve(problem.unknowns_of(m.geometry.initial_A), tolerance)

    def at(self, hyperparameters: Hyperparameters) -> xr.Dataset:
        """Return the micrograph's ``tracks`` under a prior; attrs hold the prior, ``cv_score`` and the two activities (Å)."""
        m, solution = self.micrograph, self.solve(hyperparameters)
        cross = m.score.windows.sample(solution.displacement_A)[0].sum(dtype=np.float64)
        facts = {
            "cv_score": -float(cross) / float(np.sqrt(m.score.movie_power * m.score.reference_power)),
            "activity_local": float(activity(solution.local_A)[0]),
            "activity_total": float(activity(solution.displacement_A - m.geometry.rigid_A)[0]),
            "edge_hits": int(m.windows.edge_hits(solution.displacement_A[0]).sum()),
        }
        out = self.layout.drop_vars("position")
        out["shift"] = (
            ("particle", "frame", "axis"), solution.displacement_A[0][self._position],
            {"units": "Å", "long_name": "displacement from the particle's coordinate"},
        )  # fmt: skip
        out["common"] = (
            ("frame", "axis"), solution.common_A[0], {"units": "Å", "long_name": "common motion relative to rigid"},
        )  # fmt: skip
        return out.assign_attrs(facts, **prior_attrs(self.prior.with_hyperparameters(hyperparameters)))


def chosen(session: Session, micrograph: str | None) -> str:
    """Return the name of the micrograph to explore: the given one, else the one with most particles.

    Raises
    ------
    InputError
        There is no such micrograph, or it has less than two particles.
    """
    names = list(session)
    if micrograph is None:
        micrograph = max(names, key=session.particle_count)
    if micrograph not in names:
        raise InputError(f"there is no micrograph {micrograph!r} with particles; the first there is: {names[0]!r}")
    if session.particle_count(micrograph) < 2:
        raise InputError(f"{micrograph} has one particle; choose a micrograph with neighbours to compare")
    return micrograph


def layout_of(m: Micrograph) -> xr.Dataset:
    """Return what ``tracks`` of a micrograph hold whatever the prior, and for each particle its ``position``."""
    return xr.Dataset(
        {
            "rigid": (("frame", "axis"), m.placement.rigid_A, {"units": "Å", "long_name": "rigid motion"}),
            "coordinate": (("particle", "axis"), m.position_A, {"units": "Å", "long_name": "position"}),
            "row": ("particle", m.particles["row"].values),
            "reference": ("particle", m.particles["reference"].values),
            "position": ("particle", m.representatives[1]),
        },
        coords={"axis": list(AXES)},
        attrs={
            "micrograph": m.movie.micrograph, "dose_per_frame_e_A2": m.movie.dose_per_frame_e_A2,
            "width_A": m.movie.width * m.movie.pixel_size_A, "height_A": m.movie.height * m.movie.pixel_size_A,
        },
    )  # fmt: skip
