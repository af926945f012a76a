"""Trajectory error on simulated sets that each differ from the usual one in one respect, ours and RELION's.

    python benchmarks/conditions.py OUT [--only NAME ...] [--no-relion]

Sets of 8 movies are simulated into folders of OUT (some 200 MB each); errors as by `accuracy.py`, our own search with default
settings, RELION with its default priors: s_vel 0.5, s_div 5000, s_acc 2, and --out_cut.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accuracy import own_errors, relion_error, session_of

from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.data.synthetic.simulate import simulate

CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "usual": ("24 frames of 2 e/Å², 36 particles a movie", {}),
    "fine": ("80 frames of 0.6 e/Å²", {"n_frames": 80, "dose_per_frame_e_A2": 0.6}),
    "coarse": ("8 frames of 6 e/Å²", {"n_frames": 8, "dose_per_frame_e_A2": 6.0}),
    "ice": ("thicker ice: four times the structural noise", {"ice_noise": 0.12}),
    "sparse": ("6 particles on each of 24 movies", {"particles_per_micrograph": 6, "n_micrographs": 24}),
    "poor": ("B-factor of 120 instead of 20 Å²", {"b_factor_A2": 120.0}),
    "c1": ("reference without symmetry", {"symmetry": "none"}),
    "poses": ("poses off by 2.5° and 1 Å", {"pose_error_deg": 2.5, "origin_error_A": 1.0}),
    "still": ("a tenth of the motion, whole-frame alignment off by 0.1 Å", {"motion_scale": 0.1, "rigid_error_A": 0.1}),
    "drift": (
        "six times the drift, whole-frame alignment off by 2.5 Å",
        {"drift_A_per_dose": 3.0, "rigid_error_A": 2.5},
    ),
    "fast": ("local motion almost four times as fast", {"speed_A_per_dose": 8.0}),
    "rough": ("rough local motion", {"motion": "rough"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--no-relion", action="store_true")
    options = parser.parse_args()
    print("| set | rigid | RELION `--out_cut`: 0.5/5000/2 | ours |\n|---|---|---|---|")
    for name in options.only:
        what, changes = CONDITIONS[name]
        simulate(SimulationSettings(**{"n_micrographs": 8, "seed": 7, **changes}), options.out / name)
        session, truth = session_of(options.out / name)
        _, rigid, ours = own_errors(session, truth)
        theirs = "" if options.no_relion else f"{relion_error(options.out / name, '0.5/5000/2', session, truth):.3f}"
        print(f"| {what} | {rigid:.3f} | {theirs} | **{ours:.3f}** |", flush=True)


if __name__ == "__main__":
    main()
