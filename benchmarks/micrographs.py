"""Micrographs against RELION's, against the truth, and against the clock.

    python benchmarks/micrographs.py agreement DATASET WORK     RELION's own images of the same movies and shifts
    python benchmarks/micrographs.py quality DATASET [--dose-weights FILE] [--tracks RUN]     what motion and weights are worth
    python benchmarks/micrographs.py speed DATASET [--threads 2]              seconds and floor for the first movie

DATASET is a folder laid out as by `refmotion simulate` (with movies.star); `agreement` needs relion_run_motioncorr.
Quality is the correlation of particles cut from the micrographs with the opposite half map's views, per resolution band.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
from common import opened
from scipy import fft
from stages import best_of, machine

import refmotion_nb as rm
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.star import read_star, table
from refmotion_nb.data.store import read_netcdf
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.stages.micrographs import frame_weights
from refmotion_nb.stages.particle_motion import ParticleMotion

BANDS_A = ((30, 15), (15, 10), (10, 7), (7, 5), (5, 4))
EDGE = 64  # px left out of comparisons: RELION lets the other side of the field in, we do not


def agreement(dataset: Path, work: Path) -> None:
    """Let RELION correct the movies as a whole, then correct them from its shifts, and compare."""
    optics = table(read_star(dataset / "movies.star"), "optics").iloc[0]
    general = table(read_star(next((dataset / "MotionCorr/Movies").glob("*.star"))), "general").iloc[0]
    command = [
        "relion_run_motioncorr", "--i", "movies.star", "--o", str(work.absolute() / "relion"), "--use_own", "--j", "2",
        "--dose_weighting", "--save_noDW", "--gainref", str(general["rlnMicrographGainName"]),
        "--dose_per_frame", str(general["rlnMicrographDoseRate"]), "--voltage", str(optics["rlnVoltage"]),
        "--angpix", str(optics["rlnMicrographOriginalPixelSize"]),
    ]  # fmt: skip
    subprocess.run(command, cwd=dataset, check=True, capture_output=True)
    data = rm.open_movies(work / "relion/corrected_micrographs.star", dataset)
    table_out = rm.MicrographCorrection(save_nodw=True).run(data, None, work / "ours", image_root=work)
    rows = []
    for name in table_out["micrograph"].values:
        for suffix in ("", "_noDW"):
            ours, relion = (
                mrcfile.read(next((work / who).glob(f"M*/{name}{suffix}.mrc"))).squeeze().astype(float)
                for who in ("ours", "relion")
            )
            ours, relion = (image[EDGE:-EDGE, EDGE:-EDGE] for image in (ours, relion))
            rows.append({
                "micrograph": name + suffix, "correlation": np.corrcoef(ours.ravel(), relion.ravel())[0, 1],
                "relative RMS of the difference": (ours - relion).std() / relion.std(),
            })  # fmt: skip
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.6f}".format))


def quality(dataset: Path, weights: Path | None, tracks: Path | None, threads: int) -> None:
    """Correlate particles of our micrographs with their reference, by motion and by weights."""
    session = rm.Session(opened(dataset), threads)
    movies = rm.open_movies(dataset / "MotionCorr/corrected_micrographs.star", dataset)
    curves = {"standard": None} | ({"empirical": read_netcdf(weights)} if weights else {})
    found = ParticleMotion.of_run(tracks) if tracks else None
    motions = {"rigid": (False, None), "local": (True, None)} | ({"of particles": (True, found)} if tracks else {})
    print(f"{'':26s}" + "".join(f"{f'{a}–{b} Å':>10s}" for a, b in BANDS_A))
    for curve, dose in curves.items():
        for motion, (local, particles) in motions.items():
            sums = np.zeros((3, len(BANDS_A)))
            stage = rm.MicrographCorrection(local_motion=local)
            for movie, group in zip(movies.movies, movies.groups):
                curve_of = partial(frame_weights, dose, movie, group)
                image = stage.images(movie, curve_of, threads, stage.motion(movie, curve_of, particles))[0]
                sums += likeness(image, session.micrograph(movie.micrograph, rm.MotionCorrection()))
            print(f"{motion + ', ' + curve:26s}" + "".join(f"{v:10.4f}" for v in sums[0] / np.sqrt(sums[1] * sums[2])))


def likeness(image: np.ndarray, m) -> np.ndarray:
    """Σ Re(X V*), Σ |X|², Σ |V|² of all particles in each band."""
    box, k = m.spectra.box, m.opposite.shape[2] - 1
    r = np.hypot(np.arange(-k, k + 1)[:, None], np.arange(k + 1)[None]) / m.extent_A
    bands = [(r > 1 / low) & (r <= 1 / high) for low, high in BANDS_A]
    sums = np.zeros((3, len(BANDS_A)))
    for (x, y), view in zip(m.placement.centre_px - box // 2, m.opposite):
        patch = -image[y : y + box, x : x + box]
        if patch.shape != (box, box) or min(x, y) < 0:
            continue
        spectrum = np.fft.rfft2(patch - patch.mean())[np.arange(-k, k + 1) % box, : k + 1]
        for b, band in enumerate(bands):
            one, other = spectrum[band], view[band]
            sums[:, b] += (one * other.conj()).real.sum(), (np.abs(one) ** 2).sum(), (np.abs(other) ** 2).sum()
    return sums


def speed(dataset: Path, threads: int) -> None:
    """Time the first movie; the floor counts transforms (5 n log2 n for a complex, half for a real one) and bytes."""
    flops, bandwidth = machine(threads)
    data = rm.open_movies(dataset / "MotionCorr/corrected_micrographs.star", dataset)
    movie, weights = data.movies[0], partial(frame_weights, None, data.movies[0], data.groups[0])
    if movie.local_motion is None:  # any will do: 2 px across the field by the last frame
        linear = np.eye(18)[3] * 2 / movie.n_frames
        movie = replace(movie, local_motion=np.concatenate([linear, linear]))
    pixels, n = movie.height * movie.width, movie.n_frames
    image = np.random.default_rng(0).random((movie.height, movie.width), np.float32)
    there, _, spectrum = best_of(lambda: fft.rfft2(image, workers=threads))
    back, _, _ = best_of(lambda: fft.irfft2(spectrum, s=image.shape, workers=threads))
    with open_movie(movie) as reader:
        decode, _, _ = best_of(lambda: reader.frame(0))
    print(f"{n} frames of {movie.width} × {movie.height}, {threads} threads: {flops / 1e9:.0f} GFlop/s, "
          f"{bandwidth / 1e9:.1f} GB/s")  # fmt: skip
    print(f"one frame: decoding {decode:.3f} s (one thread), scipy's transforms {there:.3f} and {back:.3f} s")
    transform = 2.5 * pixels * np.log2(pixels)
    # bytes: frame as float32 in and out, spectrum and its weighting, the sum read and written
    floors = {False: (transform, 4 * pixels * 7), True: (2 * transform + 120 * pixels, 4 * pixels * 11)}
    with one_blas_thread():
        for local, (operations, moved) in floors.items():
            stage = rm.MicrographCorrection(local_motion=local)
            seconds, cpu, _ = best_of(partial(stage.images, movie, weights, threads), 2)
            floor = n * max(operations / flops, moved / bandwidth)
            print(f"{'local' if local else 'rigid':8s}{seconds:8.2f} s ({cpu:.2f} s of all processors), floor {floor:6.2f} s, "
                  f"{n * (there + (back if local else 0)):6.2f} s in scipy's transforms alone")  # fmt: skip
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agreement", "quality", "speed"))
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path, nargs="?", default=Path("micrographs-benchmark"))
    parser.add_argument("--dose-weights", type=Path)
    parser.add_argument("--tracks", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.what == "agreement":
        agreement(options.dataset, options.work)
    elif options.what == "quality":
        quality(options.dataset, options.dose_weights, options.tracks, options.threads)
    else:
        speed(options.dataset, options.threads)


if __name__ == "__main__":
    main()
