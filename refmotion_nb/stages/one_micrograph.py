"""One micrograph looked at closely: trajectories under a prior, and the correlations that they follow."""

from __future__ import annotations

from difflib import get_close_matches

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import AXES, InputError
from refmotion_nb.numerics.backend import to_host
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import Alignment, alignment_windows
from refmotion_nb.stages.correction import MotionCorrection, tracks_table
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.reuse import as_search, default_prior
from refmotion_nb.stages.search import HyperparameterSearch, prior_from_attrs
from refmotion_nb.stages.session import Session


def hand_picked(session: Session, hyperparameters: Hyperparameters, stage: Alignment | None = None) -> xr.Dataset:
    """Return hyperparameters given by hand as a search would: for all that takes the result of a search.

    What else a prior has takes typical values; the reference's grey scale is measured on up to 1000 particles. ``stage``
    has the settings, by default those of ``MotionCorrection()``.

    Raises
    ------
    InputError
        No movie can be used.
    """
    settings = stage or MotionCorrection()
    return as_search(session, settings, default_prior(hyperparameters, settings), 0)


def trajectories(session: Session, micrograph: str, search: xr.Dataset, stage: Alignment | None = None) -> xr.Dataset:
    """Return the trajectories of a micrograph's particles under the prior of ``search``; nothing is written.

    They are those that ``stage``, by default ``MotionCorrection()``, corrects with: displacements ``shift`` (particle,
    frame, axis) from the particle's coordinate, the rigid motion and the common correction to it, all in Å.

    Raises
    ------
    InputError
        No such micrograph, or a movie that cannot be used.
    """
    settings = stage or MotionCorrection()
    m = _read(session, micrograph, settings)
    tracks = session.track(m, settings, prior_from_attrs(search.attrs))
    return tracks_table(m, tracks, m.spectra.box, m.movie.pixel_size_A)


def correlation(
    session: Session, micrograph: str, stage: Alignment | None = None, reach_A: float = 8.0, step_A: float = 0.5
) -> xr.Dataset:
    """Return how well each particle in each frame matches its predicted view, were it displaced by (x, y).

    ``correlation`` (particle, frame, y, x) is the log-likelihood, up to a constant, of displacements x, y (Å) from the motion
    that motion correction found, ``initial`` (particle, frame, axis), up to ``reach_A`` in steps of ``step_A``. Trajectories
    follow the sum of it as far as the prior allows. ``stage`` has the settings, by default ``HyperparameterSearch()``,
    whose frequencies are used.

    Raises
    ------
    InputError
        No such micrograph, a movie that cannot be used, or a reach below one step.
    """
    if not 0 < step_A <= reach_A:
        raise InputError(
            f"step_A {step_A:g} and reach_A {reach_A:g}: give a step above 0 and a reach of at least one step"
        )
    settings = stage or HyperparameterSearch()
    m = _read(session, micrograph, settings)
    _, position = m.representatives
    one = m.distinct()
    raw = alignment_windows(one, settings, False, session.threads, max(reach_A, settings.window_reach_A) + 1.0)
    windows = raw.scaled(default_prior(Hyperparameters(1.0, 0.0, 1.0), settings))
    n = int(np.floor(reach_A / step_A + 1e-9))
    s = step_A * np.arange(-n, n + 1)
    initial = one.placement.initial_A
    values = np.empty((len(s), len(s), *initial.shape[:2]), np.float32)  # y, x, particle, frame
    for row, y in zip(values, s):
        row[:] = to_host(windows.sample(initial + np.stack([s, np.full_like(s, y)], -1)[:, None, None])[0])
    axis = {name: (name, s, {"units": "Å", "long_name": f"displacement from rigid motion in {name}"}) for name in AXES}
    return xr.Dataset(
        {
            "correlation": (("particle", "frame", "y", "x"), np.moveaxis(values, (2, 3), (0, 1))[position],
                            {"units": "1", "long_name": "log-likelihood of the displacement"}),
            "initial": (("particle", "frame", "axis"), m.placement.initial_A,
                        {"units": "Å", "long_name": "motion that motion correction found"}),
            "row": ("particle", m.particles["row"].values),
        },
        coords={"axis": list(AXES), **axis},
        attrs={"micrograph": micrograph},
    )  # fmt: skip


def _read(session: Session, name: str, settings: Alignment) -> Micrograph:
    if name not in session.micrographs:
        near = get_close_matches(name, list(session), n=1) or list(session)[:1]
        raise InputError(f"no micrograph {name!r} with particles; for example {', '.join(near) or 'none'}")
    return session.micrograph(name, settings)
