"""Time and floor of every stage on the first micrograph of a dataset.

    python benchmarks/stages.py DATASET [--threads 2]

DATASET is a folder laid out as by `refmotion simulate`. The floor of a stage is what the machine needs at least: its bytes at
the rate of copying memory, its transforms at the rate of transforms of the same size that stay in the cache, LZW at the rate of
the faster of two decoders (imagecodecs' and our own) on strips that stay there, one read of a reference per component of a
predicted view at the rate of reads in no order, or its other operations at the rate of a large
single-precision matrix product, whichever is longer. The rates are measured first, by all
threads together. Beside the shortest time on the clock stands the least processor time, shared by the threads: on a machine
with other work it is the one to look at.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from common import opened
from scipy import fft

import refmotion_nb as rm
from refmotion_nb.data.movies import lzw
from refmotion_nb.data.movies.look import look_at, sample_of
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.schema import Movie
from refmotion_nb.numerics.backend import one_blas_thread, over_chunks
from refmotion_nb.numerics.patches import PatchSpectra, movie_box, particle_power, patch_corners
from refmotion_nb.numerics.projection import _support
from refmotion_nb.numerics.recombine import recombine
from refmotion_nb.stages import micrograph as steps
from refmotion_nb.stages.alignment import Alignment, Geometry, MotionPrior, alignment_windows, score_windows, solve
from refmotion_nb.stages.dose_weights import micrograph_fcc_sums
from refmotion_nb.stages.references import PreparedReference


def least(found: tuple[float, float, Any], threads: int) -> float:
    """Return the time that what ``best_of`` found would take on an idle machine, as far as can be told."""
    return min(found[0], found[1] / threads)


def best_of(work: Callable[[], Any], n: int = 3) -> tuple[float, float, Any]:
    """Return the shortest time and the least processor time of n runs, in seconds, and the last result."""
    times, used = [], []
    for _ in range(n):
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        times.append(time.perf_counter() - start)
        used.append(time.process_time() - cpu)
    return min(times), min(used), result


def transform_rate(threads: int, box: int) -> float:
    """Return operations per second (2.5 n log2 n each) of real transforms of boxes, by the threads together."""
    images = np.random.default_rng(0).random((threads, box, box), np.float32)
    times = max(4, int(2e7 / box**2))

    def transforms(part: slice) -> None:
        for i in range(part.start, part.stop):
            for _ in range(times):
                fft.rfft2(images[i : i + 1], norm="forward", workers=1)

    seconds = least(best_of(lambda: over_chunks(threads, transforms, threads, chunk=1), 7), threads)
    return threads * times * transform_operations(1, box) / seconds


def transform_operations(n: int, box: int) -> float:
    """Return the usual count of operations of n real transforms of boxes."""
    return 2.5 * n * box * box * float(np.log2(box * box))


def window_operations(n: int, k: int, size: int) -> int:
    """Return the operations of n windows: two real products of the folded band along ky, one along kx."""
    return n * (4 * (size + 1) * (k + 1) ** 2 + 4 * size**2 * (k + 1))


def reference_operations(reference: rm.Reference, prepared: PreparedReference) -> float:
    """Return the usual count of operations of both half maps' padded transforms, only where there is and is kept something."""
    assert reference.mask is not None
    depth, height, _ = (axis.stop - axis.start for axis in _support(rm.read_map(reference.mask)[0]))
    kept, _, n_x = prepared.volumes[0].ft.shape
    size = prepared.volumes[0].padding * prepared.box
    line = 2.5 * size * float(np.log2(size))  # a real one; complex ones take twice as much
    return 2 * line * (depth * height + 2 * depth * n_x + 2 * kept * n_x)


