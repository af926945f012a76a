"""Time the whole commands side by side with RELION on the same processors, in turn, on one dataset.

    python benchmarks/vs_relion.py DATASET [--repeat 3] [--train] [--threads 2]

DATASET is a folder laid out as by `refmotion simulate`. Needs `relion_motion_refine` and `refmotion` on the PATH. Each
command is a fresh process, start-up included; peak memory is that of the process. The compiled kernels of refmotion are
cached on disk by the warm-up run; pass --cold to time the first run too.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
from pathlib import Path

from common import timed


def in_turn(
    commands: dict[str, tuple[list[str], Path]], cwd: Path, repeat: int
) -> dict[str, list[tuple[float, float]]]:
    """Run the commands one after another, ``repeat`` times; each has a folder that is removed before it."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, (command, out) in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            seconds, _, memory = timed(command, cwd)
            found[name].append((seconds, memory))
            print(f"  {name:24s}{seconds:8.1f} s {memory:6.2f} GB", flush=True)
    return found


def report(found: dict[str, list[tuple[float, float]]], ours: str, theirs: str) -> None:
    for name, runs in found.items():
        seconds = [s for s, _ in runs]
        print(f"{name:24s} median {statistics.median(seconds):7.1f} s (min {min(seconds):.1f}, max {max(seconds):.1f}), "
              f"peak {max(m for _, m in runs):.2f} GB")  # fmt: skip
    ratios = [b[0] / a[0] for a, b in zip(found[ours], found[theirs])]
    print(
        f"ratio {theirs} / {ours}: median {statistics.median(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--train", action="store_true", help="also RELION's training (minutes), once, against our search"
    )
    parser.add_argument("--cold", action="store_true", help="time the run that compiles, with an empty kernel cache")
    options = parser.parse_args()
    data = options.dataset.absolute()
    work = Path(tempfile.mkdtemp(prefix="vs_relion_"))
    relion = [
        "relion_motion_refine", "--i", "Extract/particles.star", "--f", "Ref/postprocess.star", "--corr_mic",
        "MotionCorr/corrected_micrographs.star", "--j", str(options.threads),
    ]  # fmt: skip
    ours = [
        "refmotion", "run", "--particles", "Extract/particles.star", "--micrographs", "MotionCorr/corrected_micrographs.star",
        "--fsc", "Ref/postprocess.star", "--root", ".", "--threads", str(options.threads),
    ]  # fmt: skip
    if options.cold:
        os.environ["NUMBA_CACHE_DIR"] = str(work / "numba")
        print(
            "first run, kernels compiled:",
            *timed([*ours, "--out", str(work / "cold"), "--until", "hyperparameters"], data),
        )
    searched = work / "searched"
    warm_up = timed([*ours, "--out", str(searched), "--until", "hyperparameters"], data)
    print(f"warm-up {warm_up[0]:.1f} s")
    print("\nhyperparameters")
    search = ([*ours, "--out", str(work / "search"), "--until", "hyperparameters"], work / "search")
    if options.train:
        train = ([*relion, "--o", str(work / "train"), "--params3", "--align_frac", "0.5", "--eval_frac", "0.5",
                  "--min_p", "1000000"], work / "train")  # fmt: skip
        report(in_turn({"ours": search, "relion --params3": train}, data, 1), "ours", "relion --params3")
    else:
        in_turn({"ours": search}, data, options.repeat)
    print("\nfinal correction (motion, dose weights, particles) with known hyperparameters")
    final = [*ours, "--out", str(work / "final"), "--hyperparameters", str(searched / "hyperparameters.json")]
    theirs = [*relion, "--o", str(work / "relion"), "--s_vel", "0.5", "--s_div", "5000", "--s_acc", "2",
              "--combine_frames", "--out_cut"]  # fmt: skip
    found = in_turn({"ours": (final, work / "final"), "relion": (theirs, work / "relion")}, data, options.repeat)
    report(found, "ours", "relion")
    print(
        f"\nprocessors: {options.threads}; total {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.0f} s of user time"
    )
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
