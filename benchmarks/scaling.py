"""How time and memory grow: search and correction on simulated sets, and the cost of a step of a ray.

    python benchmarks/scaling.py [--particles 200 500 2000] [--frames 24] [--box 192] [--size 1024] [--threads 1 2] [--out DIR]

Every combination of the given numbers is simulated once (into DIR, where it is found again) and run as fresh processes:
`refmotion run --until hyperparameters`, then the correction with what it found. Peak memory is that of the process. A step of a
ray is one prior on all micrographs; its cost is by how much longer a search with more rays takes, over the steps it has more,
which leaves out reading and windows. The very first command is repeated, so that compiled kernels are on disk.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

from common import timed

from refmotion_nb.data.store import ResultStore

PER_MICROGRAPH = 50  # particles


def simulated(out: Path, particles: int, frames: int, box: int, size: int) -> Path:
    """Return the folder of a simulated set, made now or found."""
    folder = out / f"{particles}_{frames}_{box}_{size}"
    if not (folder / "truth.npz").exists():
        each = min(particles, PER_MICROGRAPH)
        options = {
            "out": folder, "n-micrographs": -(-particles // each), "particles-per-micrograph": each, "n-frames": frames,
            "box-px": box, "size-px": size, "seed": 1,
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        timed([sys.executable, "-m", "refmotion_nb", "simulate", *words], out)
    return folder


def steps_of(out: Path) -> tuple[int, float]:
    """Return how many steps of rays a search took, and the seconds of its stage."""
    store = ResultStore(out / "results.zarr")
    table = store.read("search")
    assert table is not None
    return int(table["cv_score"].notnull().sum()), store.attrs["seconds"]["hyperparameter search"]


def measure(data: Path, threads: int, warm_up: bool) -> str:
    """Return a row of the table: both commands, and the cost of a step."""
    work = Path(tempfile.mkdtemp(prefix="scaling_"))
    run = [
        sys.executable, "-m", "refmotion_nb", "run", "--particles", str(data / "Extract/particles.star"), "--micrographs",
        str(data / "MotionCorr/corrected_micrographs.star"), "--fsc", str(data / "Ref/postprocess.star"), "--root", str(data),
        "--threads", str(threads),
    ]  # fmt: skip
    search = [*run, "--until", "hyperparameters", "--out"]
    if warm_up:
        timed([*search, str(work / "first")], work)
    found = timed([*search, str(work / "search")], work)
    timed([*search, str(work / "more"), "--thoroughness", "balanced"], work)
    (few, short), (many, long) = steps_of(work / "search"), steps_of(work / "more")
    known = ["--hyperparameters", str(work / "search" / "hyperparameters.json")]
    final = timed([*run, *known, "--out", str(work / "final")], work)
    shutil.rmtree(work, ignore_errors=True)
    columns = [f"{wall:.1f} | {cpu:.1f} | {memory:.2f}" for wall, cpu, memory in (found, final)]
    return f"{' | '.join(columns)} | {1000 * (long - short) / (many - few):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, nargs="+", default=[200, 500, 2000])
    parser.add_argument("--frames", type=int, nargs="+", default=[24])
    parser.add_argument("--box", type=int, nargs="+", default=[192], help="px")
    parser.add_argument("--size", type=int, nargs="+", default=[1024], help="px of the frames")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="folder for simulated sets; a temporary one if not given")
    options = parser.parse_args()
    out = (options.out or Path(tempfile.mkdtemp(prefix="scaling_sets_"))).absolute()
    print("| particles | frames | box | frame | threads | search: s | processor s | GB | correction: s | processor s | GB |"
          " step of a ray, ms |")  # fmt: skip
    print("|" + "---|" * 12)
    sizes = itertools.product(options.particles, options.frames, options.box, options.size)
    for n, one in enumerate(sizes):
        data = simulated(out, *one)
        for threads in options.threads:
            row = measure(data, threads, warm_up=n == 0 and threads == options.threads[0])
            print(f"| {' | '.join(map(str, one))} | {threads} | {row} |", flush=True)
    if options.out is None:
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
