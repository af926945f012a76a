"""What a second round gains: alignment to half maps of the particles that the first corrected, and how far the truth is.

    python benchmarks/second_round.py DATASET ...

DATASETs are folders laid out as by `refmotion simulate`, with truth.npz. Trajectory errors in Å as by `accuracy.py`; mean
FSC (own validation, masked and corrected) from 8 to 4 Å. Both rounds are under the hyperparameters of the first; the second
measures its dose weights anew, and takes no own noise out. The last column is of the true trajectories with the dose weights
of the first.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from accuracy import session_of
from common import rms

import refmotion_nb as rm
from refmotion_nb.data.synthetic.simulate import trajectory_error_A
from refmotion_nb.stages.alignment import Tracks
from refmotion_nb.stages.reuse import as_search
from refmotion_nb.stages.search import prior_of
from refmotion_nb.stages.validation import COMBINATIONS

BOTH = COMBINATIONS[-1]


class TrueSession(rm.Session):
    """A session whose trajectories are the true ones, at the place of those that are found."""

    truth: dict[str, np.ndarray]

    def track(self, micrograph: Any, settings: Any, prior: Any) -> Tracks:
        found = super().track(micrograph, settings, prior)
        true, weight = self.truth[f"{micrograph.movie.micrograph}_total"], np.exp(-self.truth["dose_mid"] / 16)
        off = ((true - found.displacement_A) * weight[:, None]).sum(1, keepdims=True) / weight.sum()
        return replace(found, displacement_A=true - off)


def error_A(session: rm.Session, search: xr.Dataset, truth: dict[str, np.ndarray], **changes: bool) -> float:
    settings, errors = rm.MotionCorrection(**changes), []
    for name in session:
        found = session.track(session.micrograph(name, settings), settings, prior_of(search))
        errors.append(trajectory_error_A(found.displacement_A, truth[f"{name}_total"], truth["dose_mid"]))
    return rms(errors)


def mean_fsc(validation: xr.Dataset) -> float:
    band = (validation["frequency"] > 1 / 8) & (validation["frequency"] < 1 / 4)
    return float(validation["fsc_corrected"].sel(combination=BOTH.name)[0].where(band).mean())


def rounds(dataset: Path, out: Path) -> list[float]:
    """Return the trajectory errors of both rounds, then mean FSCs of both and of the true trajectories."""
    first, truth = session_of(dataset)
    stage = rm.Validation(write_maps=BOTH.name)
    search = rm.HyperparameterSearch().run(first)
    dose = rm.DoseWeights().run(first, search)
    fsc = [mean_fsc(stage.run(first, search, dose, combinations=(BOTH,), out=out))]
    errors = [error_A(first, search, truth)]
    known = TrueSession(first.data, cache_bytes=first.cache_bytes)
    known.truth = truth
    best = mean_fsc(rm.Validation().run(known, search, dose, combinations=(BOTH,)))
    half1, half2 = (out / f"Maps/both_half{half}.mrc" for half in (1, 2))
    reference = rm.Reference(half1, half2, first.data.references[0].mask)
    second = rm.Session(replace(first.data, references=(reference,)), cache_bytes=first.cache_bytes)
    prior = replace(prior_of(search), grey_scale=np.nan)  # the new maps may have another grey scale
    elsewhere = {"remove_own_noise": False}  # along the trajectories of the first round
    again = as_search(second, rm.HyperparameterSearch(), prior, 0)
    errors.append(error_A(second, again, truth, **elsewhere))
    dose = rm.DoseWeights(**elsewhere).run(second, again)
    fsc.append(mean_fsc(rm.Validation(**elsewhere).run(second, again, dose, combinations=(BOTH,))))
    return [*errors, *fsc, best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+")
    print(
        "| set | error, first round | second | FSC, first round | second | true trajectories |\n|---|---|---|---|---|---|"
    )
    for dataset in parser.parse_args().datasets:
        with tempfile.TemporaryDirectory() as out:
            figures = rounds(dataset, Path(out))
        print(f"| {dataset.name} | {' | '.join(f'{one:.3f}' for one in figures)} |", flush=True)


if __name__ == "__main__":
    main()
