"""Trajectory error of our own search against the truth, against a grid of hyperparameters, and against RELION's.

    python benchmarks/accuracy.py DATASET [--grid] [--relion S_VEL/S_DIV/S_ACC ...]

DATASET is a folder laid out as by `refmotion simulate`, with truth.npz. Errors in Å: early frames weighted by
exp(-dose / 16), a constant per particle free, RMS over particles, then over micrographs. `--grid` tries 8 strengths per
decade × 5 balances × 5 distances; `--relion` runs `relion_motion_refine --out_cut` with the given priors.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import opened, rms

import refmotion_nb as rm
from refmotion_nb.data.relion.results import read_tracks
from refmotion_nb.data.synthetic.simulate import trajectory_error_A
from refmotion_nb.stages.alignment import Geometry, MotionPrior, alignment_windows, solve
from refmotion_nb.stages.search import prior_from_attrs

GRID = (10 ** np.arange(-1.0, 2.01, 0.125), (10.0, 40.0, 65.0, 80.0, 87.0), (600.0, 1500.0, 3000.0, 6000.0, 15000.0))


def grid_errors(
    session: rm.Session, truth: dict[str, np.ndarray], base: MotionPrior
) -> tuple[np.ndarray, list[MotionPrior]]:
    """Return the error under every prior of the grid, final alignment, all micrographs."""
    settings = rm.MotionCorrection()
    strengths, balances, distances = GRID
    priors = [
        replace(base, hyperparameters=rm.Hyperparameters(r, b, z))
        for b in balances
        for z in distances
        for r in strengths
    ]
    squares = np.zeros(len(priors))
    for name in session:
        m = session.micrograph(name, settings)
        windows = alignment_windows(m, settings, True, session.threads).scaled(base)
        for i in range(0, len(priors), len(strengths)):
            found = solve(windows, Geometry.of(m), priors[i : i + len(strengths)], False).displacement_A
            for j, track in enumerate(found):
                squares[i + j] += trajectory_error_A(track, truth[f"{name}_total"], truth["dose_mid"]) ** 2
    return np.sqrt(squares / len(session.micrographs)), priors


def relion_error(dataset: Path, priors: str, session: rm.Session, truth: dict[str, np.ndarray]) -> float:
    s_vel, s_div, s_acc = priors.split("/")
    with tempfile.TemporaryDirectory(dir=dataset) as folder:
        subprocess.run(
            ["relion_motion_refine", "--i", "Extract/particles.star", "--f", "Ref/postprocess.star", "--corr_mic",
             "MotionCorr/corrected_micrographs.star", "--o", Path(folder).name, "--s_vel", s_vel, "--s_div", s_div,
             "--s_acc", s_acc, "--out_cut", "--j", "2"],
            cwd=dataset, check=True, capture_output=True,
        )  # fmt: skip
        errors = []
        for path in sorted(Path(folder).rglob("*_tracks.star")):
            name = path.name.removesuffix("_tracks.star")
            errors.append(trajectory_error_A(read_tracks(path), truth[f"{name}_total"], truth["dose_mid"]))
    assert len(errors) == len(session.micrographs)
    return rms(errors)


def session_of(dataset: Path) -> tuple[rm.Session, dict[str, np.ndarray]]:
    """Return a session of a simulated data set, and the truth about it."""
    with np.load(dataset / "truth.npz") as file:
        return rm.Session(opened(dataset), cache_bytes=4e9), dict(file)


def own_errors(session: rm.Session, truth: dict[str, np.ndarray]) -> tuple[MotionPrior, float, float]:
    """Return the prior that our search finds, the error of motion correction and that of our trajectories."""
    prior = prior_from_attrs(rm.HyperparameterSearch().run(session).attrs)
    settings, rigid, ours = rm.MotionCorrection(), [], []
    for name in session:
        m = session.micrograph(name, settings)
        of = truth[f"{name}_total"], truth["dose_mid"]
        rigid.append(trajectory_error_A(m.placement.initial_A, *of))
        ours.append(trajectory_error_A(session.track(m, settings, prior).displacement_A, *of))
    return prior, rms(rigid), rms(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--relion", nargs="*", default=[], metavar="S_VEL/S_DIV/S_ACC")
    options = parser.parse_args()
    session, truth = session_of(options.dataset)
    prior, rigid, ours = own_errors(session, truth)
    print(f"{sum(map(session.particle_count, session))} particles on {len(session.micrographs)} micrographs")
    print(f"as motion correction left them  {rigid:.3f} Å")
    print(f"own search, default settings    {ours:.3f} Å   {prior.hyperparameters}")
    if options.grid:
        errors, priors = grid_errors(session, truth, prior)
        best = int(np.argmin(errors))
        print(f"smallest of {len(errors)} on a grid      {errors[best]:.3f} Å   {priors[best].hyperparameters}; "
              f"ours / smallest {ours / errors[best]:.3f}")  # fmt: skip
    for priors_ in options.relion:
        print(
            f"RELION --out_cut {priors_:15s}{relion_error(options.dataset, priors_, session, truth):.3f} Å", flush=True
        )


if __name__ == "__main__":
    main()
