"""A simulated project in which one movie is shorter than the others."""

import shutil
from pathlib import Path

import tifffile
from relion_project import edit


def shorten(project: Path, name: str, n_frames: int) -> None:
    """Leave the first frames of a movie only, in the file and in its motion STAR."""
    movie = project / f"Movies/{name}.tif"
    tifffile.imwrite(movie, tifffile.imread(movie)[:n_frames])
    motion = project / f"MotionCorr/Movies/{name}.star"
    edit(motion, "general", lambda general: general.update(rlnImageSizeZ=n_frames))
    edit(motion, "global_shift", lambda table: table.iloc[:n_frames])


def with_two_frame_counts(folder: Path, project: Path, name: str = "mic0001", n_frames: int = 6) -> Path:
    """Copy a simulated folder and shorten one of its movies."""
    shutil.copytree(folder, project)
    shorten(project, name, n_frames)
    return project
