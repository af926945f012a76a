"""What a session of many movies will take, from what one movie takes on this machine; what would saturate first.

    python benchmarks/projection.py DATASET [--movies 10000] [--storage-GB-per-s 2 10] [--gpu-seconds S]

DATASET is a folder laid out as by `refmotion simulate`; its first movie stands for all. Measured here: bytes of the movie, the
seconds that one processor needs to decode it, the seconds in which all processors correct it (hyperparameters and dose
weights known). A GPU takes --gpu-seconds per movie, as benchmarks/gpu.py measures it on a machine that has one; without
it, the table says how fast a GPU would have to be before something else saturates.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import opened

import refmotion_nb as rm
from refmotion_nb.data.limits import cpu_count
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.schema import Dataset, Movie
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.stages.session import Session

CORES_PER_GPU = 16


def decoding_s(movie: Movie, threads: int) -> float:
    """Return the processor seconds that decoding all frames takes, with all processors at it."""
    with open_movie(movie) as reader, ThreadPoolExecutor(threads) as pool:
        list(pool.map(reader.frame, range(2)))
        start = time.perf_counter()
        list(pool.map(lambda f: reader.frame(f)[0, 0], range(movie.n_frames)))
        return threads * (time.perf_counter() - start)


def correction_s(data: Dataset, threads: int) -> tuple[float, float]:
    """Return the seconds of correcting the first movie, and those of what is done once."""
    with tempfile.TemporaryDirectory() as out, one_blas_thread():
        session = Session(data, threads, 0)
        start = time.perf_counter()
        session.references(False)
        once = time.perf_counter() - start
        search = rm.hand_picked(session, rm.Hyperparameters(2.0, 50.0, 3000.0))
        dose = rm.DoseWeights().run(session, search)
        start = time.perf_counter()
        rm.MotionCorrection().run(session, search, dose, out)
        return time.perf_counter() - start, once


def row(name: str, seconds: dict[str, float], movies: int) -> str:
    """Return a line of the table: hours, and which of several things in parallel takes longest."""
    slowest = max(seconds, key=lambda what: seconds[what])
    return f"| {name} | {movies * seconds[slowest] / 3600:.1f} | {1 / seconds[slowest]:.2g} | {slowest} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--movies", type=int, default=10_000)
    parser.add_argument("--storage-GB-per-s", type=float, nargs="+", default=[2.0, 10.0])
    parser.add_argument("--gpu-seconds", type=float, help="of a movie on one GPU")
    options = parser.parse_args()
    data = opened(options.dataset)
    threads, movie = cpu_count(), data.movies[0]
    size, decode = movie.path.stat().st_size, decoding_s(movie, threads)
    whole, once = correction_s(data, threads)
    print(f"measured: movie of {size / 1e6:.0f} MB, decoded in {decode:.2f} s of one processor, corrected in {whole:.2f} s "
          f"of {threads} processors; references once, {once:.1f} s")  # fmt: skip
    print(f"\n| {options.movies} movies | hours | movies per second | what saturates first |\n|---|---|---|---|")
    for nodes in (1, 8, 64):
        for rate in options.storage_GB_per_s:
            reading = size / rate / 1e9
            name = f"{nodes} × {threads} processors, storage of {rate:g} GB/s"
            print(row(name, {"processors": whole / nodes, "storage": reading}, options.movies))
    for gpus in (1, 8, 64):
        for rate in options.storage_GB_per_s:
            parts = {f"decoding on {CORES_PER_GPU} processors per GPU": decode / CORES_PER_GPU / gpus,
                     "storage": size / rate / 1e9}  # fmt: skip
            if options.gpu_seconds:
                parts["GPU"] = options.gpu_seconds / gpus
            name = f"{gpus} GPU{'s' * (gpus > 1)}, storage of {rate:g} GB/s"
            until = (
                "" if options.gpu_seconds else f", if a GPU takes less than {gpus * max(parts.values()):.2f} s a movie"
            )
            print(row(name, parts, options.movies)[:-2] + f"{until} |")


if __name__ == "__main__":
    main()
