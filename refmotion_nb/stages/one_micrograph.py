"""One micrograph looked at closely: trajectories under a prior, and the correlations that they follow."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import AXES, InputError, wanted
from refmotion_nb.numerics.backend import irfft2, to_host
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import Alignment, alignment_windows, displacement_std
from refmotion_nb.stages.correction import MotionCorrection, tracks_table
from refmotion_nb.stages.dose_weights import weights_for
from refmotion_nb.stages.micrograph import Micrograph, particle_images
from refmotion_nb.stages.reuse import as_search
from refmotion_nb.stages.search import HyperparameterSearch, default_prior, prior_of
from refmotion_nb.stages.session import Session

SESSION = "a Session of what open_relion or open_cryosparc returned"


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
    wanted(hyperparameters, Hyperparameters, "hyperparameters", "Hyperparameters(strength, balance_deg, distance_A)")
    wanted(session, Session, "session", SESSION)
    h = hyperparameters
    if not (h.strength > 0 and 0 <= h.balance_deg <= 90 and h.distance_A > 0):
        raise InputError(
            f"strength {h.strength:g}, balance {h.balance_deg:g}°, distance {h.distance_A:g} Å; give a strength and a distance "
            "above 0, a balance from 0 to 90"
        )
    return as_search(session, settings, default_prior(hyperparameters, settings), 0)


def trajectories(
    session: Session, micrograph: str, search: xr.Dataset, stage: Alignment | None = None, uncertainty: bool = False
) -> xr.Dataset:
    """Return the trajectories of a micrograph's particles under the prior of ``search``; nothing is written.

    They are those that ``stage``, by default ``MotionCorrection()``, corrects with: displacements ``shift`` (particle,
    frame, axis) from the particle's coordinate, the rigid motion and the common correction to it, all in Å. With
    ``uncertainty`` also ``shift_std`` (particle, frame), what prior and data leave open along each axis (Å): one standard
    deviation, for plots to draw.

    Raises
    ------
    InputError
        No such micrograph, or a movie that cannot be used.
    """
    settings, prior = stage or MotionCorrection(), prior_of(search)
    m = _read(session, micrograph, settings)
    tracks = session.track(m, settings, prior)
    table = tracks_table(m, tracks, m.placement.box, m.movie.pixel_size_A)
    if uncertainty:
        std = displacement_std(m, settings, prior, tracks, session.threads)
        table["shift_std"] = (
            ("particle", "frame"),
            std,
            {"units": "Å", "long_name": "standard deviation of the displacement"},
        )
    return table


def before_and_after(
    session: Session, micrograph: str, search: xr.Dataset, dose: Mapping[str, xr.Dataset], number: int = 5,
    low_pass_A: float = 10.0, stage: MotionCorrection | None = None,
) -> xr.Dataset:  # fmt: skip
    """Return some particles of a micrograph before and after correction, and as the reference predicts them.

    ``image`` (picture, particle, y, x) is in units of the background's σ, smoothed to about ``low_pass_A``; picture
    ``before`` follows the motion of motion correction with standard weights, one of each name in ``dose`` is corrected with these
    weights as ``stage``, by default ``MotionCorrection()``, writes it, ``reference`` is what particles are compared with.

    Raises
    ------
    InputError
        No such micrograph, a movie that cannot be used, weights that do not reach far enough, or a box that does not fit.
    """
    settings = stage or MotionCorrection()
    m = _read(session, micrograph, settings)
    box = settings.output_box(m.placement.box)
    tracks = session.track(m, settings, prior_of(search))
    rows = np.linspace(0, m.n - 1, min(number, m.n)).round().astype(int)
    along = m.placement.initial_A / m.pixel_size_A
    images = {"before": particle_images(m, along, weights_for(m, None), box, session.threads)}
    images |= {name: settings.images(m, tracks, table, session.threads) for name, table in dose.items()}
    images["reference"] = _predicted(m, box)
    smooth = np.stack([_low_passed(one[rows], m.extent_A, low_pass_A) for one in images.values()])
    at = (np.arange(box) - box // 2) * m.extent_A / box
    axis = {name: (name, at, {"units": "Å", "long_name": f"{name} from the particle's centre"}) for name in AXES}
    return xr.Dataset(
        {
            "image": (("picture", "particle", "y", "x"), smooth, {"units": "σ of the background", "long_name": "grey value"}),
            "row": ("particle", m.particles["row"].values[rows]),
        },
        coords={"picture": list(images), **axis},
        attrs={"micrograph": micrograph, "extent_A": m.extent_A},
    )  # fmt: skip


def _predicted(m: Micrograph, box: int) -> np.ndarray:
    """Return the views that particles are compared with (particle, box, box), from their own half maps."""
    n, _, columns = m.own.shape
    k = columns - 1
    half = np.zeros((n, box, box // 2 + 1), np.complex64)
    rows = np.arange(-k, k + 1)
    keep = np.abs(rows) < box // 2
    columns = min(columns, box // 2)
    half[:, rows[keep] % box, :columns] = to_host(m.own)[:, keep, :columns]
    return irfft2(half, box)


def _low_passed(images: np.ndarray, extent_A: float, low_pass_A: float) -> np.ndarray:
    """Return images (…, box, box) of this width, details of ``low_pass_A`` weaker by √e and finer ones ever more."""
    box = images.shape[-1]
    y, x = np.fft.fftfreq(box)[:, None] * box / extent_A, np.fft.rfftfreq(box) * box / extent_A
    window = np.exp(-0.5 * ((y**2 + x**2) * low_pass_A**2))
    return np.fft.irfft2(np.fft.rfft2(images) * window, (box, box))


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
    wanted(session, Session, "session", SESSION)
    if name not in session.micrographs:
        near = get_close_matches(name, list(session), n=1) or list(session)[:1]
        raise InputError(f"no micrograph {name!r} with particles; for example {', '.join(near) or 'none'}")
    return session.micrograph(name, settings)