def decode_rate(path: Path, threads: int) -> float:
    """Return bytes per second that the threads decode of a TIFF's first strips in the cache; infinite where it is no LZW."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        if page.compression != tifffile.COMPRESSION.LZW:
            return float("inf")
        rows = page.rowsperstrip
        n = max(1, min(len(page.dataoffsets), (1 << 18) // (rows * page.imagewidth * page.dtype.itemsize)))
        strips = [
            tiff.filehandle.read_segments(page.dataoffsets[i : i + 1], page.databytecounts[i : i + 1]) for i in range(n)
        ]
        packed: list[Any] = [segment for one in strips for segment, _ in one]
        row_bytes = page.imagewidth * page.dtype.itemsize
    counts = np.array([len(one) for one in packed])
    data = np.frombuffer(b"".join(packed) + bytes(lzw.PADDING), np.uint8)
    times = 16 * threads

    def ours(part: slice) -> None:
        out = np.empty((n * rows, row_bytes), np.uint8)
        for _ in range(part.start, part.stop):
            assert lzw.decode_strips(data, np.cumsum(counts) - counts, counts, rows, out)

    def theirs(part: slice) -> None:
        out: Any = np.empty(rows * row_bytes, np.uint8)
        for _ in range(part.start, part.stop):
            for one in packed:
                imagecodecs.lzw_decode(one, out=out)

    found = [least(best_of(lambda: over_chunks(times, work, threads), 5), threads) for work in (ours, theirs)]  # noqa: B023
    rates = [times * n * rows * row_bytes / seconds for seconds in found]
    print(f"LZW: {rates[0] / 1e9:.2f} GB/s, by imagecodecs {rates[1] / 1e9:.2f} GB/s")
    return max(rates)


def machine(threads: int) -> tuple[float, float]:
    """Return floating-point operations and bytes per second that the threads reach together."""
    a = np.random.default_rng(0).random((1024, 1024), np.float32)

    def products(part: slice) -> None:
        for _ in range(part.start, part.stop):
            a @ a

    with one_blas_thread():
        seconds = least(best_of(lambda: over_chunks(8 * threads, products, threads), 7), threads)
    flops = 8 * threads * 2 * 1024**3 / seconds
    big = np.ones((threads, 1 << 26), np.uint8)
    target = np.empty_like(big)

    def copy(part: slice) -> None:
        target[part] = big[part]

    seconds = least(best_of(lambda: over_chunks(threads, copy, threads, chunk=1), 7), threads)
    return flops, 2 * big.nbytes / seconds


def gather_rate(array: np.ndarray, threads: int) -> float:
    """Return values per second that the threads together read of an array in no order."""
    flat, n = array.ravel(), 1 << 18
    where = np.random.default_rng(0).integers(0, flat.size, (threads, n))
    target = np.empty((threads, n), array.dtype)

    def gather(part: slice) -> None:
        for i in range(part.start, part.stop):
            np.take(flat, where[i], out=target[i], mode="clip")

    seconds = least(best_of(lambda: over_chunks(threads, gather, threads, chunk=1), 7), threads)
    return threads * n / seconds


@dataclass(frozen=True)
class Table:
    """What is printed, a line per stage; rates are those of the machine, by all threads together."""

    threads: int
    flops: float  # operations a second
    bandwidth: float  # bytes a second
    transforms: float  # operations of transforms a second
    decoding: float  # unpacked bytes a second
    gathering: float  # values a second, in no order

    def show(
        self, what: str, found: tuple[float, float, Any], operations: float = 0.0, moved: float = 0.0, ffts: float = 0.0,
        unpacked: float = 0.0, gathered: float = 0.0,
    ) -> Any:  # fmt: skip
        """Print the line of a stage, and return what it came to."""
        seconds, cpu, result = found
        floor = max(operations / self.flops, moved / self.bandwidth, ffts / self.transforms, unpacked / self.decoding,
                    gathered / self.gathering)  # fmt: skip
        ratio = f"{floor:9.3f}{least(found, self.threads) / floor:7.1f}" if floor else ""
        print(f"{what:34s}{seconds:9.3f}{cpu / self.threads:11.3f}{ratio}", flush=True)
        return result


def time_reading(table: Table, movie: Movie, placement: steps.Placement) -> PatchSpectra:
    """Time what leads from a movie to the spectra of its particles' patches; return these."""
    threads, f, box, n = table.threads, movie.n_frames, placement.box, len(placement.centre_px)
    pixels = f * movie.height * movie.width
    with open_movie(movie) as reader:
        decoded: list[Any] = [None] * f

        def decode(part: slice) -> None:
            for i in range(part.start, part.stop):
                decoded[i] = reader.frame(i)

        work = best_of(lambda: over_chunks(f, decode, threads, chunk=1), 2)
        n_bytes = pixels * reader.dtype.itemsize
        table.show(f"decode ({movie.path.suffix})", work, 0, 2 * n_bytes, unpacked=n_bytes)
        work = best_of(lambda: look_at(movie, reader, True, True, threads))
        sampled = len(sample_of(reader))
        look = table.show("camera, mean frame, background", work, 0, movie.height * movie.width * (4 + 4 + 1 + 4 + sampled),
                          unpacked=sampled * n_bytes / f)  # fmt: skip
    spectra = PatchSpectra.empty(n, f, box)
    spectra.offset_px[:] = np.rint(placement.initial_A / movie.pixel_size_A)

    def transform(part: slice) -> None:
        for i in range(part.start, part.stop):
            corners = patch_corners(placement.centre_px, box, spectra.offset_px[:, i])
            frame = decoded[i] if look.detector is None else look.detector.repair(decoded[i], i)
            spectra.add_frame(i, frame, look.gain, corners, look.background)

    area = n * f * box * box
    work = best_of(lambda: over_chunks(f, transform, threads, chunk=1), 2)
    table.show("cut, transform, store", work, 0, area * (1 + 4 + 2), transform_operations(n * f, box))
    work = best_of(lambda: particle_power(spectra, threads))
    table.show("noise spectrum", work, 4 * area / 2, spectra.stored.nbytes)
    return spectra


