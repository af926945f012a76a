"""CryoSPARC's hyperparameter group: what its own reference-based motion correction hands to later jobs, in and out.

As far as public facts go: FCC bins run from 0 to the Nyquist limit of ``pixel_size_A``, bin b of n at b/n of it; dose
weights have twice as many bins and twice the range. Names of the columns of hyperparameters are not public: ours are
``refmotion_hyperparameters/*``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.cryosparc.csfile import names, read_cs, read_group, table, text, write_cs, write_csg
from refmotion_nb.data.cryosparc.write import stable_uid
from refmotion_nb.data.files import load_array, save_array
from refmotion_nb.data.schema import InputError

_OURS = "refmotion_hyperparameters/"
HYPERPARAMETERS = ("spatial_strength", "correlation_distance", "acceleration_strength")


def write_hyperparameter_group(
    out: str | Path, hyperparameters: Mapping[str, float], dose: xr.Dataset | None, pixel_size_A: float
) -> Path:
    """Write ``hyperparams.cs`` and ``.csg``, and with dose weights ``refm_empirical_dw.npy`` and ``refm_fcc.npy``.

    The first row of ``dose`` (the pool of all groups) is written; weights from a file may come without an FCC.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {"uid": np.array([stable_uid("hyperparameters", out.name)], np.uint64)}
    results = [_OURS.rstrip("/")]
    if dose is not None:
        dose = dose.isel(group=0).dropna("frame", subset=["dose"])
        frequency = dose["frequency"].values
        n_bins = max(2, int(np.count_nonzero(frequency <= 0.5 / pixel_size_A)))
        step = 0.5 / pixel_size_A / n_bins
        for name, variable, bins in (("refm_fcc", "fcc", n_bins), ("refm_empirical_dw", "weight", 2 * n_bins)):
            if variable not in dose:
                (out / f"{name}.npy").unlink(missing_ok=True)  # of an earlier run with other weights
                continue
            at = np.arange(bins) * step
            curves = np.nan_to_num(dose[variable].values)
            array = np.stack([np.interp(at, frequency, curve) for curve in curves])
            save_array(out / f"{name}.npy", array.astype(np.float32))
        values |= {
            "refmotion_doseweights/path": [">refm_empirical_dw.npy"],
            "refmotion_doseweights/shape": np.array([[dose.sizes["frame"], 2 * n_bins]], np.uint32),
            "refmotion_doseweights/psize_A": np.array([pixel_size_A], np.float32),
        }
        if "fcc" in dose:
            values["refmotion_doseweights/fcc_path"] = [">refm_fcc.npy"]
        results.append("refmotion_doseweights")
    values |= {_OURS + name: np.array([value]) for name, value in hyperparameters.items()}
    path = out / "hyperparams.cs"
    write_cs(path, table(values))
    write_csg(path.with_suffix(".csg"), "hyperparameters", "hyperparameter", "Hyperparameters and dose weights",
              {name: (path.name, f"hyperparameter.{name}", 1) for name in results}, datetime.now())  # fmt: skip
    return path


def read_hyperparameter_group(path: str | Path) -> dict[str, float]:
    """Read spatial strength, correlation distance (Å) and acceleration strength of a ``hyperparams.cs`` or ``.csg``.

    Raises
    ------
    InputError
        The file holds none that this package wrote: CryoSPARC's own column names and units are not public.
    """
    rows = read_group(path) if Path(path).suffix == ".csg" else read_cs(path)
    if not len(rows) or any(_OURS + name not in names(rows) for name in HYPERPARAMETERS):
        raise InputError(f"{path} holds no hyperparameters of refmotion; those of CryoSPARC's own job are on a scale that is "
                         "not public, search again, or give spatial_strength, correlation_distance and "
                         "acceleration_strength")  # fmt: skip
    return {name: float(rows[_OURS + name][0]) for name in HYPERPARAMETERS}


def dose_weights_file(path: str | Path) -> Path:
    """Find the array of dose weights that a ``hyperparams.cs`` or ``.csg`` names.

    Raises
    ------
    InputError
        It names none.
    """
    path = Path(path)
    rows = read_group(path) if path.suffix == ".csg" else read_cs(path)
    if not len(rows) or "refmotion_doseweights/path" not in names(rows):
        raise InputError(f"{path} names no dose weights; give the hyperparameter group of a job that measured them")
    name = text(rows[:1], "refmotion_doseweights/path")[0]
    beside = path.parent / Path(name.lstrip(">")).name
    return beside if beside.exists() or name.startswith(">") else Path(name)


def read_dose_weights(path: str | Path, last_frequency_per_A: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read CryoSPARC's ``refm_empirical_dw.npy``: weights (frame, frequency) and the frequencies (1/Å).

    Its bins run evenly from 0 to ``last_frequency_per_A``. Without it they are found from ``refm_fcc.npy`` and the pixel
    size in ``hyperparams.cs`` beside it: weights have twice the bins of the FCC and reach twice its Nyquist limit.

    Raises
    ------
    InputError
        The axis cannot be told from these files, or the weights are not positive numbers.
    """
    path = Path(path)
    weights = _array(path)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights.sum(0) > 0).all()):
        raise InputError(f"{path} holds weights below 0, or bins without any weight; compute them again")
    if last_frequency_per_A is not None:
        if not 0 < last_frequency_per_A < math.inf:
            raise InputError(f"dose_weights_last_frequency_per_A is {last_frequency_per_A}; give the frequency of the last bin "
                             "in 1/Å, above 0")  # fmt: skip
        return weights, np.linspace(0, last_frequency_per_A, weights.shape[1])
    if not path.with_name("refm_fcc.npy").exists():
        raise InputError(f"{path}: without refm_fcc.npy beside it the frequencies of its {weights.shape[1]} bins are not "
                         "known; copy it there, or give dose_weights_last_frequency_per_A")  # fmt: skip
    fcc = _array(path.with_name("refm_fcc.npy"))
    if weights.shape != (fcc.shape[0], 2 * fcc.shape[1]):
        raise InputError(f"{path} has shape {weights.shape}, refm_fcc.npy {fcc.shape}; weights should have as many frames "
                         "and twice the bins, else their frequencies are not known")  # fmt: skip
    rows = read_cs(path.with_name("hyperparams.cs"))
    if "refmotion_doseweights/psize_A" not in names(rows):
        raise InputError(f"{path.with_name('hyperparams.cs')} does not tell the pixel size of the dose weights; give "
                         "dose_weights_last_frequency_per_A")  # fmt: skip
    pixel_size_A = float(rows["refmotion_doseweights/psize_A"][0])
    return weights, np.arange(weights.shape[1]) * 0.5 / pixel_size_A / fcc.shape[1]


def _array(path: Path) -> np.ndarray:
    array = load_array(path, "give the files of one CryoSPARC job")
    if array.ndim != 2:
        raise InputError(f"{path} has shape {array.shape}, not (frames, bins); give the files of one CryoSPARC job")
    return np.asarray(array, float)
