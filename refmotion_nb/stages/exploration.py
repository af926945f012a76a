"""One micrograph under any hyperparameters, at once: its correlation windows are in memory, the movie is not needed again."""

from __future__ import annotations

from threading import Lock

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import AXES, Dataset, InputError
from refmotion_nb.numerics.backend import one_blas_thread, to_host
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
from refmotion_nb.stages.search import START, HyperparameterSearch, SearchMicrograph, default_prior, prior_attrs
from refmotion_nb.stages.session import Session

TOLERANCE = 1e-5  # energy still to be gained, per particle and frame: some thousandths of an ångström


class PriorExploration:
    """Trajectories, score and activity of one micrograph as a function of hyperparameters, as the search computes them.

    ``at`` starts from the motion that motion correction found, so that what it finds depends on the hyperparameters only, not
    on the way that led there; ``near`` starts from the last solution and is quicker. Several threads may ask.
    """

    def __init__(
        self,
        name: str,
        micrograph: SearchMicrograph,
        layout: xr.Dataset,
        prior: MotionPrior,
        settings: HyperparameterSearch,
    ):
        """Hold a micrograph's windows and the variables of its ``tracks`` that no prior changes; see ``prepare``."""
        self.name = name
        self.micrograph = micrograph
        self.layout = layout
        self.prior = prior
        self.settings = settings
        self._position = layout["position"].values  # (particle,) which of the windows
        self._last: Solution | None = None
        self._last_at = prior.hyperparameters
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
        prior = settings.used_of(prior) if prior else default_prior(START, settings)
        one = m.distinct()
        # on the host: a single prior is no work for a GPU, and any thread may ask
        windows = alignment_windows(one, settings, False, session.threads).scaled(prior, session.threads).on(to_host)
        score = score_windows(one, settings, session.threads)
        score.windows = score.windows.on(to_host)
        reporter.advance(what="correlation windows")
        found = cls(
            name, SearchMicrograph(Geometry.of(one, settings.kernel), windows, score), layout_of(m), prior, settings
        )
        found.at(prior.hyperparameters)  # kernels are compiled now rather than at the first move
        reporter.advance(what="trajectories")
        reporter.done()
        return found

    @property
    def dose_per_frame_e_A2(self) -> float:
        """Dose per frame (e/Å²), by which RELION's units depend on the movie."""
        return float(self.layout.attrs["dose_per_frame_e_A2"])

    def solve(self, hyperparameters: Hyperparameters, tolerance: float = TOLERANCE, nearby: bool = False) -> Solution:
        """Return the trajectories under a prior, ``tolerance`` above the lowest energy per particle and frame.

        ``nearby`` starts from the last solution, if that is of hyperparameters close to these.
        """
        m = self.micrograph
        with self._lock, one_blas_thread():
            prior = self.prior.with_hyperparameters(hyperparameters)
            problem = trajectory_problem(m.windows, m.geometry, [prior], self.settings.relion, m.bend)
            if nearby and self._last is not None and close(self._last_at, hyperparameters):
                start = problem.unknowns_of(self._last.local_A, self._last.common_A)
            else:
                start = problem.unknowns_of(m.geometry.initial_A - problem.rigid_A)
            self._last, self._last_at = problem.solve(start, tolerance), hyperparameters
            return self._last

    def at(self, hyperparameters: Hyperparameters) -> xr.Dataset:
        """Return the micrograph's ``tracks`` under a prior; attrs hold the prior, ``cv_score`` and the two activities (Å)."""
        return self._tracks(hyperparameters, self.solve(hyperparameters))

    def near(self, hyperparameters: Hyperparameters) -> xr.Dataset:
        """Return what ``at`` does, found from the last solution: for a slider that is being moved."""
        return self._tracks(hyperparameters, self.solve(hyperparameters, nearby=True))

    def _tracks(self, hyperparameters: Hyperparameters, solution: Solution) -> xr.Dataset:
        m = self.micrograph
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


def close(one: Hyperparameters, other: Hyperparameters) -> bool:
    """Return whether a solution under one prior is a better start for the other than the usual one (by measurement)."""
    return (
        abs(np.log(one.strength / other.strength)) < 1
        and abs(np.log(one.distance_A / other.distance_A)) < 1
        and abs(one.balance_deg - other.balance_deg) < 15
    )


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
