"""Validation against `relion_reconstruct` and `relion_postprocess` on the same particles: curves, B-factors, time.

    python benchmarks/validation.py DATASET [--symmetry O] [--combinations rigid,both] [--threads 2]

DATASET is a folder laid out as by `refmotion simulate`. Runs the job into a temporary folder, writes the particles of each
combination named, lets RELION reconstruct both half sets (at the same time, one process each) and compare them, and
prints the largest difference of the masked FSC up to its crossing of 0.143, the Guinier B-factors over the same range,
and seconds: ours of the whole `Validation.run` with all four combinations and with one, movies read and trajectories
found included, kernels compiled before. Processor seconds tell where the machine was shared.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from common import opened

import refmotion_nb as rm
from refmotion_nb.data.maps import write_stack
from refmotion_nb.data.store import ResultStore
from refmotion_nb.numerics.backend import one_blas_thread
from refmotion_nb.stages.dose_weights import weights_for
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.micrograph import particle_images
from refmotion_nb.stages.search import prior_from_attrs
from refmotion_nb.stages.validation import COMBINATIONS, Combination

CACHE_BYTES = 8e9


class Clock:
    """Wall and processor seconds of a block, children included."""

    def __enter__(self) -> Clock:
        self._start, self._before = time.perf_counter(), os.times()
        return self

    def __exit__(self, *_: object) -> None:
        now = os.times()
        self.wall = time.perf_counter() - self._start
        self.cpu = sum(now[:4]) - sum(self._before[:4])

    def __str__(self) -> str:
        return f"{self.wall:7.1f} s ({self.cpu:.1f} s of processor time)"


def write_combination(
    session: rm.Session, stage: rm.Validation, combination: Combination, search: xr.Dataset, dose: xr.Dataset, job: Path
) -> Path:
    """Write the particles of a combination beside those of the job; return their STAR file."""
    folder = job / combination.file_name
    prior = prior_from_attrs(search.attrs)
    for name, m in session.walk(list(session), stage):
        if m is None:
            raise SystemExit(session.failed[name])
        tracks = session.track(m, stage, prior)
        moved = tracks.displacement_A if combination.corrected else m.placement.initial_A
        weight = weights_for(m, dose if combination.empirical else None)
        images = particle_images(m, moved / m.movie.pixel_size_A, weight, m.spectra.box, session.threads)
        write_stack(folder / f"{name}.mrcs", images, m.movie.pixel_size_A)
    table = (job / "particles.star").read_text()
    path = job / f"{combination.file_name}.star"
    path.write_text(table.replace(f"{job}/Particles/", f"{folder}/"))
    return path


def relion(particles: Path, out: Path, mask: str | Path | None, symmetry: str, highest_A: float) -> tuple[Path, Clock]:
    """Reconstruct both half sets at once, post-process; return RELION's table and the time it took."""
    out.mkdir()
    halves = [out / f"half{h}.mrc" for h in (1, 2)]
    with Clock() as clock, open(out / "log", "w") as log:
        running = [
            subprocess.Popen(["relion_reconstruct", "--i", str(particles), "--o", str(half), "--ctf", "--sym", symmetry,
                              "--pad", "2", "--subset", str(h)], stdout=log, stderr=log)
            for h, half in enumerate(halves, 1)
        ]  # fmt: skip
        if any(process.wait() for process in running):
            raise SystemExit(f"relion_reconstruct failed; see {out / 'log'}")
        # its last step, a PDF, needs ghostscript and may fail; the table is written before
        subprocess.run(["relion_postprocess", "--i", str(halves[0]), "--i2", str(halves[1]), "--mask", str(mask),
                        "--o", str(out / "post"), "--auto_bfac", "--autob_highres", f"{highest_A:.6f}"],
                       stdout=log, stderr=log)  # fmt: skip
    return out / "post.star", clock


def table(path: Path, block: str) -> list[list[str]]:
    """Return the rows of a block of RELION's post-processing table."""
    text = path.read_text().split(f"data_{block}\n")[1].split("data_")[0]
    return [line.split() for line in text.splitlines() if line.strip() and line[0] not in "#l"]


def compare(found: xr.Dataset, star: Path) -> str:
    """Return in words how our curve of a combination differs from RELION's."""
    theirs = np.array([float(row[6]) for row in table(star, "fsc") if row[0][0] != "_"])
    ours = found["fsc_masked"].values
    crossing = int(np.flatnonzero(theirs < 0.143)[0])
    difference = np.abs(ours - theirs)[1 : crossing + 1]
    b_factor = next(float(row[1]) for row in table(star, "general") if row[0] == "_rlnBfactorUsedForSharpening")
    return (
        f"max |dFSC| {difference.max():.4f} at shell {difference.argmax() + 1} of {crossing} (rms "
        f"{np.sqrt((difference**2).mean()):.4f}); B-factor {float(found['b_factor']):.1f} Å², RELION {-b_factor:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--symmetry", default="O")
    parser.add_argument("--combinations", default="rigid,both", help="to compare with RELION")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    root = options.dataset.absolute()
    work = Path(tempfile.mkdtemp(prefix="validation_"))
    data = opened(root)
    settings = {"symmetry": options.symmetry, "threads": options.threads, "cache_size_GB": f"{CACHE_BYTES / 1e9:g}"}
    job = Job(data, work / "job", settings)
    stage = rm.Validation(symmetry=options.symmetry)
    named = [c for c in COMBINATIONS if c.file_name in options.combinations.split(",")]
    with one_blas_thread():
        job.run("validate")
        found, store = job.validation, ResultStore(job.out / "results.zarr")
        search, dose = store.read("search"), store.read("dose_weights")
        assert found is not None and search is not None and dose is not None
        ours = {}
        for combinations in (COMBINATIONS, COMBINATIONS[-1:]):
            session = rm.Session(data, options.threads, CACHE_BYTES)
            with Clock() as ours[len(combinations)]:
                stage.run(session, search, dose, combinations=combinations)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(
                f"ours, {len(combinations)} combination(s): {ours[len(combinations)]}, peak {peak:.2f} GB", flush=True
            )
        theirs = []
        for c in named:
            particles = write_combination(session, stage, c, search, dose, job.out)
            mine = found.isel(reference=0).sel(combination=c.name)
            crossing = mine["frequency"].values[np.flatnonzero(mine["fsc_corrected"].values < 0.143)[0] - 1]
            star, clock = relion(
                particles, work / c.file_name, data.references[0].mask, options.symmetry, 1 / crossing - 1e-4
            )
            theirs.append(clock)
            print(f"{c.name}: {compare(mine, star)}\n  RELION: {clock}", flush=True)
    for count, clock in ours.items():
        wall, cpu = (count * np.mean([getattr(t, kind) for t in theirs]) for kind in ("wall", "cpu"))
        print(
            f"{count} combination(s): RELION / ours {wall / clock.wall:.1f} (wall, {count} × {wall / count:.1f} s), "
            f"{cpu / clock.cpu:.1f} (processor)"
        )
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
