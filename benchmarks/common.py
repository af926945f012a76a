"""What several benchmarks share: opening a simulated set, timing whole commands, putting errors together."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np

import refmotion_nb as rm
from refmotion_nb.data.relion.results import open_postprocess


def opened(dataset: Path) -> rm.Dataset:
    """Open a folder laid out as by `refmotion simulate`."""
    reference, _ = open_postprocess(dataset / "Ref/postprocess.star", dataset)
    return rm.open_relion(
        dataset / "Extract/particles.star", dataset / "MotionCorr/corrected_micrographs.star", reference, dataset
    )


def timed(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a command in a folder; return seconds on the clock, processor seconds and peak memory in GB."""
    start = time.perf_counter()
    with (folder / "benchmark.log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}; see {folder / 'benchmark.log'}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def rms(errors: list[float]) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))
