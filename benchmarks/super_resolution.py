"""Movies in super-resolution: time, memory and errors with particles written as fine as the movies, and as they were refined.

    python benchmarks/super_resolution.py DATASET OUT [--threads 2] [--relion]

The set, laid out as by `refmotion simulate`, is made again into OUT with movies of twice the pixels a side (each count in one of
the four at random) whose micrographs are binned by 2. Three whole runs: of the set as it is, of the finer movies, and of these
with `--fourier-crop-to` the box that particles were refined in; with `--relion` also RELION's correction of the finer movies.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import tifffile
from common import rms, timed

from refmotion_nb.data.relion.results import read_tracks
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.synthetic.simulate import trajectory_error_A

FOUR = [(i, j) for i in (0, 1) for j in (0, 1)]


def split(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return counts (2 y, 2 x) uint8 whose blocks of four add up to ``image`` (y, x)."""
    out, left = np.empty((2 * image.shape[0], 2 * image.shape[1]), np.uint8), image
    for n, (i, j) in enumerate(FOUR):
        out[i::2, j::2] = part = rng.binomial(left, 1 / (4 - n))
        left = left - part
    return out


def finer(source: Path, out: Path) -> None:
    """Make the finer set, unless it is there."""
    if (out / "truth.npz").exists():
        return
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.tif", "gain.mrc"), dirs_exist_ok=True)
    with mrcfile.new(out / "gain.mrc", overwrite=True) as file:
        file.set_data(mrcfile.read(source / "gain.mrc").repeat(2, 0).repeat(2, 1))
    rng = np.random.default_rng(1)
    for movie in sorted((source / "Movies").glob("*.tif")):
        with tifffile.TiffFile(movie) as frames, tifffile.TiffWriter(out / "Movies" / movie.name) as to:
            for page in frames.pages:
                counts = split(page.asarray(), rng)
                to.write(counts, compression="lzw", rowsperstrip=8, photometric="minisblack", contiguous=False)
    for name in ("MotionCorr/corrected_micrographs.star", "Extract/particles.star"):
        blocks: dict[str, Any] = read_star(out / name)
        blocks["optics"]["rlnMicrographOriginalPixelSize"] /= 2
        if "particles" in blocks:  # the centre of four pixels lies half of one beyond the first
            for axis in "XY":
                blocks["particles"][f"rlnOrigin{axis}Angst"] -= (
                    blocks["optics"]["rlnMicrographOriginalPixelSize"][0] / 2
                )
        write_star(out / name, blocks)
    for path in (out / "MotionCorr").rglob("*.star"):
        blocks = read_star(path)
        if "general" not in blocks:
            continue
        blocks["general"] |= {"rlnMicrographBinning": 2.0}
        blocks["general"]["rlnMicrographOriginalPixelSize"] /= 2
        for axis in "XY":
            blocks["general"][f"rlnImageSize{axis}"] *= 2
            blocks["global_shift"][f"rlnMicrographShift{axis}"] *= 2
        if "hot_pixels" in blocks:
            hot = np.asarray(blocks["hot_pixels"])[:, :2]
            of_four = np.concatenate([2 * hot + (j, i) for i, j in FOUR])
            blocks["hot_pixels"] = pd.DataFrame(of_four, columns=["rlnCoordinateX", "rlnCoordinateY"])
        write_star(path, blocks)


def error_A(data: Path, out: Path) -> float:
    with np.load(data / "truth.npz") as truth:
        return rms([
            trajectory_error_A(read_tracks(path), truth[f"{path.stem.removesuffix('_tracks')}_total"], truth["dose_mid"])
            for path in out.rglob("*_tracks.star")
        ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--relion", action="store_true")
    options = parser.parse_args()
    data, out = options.dataset.absolute(), options.out.absolute()
    finer(data, out)
    box = int(read_star(data / "Extract/particles.star")["optics"]["rlnImageSize"][0])
    run = [
        sys.executable, "-m", "refmotion_nb", "run", "--particles", "Extract/particles.star", "--micrographs",
        "MotionCorr/corrected_micrographs.star", "--fsc", "Ref/postprocess.star", "--root", ".",
        "--threads", str(options.threads),
    ]  # fmt: skip
    relion = [
        "relion_motion_refine", "--i", "Extract/particles.star", "--f", "Ref/postprocess.star", "--corr_mic",
        "MotionCorr/corrected_micrographs.star", "--s_vel", "0.5", "--s_div", "5000", "--s_acc", "2", "--combine_frames",
        "--out_cut", "--j", str(options.threads),
    ]  # fmt: skip
    rows = {"as it is": (data, run, "--out"), "whole": (out, run, "--out"),
            "cropped": (out, [*run, "--fourier-crop-to", str(box)], "--out")}  # fmt: skip
    if options.relion:
        rows["RELION, correction"] = out, relion, "--o"
    timed([*run, "--out", str(out / "warm-up"), "--until", "hyperparameters"], data)
    print("| | seconds | processor | GB | error, Å | GB of particles |\n|---|---|---|---|---|---|")
    for name, (folder, command, where) in rows.items():
        results = out / name.replace(" ", "_")
        shutil.rmtree(results, ignore_errors=True)
        seconds, processor, memory = timed([*command, where, str(results)], folder)
        written = sum(path.stat().st_size for path in results.rglob("*.mrcs")) / 1e9
        figures = f"{seconds:.1f} | {processor:.1f} | {memory:.2f} | {error_A(data, results):.3f} | {written:.2f}"
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
