"""What another run or another program found, made to fit the data at hand: hyperparameters and dose weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from refmotion_nb.data.cryosparc.hyperparameters import dose_weights_file, read_hyperparameter_group
from refmotion_nb.data.cryosparc.hyperparameters import read_dose_weights as read_cryosparc_weights
from refmotion_nb.data.relion.results import read_bfactors, read_priors
from refmotion_nb.data.schema import InputError, Movie
from refmotion_nb.data.store import read_hyperparameters, read_netcdf, write_hyperparameters
from refmotion_nb.numerics.dose import DoseModel, relion_gauge, weights
from refmotion_nb.numerics.energy import pooled_scale
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import Alignment, MotionPrior, alignment_windows
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.dose_weights import POOL, lacks, table_edges
from refmotion_nb.stages.keys import DataKeys
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.sampling import sample
from refmotion_nb.stages.search import default_prior, prior_attrs, prior_from_attrs
from refmotion_nb.stages.session import Session

SCALE_PARTICLES = 1000  # to find the grey scale of a reference with
_CRYOSPARC = (".cs", ".csg")


def read_prior(path: Path, settings: Alignment, dose_per_frame_e_A2: float, keys: DataKeys | None) -> MotionPrior:
    """Read a motion prior: ``hyperparameters.json``, RELION's ``opt_params*.txt``, or a hyperparameter group (.cs, .csg).

    Strengths do not depend on how the dose is cut into frames; RELION's numbers are taken as RELION would take them for
    these movies. The grey scale of the reference is that of the other run only if the data, whose ``keys`` are given, are the
    same, or have grown since.

    Raises
    ------
    InputError
        The file holds no hyperparameters, or those of the other energy.
    """
    if path.suffix in _CRYOSPARC:
        found = read_hyperparameter_group(path)
        return default_prior(Hyperparameters.from_strengths(*found.values()), settings)
    if path.suffix == ".txt":
        try:
            return default_prior(Hyperparameters.from_relion(*read_priors(path), dose_per_frame_e_A2), settings)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
    values = read_hyperparameters(path)
    energy = values.get("energy", settings.energy)
    if energy != settings.energy:
        raise InputError(f"{path} holds hyperparameters of the {energy} energy; set energy to {energy}")
    scale = values.get("reference_scale") if keys and keys.grown_from(values.get("data")) else None
    flat = {**values, **(values.get("profile") or {}), **(scale or {})}
    return prior_from_attrs({k: v for k, v in flat.items() if not isinstance(v, dict | list)})


def write_prior(
    path: Path,
    prior: MotionPrior,
    dose_per_frame_e_A2: float,
    energy: str,
    keys: DataKeys,
    score: float = np.nan,
) -> None:
    """Write a motion prior as ``hyperparameters.json``, which ``read_prior`` reads; ``keys`` say of which data."""
    h = prior.hyperparameters
    s_vel, s_div, s_acc = h.to_relion(dose_per_frame_e_A2)
    write_hyperparameters(
        path, strength=h.strength, balance_deg=h.balance_deg, distance_A=h.distance_A, common_std_A=prior.common_std_A,
        drift_strength=prior.drift_strength,
        profile={"profile_decay_e_A2": prior.profile_decay_e_A2, "profile_floor": prior.profile_floor},
        relion={"s_vel": s_vel, "s_div": s_div, "s_acc": s_acc, "dose_per_frame_e_A2": dose_per_frame_e_A2},
        score=score, energy=energy, reference_scale={"grey_scale": prior.grey_scale, "scale_spread2": prior.scale_spread2},
        data=keys.mark,
    )  # fmt: skip


def as_search(
    session: Session, settings: Alignment, prior: MotionPrior, seed: int, reporter: Reporter | None = None
) -> xr.Dataset:
    """Return a given prior as a search would, with the grey scale of the references measured on a part of the movies.

    RELION's energy takes the scale of the reference as it is.

    Raises
    ------
    InputError
        No movie can be used.
    """
    names, prior = list[str](), settings.used_of(prior)
    if not settings.relion and not np.isfinite(prior.grey_scale):
        what, everyone = "measuring the reference's grey scale", list(session)
        task = partial(_cross_and_power, settings=settings)
        visit = partial(session.place.each, settings=settings, task=task)
        found = list(sample(session, everyone, SCALE_PARTICLES, seed, visit, reporter or Silent(), what))
        if not found:
            raise session.nothing_usable(everyone)
        pool, spread2 = pooled_scale(*np.array([sums for _, sums in found]).T)
        prior, names = replace(prior, grey_scale=pool, scale_spread2=spread2), [name for name, _ in found]
    return xr.Dataset(attrs={**prior_attrs(prior), "micrographs": names, "micrographs_key": session.keys.of(names)})


def _cross_and_power(session: Session, m: Micrograph, settings: Alignment) -> tuple[float, float]:
    raw = alignment_windows(m.distinct(), settings, False, session.threads, reach_A=1.0)
    return raw.sums


def read_weights(
    path: Path, movies: Sequence[Movie], box_px: int, pixel_size_A: float, last_frequency_per_A: float | None = None
) -> xr.Dataset:
    """Read dose weights as the table that ``DoseWeights`` makes (group, frame, frequency).

    Parameters
    ----------
    path
        ``dose_weights.nc``; RELION's ``bfactors.star``; CryoSPARC's ``refm_empirical_dw.npy``, or the ``hyperparams.cs``
        or ``.csg`` that names it.
    movies
        Those to be weighted. Only ``dose_weights.nc`` says at which dose its frames are; the others must have as many
        frames as these movies.
    box_px, pixel_size_A
        Of the reference: RELION's B-factors come without frequencies.
    last_frequency_per_A
        Of ``refm_empirical_dw.npy``, 1/Å, where the files beside it do not tell.

    Raises
    ------
    InputError
        No dose weights, or weights that do not fit these movies.
    """
    found = _read_weights(path, movies, box_px, pixel_size_A, last_frequency_per_A)
    found.encoding["source"] = str(path)  # as xarray notes what it opens
    return found


def _read_weights(
    path: Path, movies: Sequence[Movie], box_px: int, pixel_size_A: float, last_frequency_per_A: float | None
) -> xr.Dataset:
    if path.suffix == ".star":
        frequency = np.arange(box_px // 2 + 1) / (box_px * pixel_size_A)
        b_factor, log_scale = read_bfactors(path)
        # a scale of 0 is that of a frame without signal, of which there is some in one at least
        known = np.isfinite(b_factor) & (log_scale < np.inf) & (log_scale > -np.inf).any()
        if (bad := np.flatnonzero(~known)).size:
            raise InputError(
                f"{path}: frame {bad[0] + 1} has B-factor {b_factor[bad[0]]:g} and ln of scale {log_scale[bad[0]]:g}, RELION "
                "could not fit them; polish again with more particles, or leave dose_weights out"
            )
        model = DoseModel(np.exp(log_scale), -b_factor / relion_gauge(len(frequency)), np.ones(0))
        found = {"b_factor": model.b_factor_A2, "frame_scale": model.scale}
        return _foreign(path, weights(model, frequency), frequency, movies, found)
    if path.suffix in (*_CRYOSPARC, ".npy"):
        array = dose_weights_file(path) if path.suffix in _CRYOSPARC else path
        return _foreign(path, *read_cryosparc_weights(array, last_frequency_per_A), movies, {})
    table = read_netcdf(path)
    _check_table(path, table)
    return table.assign_attrs(from_file=path.name)


def _foreign(
    path: Path, weight: np.ndarray, frequency: np.ndarray, movies: Sequence[Movie], per_frame: dict[str, np.ndarray]
) -> xr.Dataset:
    """Return weights (frame, frequency) that come without doses as a table: the frames are those of the movies."""
    exposures = {(m.n_frames, m.dose_per_frame_e_A2, m.pre_exposure_e_A2, m.first_frame) for m in movies}
    frames = sorted({m.n_frames for m in movies})
    if len(exposures) > 1 or frames != [len(weight)]:
        have = " and ".join(map(str, frames))
        raise InputError(
            f"{path} has weights for {len(weight)} frames and does not say at which dose; these movies have {have} frames"
            f"{' of different doses' * (len(exposures) > len(frames))}; give the dose_weights.nc of a run of refmotion"
        )
    edges = movies[0].dose_edges
    labels = {"b_factor": "B-factor relative to the best frame", "frame_scale": "scale of the frame's signal"}
    units = {"b_factor": "Å²", "frame_scale": "1"}
    normalised = (weight / weight.sum(0))[None]
    return xr.Dataset(
        {
            "weight": (("group", "frame", "frequency"), normalised, {"units": "1", "long_name": "dose weight"}),
            "dose": (("group", "frame"), 0.5 * (edges[1:] + edges[:-1])[None],
                     {"units": "e/Å²", "long_name": "accumulated dose"}),
            "frame_dose": (("group", "frame"), np.diff(edges)[None], {"units": "e/Å²", "long_name": "dose of the frame"}),
            **{name: (("group", "frame"), values[None], {"units": units[name], "long_name": labels[name]})
               for name, values in per_frame.items()},
        },
        coords={
            "group": [POOL], "frame": np.arange(len(weight)),
            "frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"}),
        },
        attrs={"from_file": path.name},
    )  # fmt: skip


def _check_table(path: Path, table: xr.Dataset) -> None:
    if lacking := lacks(table):
        raise InputError(f"{path} is no table of dose weights: it lacks {lacking}; give the dose_weights.nc of a run")
    frequency = table["frequency"].values
    if len(frequency) < 2 or not (np.isfinite(frequency).all() and (np.diff(frequency) > 0).all()):
        raise InputError(f"{path}: its frequencies are not numbers that rise; sort the table by frequency")
    for i in range(table.sizes["group"]):
        row = table.isel(group=i).dropna("frame", subset=["dose"])
        if not row.sizes["frame"] or not (np.diff(table_edges(row)) > 0).all():
            raise InputError(
                f"{path}: the doses of group {i + 1} are not numbers that rise from frame to frame; give the dose_weights.nc "
                "of a run"
            )
        weight = row["weight"].values
        bad = np.argwhere(~(np.isfinite(weight) & (weight >= 0)))
        if len(bad) or not weight.size or not (weight.sum(0) > 0).all():
            frame, k = bad[0] if len(bad) else (0, int(np.argmin(weight.sum(0))) if weight.size else 0)
            raise InputError(
                f"{path}: the weight of group {i + 1}, frame {frame + 1} at {row['frequency'].values[k]:.4g} 1/Å is not a "
                "positive number; weights must be at least 0, and above 0 in one frame at each frequency"
            )
