"""Empirical dose weights: how well frames agree with the opposite half map, by frame and frequency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Dataset
from refmotion_nb.numerics.dose import DoseModel, bootstrap_weights, fcc, fcc_sums, fit_model, fit_relion, weights
from refmotion_nb.numerics.energy import grant_grigorieff
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.search import HyperparameterSearch, prior_from_attrs
from refmotion_nb.stages.session import Session

LOW_RESOLUTION_A = 20.0  # the FCC is fitted from here to FSC = 0.143, as in RELION
FEWEST_SHELLS = 4  # to fit a decay to


def micrograph_fcc_sums(m: Micrograph, displacement_A: np.ndarray, threads: int) -> np.ndarray:
    """Return the FCC sums (3, frame, shell) of a micrograph along trajectories, against the opposite half maps."""
    area = 0.25 * np.pi * (m.spectra.box + 1.0) * m.spectra.box
    whitening = np.sqrt(np.divide(1.0, m.noise_power * area, out=np.zeros_like(m.noise_power), where=m.noise_power > 0))
    whitening[0] = 0
    shift = displacement_A / m.movie.pixel_size_A
    return fcc_sums(m.spectra, m.opposite, shift, whitening.astype(np.float32), m.spectra.box // 2 + 1, threads=threads)


class DoseWeights(Alignment):
    """Measure the decay of signal with dose on a part of the data and turn it into weights."""

    target_particles = HyperparameterSearch.param["target_particles"]
    seed = HyperparameterSearch.param["seed"]

    def run(self, data: Dataset | Session, search: xr.Dataset, reporter: Reporter | None = None) -> xr.Dataset:
        """Return FCC, its model and weights (group, frame, frequency) under the prior a search chose.

        Raises
        ------
        InputError
            A movie cannot be used.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = reporter or Silent()
        prior = prior_from_attrs(search.attrs)
        names, what = list(session), "measuring dose weights"
        sums, used = [], []
        for last in session.sample(names, self.target_particles, self.seed, self, reporter, what):
            used.append(last.movie.micrograph)
            tracks = session.track(last, self, prior)
            sums.append(micrograph_fcc_sums(last, tracks.displacement_A, session.threads))
        table = weights_table(np.stack(sums), last, used, self.relion)
        return table.assign_attrs(micrographs_key=session.keys.of(used))


def weights_table(sums: np.ndarray, m: Micrograph, names: list[str], relion: bool = False) -> xr.Dataset:
    """Return the table of FCC, model, weights and bands of FCC sums (micrograph, 3, frame, shell).

    With ``relion`` the model is RELION's, unbounded and with its B-factors as they are.
    """
    curve = fcc(sums.sum(0))
    n_shells = curve.shape[1]
    frequency = m.frequency(n_shells)
    low = min(max(1, int(m.extent_A / LOW_RESOLUTION_A)), max(m.k_out - FEWEST_SHELLS, 1))
    fitted = slice(low, m.k_out)
    model = (
        _relion_model(curve, m, fitted) if relion else fit_model(curve[:, fitted], frequency[fitted], frequency[fitted])
    )
    found = weights(model, frequency)
    if len(sums) > 2 and not relion:
        low_band, high_band = bootstrap_weights(sums, frequency[fitted], fitted, frequency)
    else:
        low_band = high_band = np.full_like(found, np.nan)
    standard = grant_grigorieff(frequency, m.mid_dose, m.movie.voltage_kV)
    curve = np.where(sums.sum(0)[2] > 0, curve, np.nan)  # beyond the band of the references nothing was measured
    modelled = np.full_like(curve, np.nan)
    modelled[:, fitted] = model.values(frequency[fitted]) * model.envelope

    def cube(values: np.ndarray, name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return ("group", "frame", "frequency"), values[None], {"units": "1", "long_name": name}

    def row(values: np.ndarray, name: str, units: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return ("group", "frame"), values[None], {"units": units, "long_name": name}

    return xr.Dataset(
        {
            "fcc": cube(curve, "Fourier cylinder correlation"),
            "fcc_model": cube(modelled, "modelled Fourier cylinder correlation"),
            "weight": cube(found, "dose weight"),
            "weight_lo": cube(low_band, "dose weight, 5th percentile"),
            "weight_hi": cube(high_band, "dose weight, 95th percentile"),
            "reference_weight": cube(standard / standard.sum(0), "dose weight of Grant & Grigorieff"),
            "dose": row(m.mid_dose, "accumulated dose", "e/Å²"),
            "b_factor": row(model.b_factor_A2, "B-factor relative to the best frame", "Å²"),
            "frame_scale": row(model.scale, "scale of the frame's signal", "1"),
        },
        coords={
            "group": np.array(["all"]),
            "frame": np.arange(curve.shape[0]),
            "frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"}),
        },
        attrs={
            "micrographs": names,
            "fitted_from_A": 1 / frequency[fitted][0],
            "fitted_to_A": 1 / frequency[fitted][-1],
        },
    )


def _relion_model(curve: np.ndarray, m: Micrograph, fitted: slice) -> DoseModel:
    b_factor, log_scale = fit_relion(curve, m.movie.pixel_size_A, fitted.start, fitted.stop)
    model = DoseModel(np.exp(log_scale), -b_factor, np.ones(fitted.stop - fitted.start))
    basis = model.values(m.frequency(curve.shape[1])[fitted])
    return replace(model, envelope=np.maximum((basis * curve[:, fitted]).sum(0) / (basis**2).sum(0), 0))


def weights_on(table: xr.Dataset, n_frames: int, frequency_per_A: np.ndarray) -> np.ndarray:
    """Return the weights of a table (frame, frequency) at other frequencies, normalised over frames again.

    Raises
    ------
    ValueError
        The table was made for another number of frames.
    """
    weight = table["weight"].values[0]
    if weight.shape[0] != n_frames:
        raise ValueError(f"the dose weights are for {weight.shape[0]} frames, the movie has {n_frames}")
    own = table["frequency"].values
    out = np.stack([np.interp(frequency_per_A, own, w) for w in weight])
    return out / out.sum(0)