def time_alignment(table: Table, m: steps.Micrograph, settings: Alignment) -> np.ndarray:
    """Time what leads from the spectra of a micrograph to trajectories (particle, frame, 2), Å; return these."""
    threads, n, f, k = table.threads, m.n, m.movie.n_frames, m.own.shape[2] - 1
    prior = MotionPrior(rm.Hyperparameters.from_relion(0.5, 5000, 2, m.movie.dose_per_frame_e_A2), 0.7, 10.0, 0.15)
    for what, final in (("windows, search band", False), ("windows, all components", True)):
        work = best_of(partial(alignment_windows, m, settings, final, threads))
        raw = work[2]
        size, kb = raw.windows.grid.size, min(m.k_out, k) if final else settings.k_cut(m)
        operations, cross = window_operations(n * f, kb, size), 16 * n * f * (2 * kb + 1) * (kb + 1)
        table.show(what, work, operations + cross, n * f * (2 * kb + 1) * (kb + 1) * 4 + raw.windows.values.nbytes)
        table.show("  own noise taken out", best_of(partial(raw.scaled, prior, threads)), operations)
    table.show("windows, score", best_of(lambda: score_windows(m, settings, threads)))
    windows, geometry = raw.scaled(prior), Geometry.of(m)
    work = best_of(lambda: solve(windows, geometry, [prior], False))
    found = work[2]
    per_iteration = 2 * (2 * n * n * f + 2 * n * f * f) * 2 + n * f * 150
    table.show(f"trajectories ({int(found.iterations[0])} iterations)", work, per_iteration * found.iterations[0])
    return found.displacement_A[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    threads = options.threads
    flops, bandwidth = machine(threads)
    data = opened(options.dataset)
    session = rm.Session(data, threads, device="cpu")
    first = best_of(lambda: session.references(False), 1)
    references = first[2]
    transforms = transform_rate(threads, movie_box(references[0].extent_A, data.movies[0].pixel_size_A))
    table = Table(threads, flops, bandwidth, transforms, decode_rate(data.movies[0].path, threads),
                  gather_rate(references[0].volumes[0].ft, threads))  # fmt: skip
    movie, particles = next(iter(session.micrographs.values()))
    placement = steps.place(movie, particles, references[0].extent_A, True)
    n, f, box = len(placement.centre_px), movie.n_frames, placement.box
    print(f"{threads} threads: {flops / 1e9:.0f} GFlop/s, {bandwidth / 1e9:.1f} GB/s, transforms of {box} px "
          f"{transforms / 1e9:.1f} GFlop/s, {table.gathering / 1e6:.0f} million values a second of a reference in no "
          "order\n")  # fmt: skip
    print(f"{'stage':34s}{'seconds':>9s}{'processor':>11s}{'floor':>9s}{'ratio':>7s}")
    operations = reference_operations(data.references[0], references[0])
    table.show("references: load, transform", first, 0, 3 * 2 * 4 * references[0].box ** 3, operations)
    spectra = time_reading(table, movie, placement)
    settings = rm.MotionCorrection()
    table.show("(movie to patches, as run)", best_of(lambda: session.micrograph(next(iter(session)), settings), 1))
    m = session.micrograph(next(iter(session)), settings)
    k = m.own.shape[2] - 1
    predict = partial(
        steps._predict, movie, particles, placement, data.optics, references, k, False, threads, session.device
    )
    table.show("CTF and predicted views", best_of(predict), gathered=2 * n * np.pi * k * k / 2)
    tracks = time_alignment(table, m, settings)
    band = n * f * (2 * k + 1) * (k + 1)
    table.show("FCC", best_of(lambda: micrograph_fcc_sums(m, tracks, threads)), 20 * band, 4 * band)
    weight = np.full((f, box), 1.0 / f)
    work = best_of(lambda: recombine(m.spectra, tracks / movie.pixel_size_A, weight, box, threads))
    table.show("recombine", work, 10 * n * f * box * box / 2, spectra.stored.nbytes, transform_operations(n, box))
    print(f"\n{n} particles, {f} frames of {movie.width} × {movie.height}, box {box}; peak memory "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
