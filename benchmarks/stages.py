"""Time and floor of every stage on the first micrograph of a dataset.

    python benchmarks/stages.py DATASET [--threads 2]

DATASET is a folder laid out as by `refmotion simulate`. The floor of a stage is what the machine needs at least: its
floating-point operations at the rate of a large single-precision matrix product, or its bytes at the rate of copying
memory, whichever is longer; both rates are measured first.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import refmotion_nb as rm
from refmotion_nb.data.movies.detector import load_detector
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.results import open_postprocess
from refmotion_nb.numerics.backend import one_blas_thread, over_chunks
from refmotion_nb.numerics.patches import PatchSpectra, particle_power, patch_corners
from refmotion_nb.numerics.recombine import recombine
from refmotion_nb.stages import micrograph as steps
from refmotion_nb.stages.alignment import Geometry, MotionPrior, alignment_windows, score_windows, solve
from refmotion_nb.stages.dose_weights import micrograph_fcc_sums


def best_of(work: Callable[[], Any], n: int = 3) -> tuple[float, Any]:
    """Return the shortest of n runs, in seconds, and the last result."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def machine(threads: int) -> tuple[float, float]:
    """Return floating-point operations and bytes per second that the threads reach together."""
    a = np.random.default_rng(0).random((1024, 1024), np.float32)

    def products(part: slice) -> None:
        for _ in range(part.start, part.stop):
            a @ a

    with one_blas_thread():
        seconds, _ = best_of(lambda: over_chunks(8 * threads, products, threads))
    flops = 8 * threads * 2 * 1024**3 / seconds
    big = np.ones((threads, 1 << 26), np.uint8)
    target = np.empty_like(big)

    def copy(part: slice) -> None:
        target[part] = big[part]

    seconds, _ = best_of(lambda: over_chunks(threads, copy, threads, chunk=1))
    return flops, 2 * big.nbytes / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    threads = options.threads
    flops, bandwidth = machine(threads)
    print(f"{threads} threads: {flops / 1e9:.0f} GFlop/s, {bandwidth / 1e9:.1f} GB/s\n")
    print(f"{'stage':34s}{'seconds':>9s}{'floor':>9s}{'ratio':>7s}")

    def show(what: str, seconds: float, operations: float = 0.0, moved: float = 0.0) -> None:
        floor = max(operations / flops, moved / bandwidth)
        ratio = f"{seconds / floor:7.1f}" if floor else ""
        print(f"{what:34s}{seconds:9.3f}{floor:9.3f}{ratio}", flush=True)

    reference, _ = open_postprocess(options.dataset / "Ref/postprocess.star", options.dataset)
    data = rm.open_relion(
        options.dataset / "Extract/particles.star", options.dataset / "MotionCorr/corrected_micrographs.star", reference,
        options.dataset,
    )  # fmt: skip
    session = rm.Session(data, threads)
    start = time.perf_counter()
    references = session.references(False)
    n_map = references[0].box
    show("references: load, transform", time.perf_counter() - start, 2 * 3 * 5 * 8 * n_map**3 * np.log2(2 * n_map) / 2)
    settings = rm.MotionCorrection()
    movie, particles = next(iter(session.micrographs.values()))
    placement = steps.place(movie, particles, references[0].extent_A, True)
    n, f, box = len(placement.centre_px), movie.n_frames, placement.box
    detector = load_detector(movie)
    gain = detector.gain if detector.gain is not None else np.ones((movie.height, movie.width), np.float32)
    with open_movie(movie) as reader:
        decoded: list[Any] = [None] * f

        def decode(part: slice) -> None:
            for i in range(part.start, part.stop):
                decoded[i] = reader.frame(i)

        pixels = f * movie.height * movie.width
        show(
            f"decode ({movie.path.suffix})",
            best_of(lambda: over_chunks(f, decode, threads, chunk=1), 2)[0],
            0,
            2 * pixels,
        )
    spectra = PatchSpectra.empty(n, f, box)
    spectra.offset_px[:] = np.rint(placement.initial_A / movie.pixel_size_A)

    def transform(part: slice) -> None:
        for i in range(part.start, part.stop):
            corners = patch_corners(placement.centre_px, box, spectra.offset_px[:, i])
            spectra.add_frame(i, detector.repair(decoded[i], i), gain, corners)

    area = n * f * box * box
    seconds, _ = best_of(lambda: over_chunks(f, transform, threads, chunk=1), 2)
    show("cut, transform, store", seconds, 2.5 * area * np.log2(box * box), area * (1 + 4 + 2))
    stored = spectra.stored.nbytes
    show("noise spectrum", best_of(lambda: particle_power(spectra, threads))[0], 4 * area / 2, stored)
    del decoded[:]
    start = time.perf_counter()
    m = session.micrograph(next(iter(session)), settings)
    print(f"{'(movie to patches, as run)':34s}{time.perf_counter() - start:9.3f}")
    k = m.own.shape[2] - 1
    predict = lambda: steps._predict(movie, particles, placement, data.optics, references, k, threads)  # noqa: E731
    show("CTF and predicted views", best_of(predict)[0], 2 * n * np.pi * k * k / 2 * 80)
    prior = MotionPrior(rm.Hyperparameters.from_relion(0.5, 5000, 2, movie.dose_per_frame_e_A2), 0.7, 10.0, 0.15)
    for what, final in (("windows, search band", False), ("windows, all components", True)):
        seconds, raw = best_of(lambda final=final: alignment_windows(m, settings, final, threads))
        size, kb = raw.windows.grid.size, min(m.k_out, k) if final else settings.k_cut(m)
        operations = n * f * (8 * (2 * kb + 1) * (kb + 1) * size + 4 * (2 * kb + 1) * size * size)
        show(what, seconds, operations, n * f * (2 * kb + 1) * (kb + 1) * 4 + raw.windows.values.nbytes)
        show("  own noise taken out", best_of(lambda raw=raw: raw.scaled(prior))[0], operations, 0)
    show("windows, score", best_of(lambda: score_windows(m, settings, threads))[0])
    windows, geometry = raw.scaled(prior), Geometry.of(m)
    seconds, found = best_of(lambda: solve(windows, geometry, [prior], False))
    per_iteration = 2 * (2 * n * n * f + 2 * n * f * f) * 2 + n * f * 150
    show(f"trajectories ({int(found.iterations[0])} iterations)", seconds, per_iteration * found.iterations[0])
    tracks = found.displacement_A[0]
    show("FCC", best_of(lambda: micrograph_fcc_sums(m, tracks, threads))[0], 20 * area / 2, stored)
    weight = np.full((f, box), 1.0 / f)
    seconds, _ = best_of(lambda: recombine(m.spectra, tracks / movie.pixel_size_A, weight, box, threads))
    show("recombine", seconds, 10 * area / 2, stored)
    print(f"\n{n} particles, {f} frames of {movie.width} × {movie.height}, box {box}; peak memory "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
