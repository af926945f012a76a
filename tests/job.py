"""The command line called in this process, and what it leaves behind."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from refmotion_nb.cli import main
from refmotion_nb.data.relion.results import read_tracks
from refmotion_nb.data.store import ResultStore
from refmotion_nb.data.synthetic.simulate import trajectory_error_A

MICROGRAPHS = ("mic0000", "mic0001")


def inputs(folder: Path) -> list[str]:
    """Return the options that name the files of a simulated folder."""
    ref = folder / "Ref"
    return [
        "--particles", f"{folder}/Extract/particles.star", "--root", f"{folder}",
        "--micrographs", f"{folder}/MotionCorr/corrected_micrographs.star",
        "--half1", f"{ref}/half1.mrc", "--half2", f"{ref}/half2.mrc", "--mask", f"{ref}/mask.mrc",
    ]  # fmt: skip


GIVEN = ["--spatial-strength", "1.5", "--correlation-distance", "3000", "--acceleration-strength", "2"]  # no search


def run(folder: Path, out: Path, *more: str) -> int:
    return main(["run", *inputs(folder), "--out", str(out), "--threads", "2", *more])


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "project"))


def tracks(out: Path) -> dict[str, np.ndarray]:
    return {
        path.name.removesuffix("_tracks.star"): read_tracks(path) for path in sorted((out / "Tracks").glob("*.star"))
    }


def error_A(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Return the trajectory error over all micrographs found."""
    errors = [trajectory_error_A(track, truth[f"{name}_total"], truth["dose_mid"]) for name, track in found.items()]
    return float(np.sqrt(np.mean(np.square(errors))))


def store(out: Path) -> ResultStore:
    return ResultStore(out / "results.zarr")


def said(capsys) -> list[str]:
    """Return what the last command had to say about problems: the lines that start with its name."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line.removeprefix("refmotion: ") for line in lines if line.startswith("refmotion: ")]


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Hold a folder as another process does."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


def left_behind(out: Path) -> list[str]:
    """Return all files in an output folder that hold, or might be taken for, results; the log is none."""
    if not out.exists():
        return []
    return sorted(
        str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and not is_bookkeeping(p.relative_to(out))
    )


def is_bookkeeping(path: Path) -> bool:
    return (
        path.name == "run.log" or path.parts == ("results.zarr", ".zattrs") or path.parts == ("results.zarr", ".zgroup")
    )
