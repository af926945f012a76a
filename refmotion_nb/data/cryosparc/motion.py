"""What CryoSPARC's motion correction left behind: rigid and spline trajectories, and how its frame lies on the movie.

CryoSPARC's trajectories are displacements of the specimen in movie pixels, positive along its own axes: x with columns,
y with the rows of a TIFF as they are stored in the file. RELION and MotionCor read TIFF rows in reverse. Source: the
importer of jianglab/relion (RELION's shift is minus x, plus y), validated there with Bayesian polishing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refmotion_nb.data.files import load_array
from refmotion_nb.data.schema import Gain, InputError
from refmotion_nb.data.spline_motion import mirrored

TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Orientation:
    """How the movie's rows are read, and whether CryoSPARC's y then runs against them."""

    rows_as_stored: bool
    y_reversed: bool


ORIENTATIONS: Mapping[str, Orientation] = {
    "cryosparc": Orientation(True, False),  # motion-corrected by CryoSPARC: all is in the frame of the stored rows
    "relion": Orientation(False, True),  # particle images have RELION's rows, while locations and motion have not
    "imported": Orientation(False, False),  # micrographs made by a program that reverses TIFF rows, then imported
}


def read_rigid(path: Path, first: int, last: int, n_in_movie: int) -> np.ndarray:
    """Read whole-frame displacements (frame, 2) px of the frames from ``first`` to before ``last``.

    Raises
    ------
    InputError
        The file is missing, no array of x and y per frame, not finite, or of another number of frames.
    """
    array = _load(path)
    array = array.reshape(-1, 2) if array.shape[-1:] == (2,) and array.ndim in (2, 3) else array
    if array.ndim != 2:
        raise InputError(f"{path} has shape {array.shape}, not (1, frames, 2); run motion correction again")
    n = last - first
    if len(array) not in (n, n_in_movie):
        raise InputError(f"{path} has {len(array)} frames, but frames {first + 1} to {last} of {n_in_movie} were "
                         "corrected; run motion correction again")  # fmt: skip
    return array if len(array) == n else array[first:last]


def read_spline(path: Path) -> np.ndarray:
    """Read spline coefficients (2, KZ, KY, KX) px.

    Raises
    ------
    InputError
        The file is missing, of another shape, or not finite.
    """
    array = _load(path)
    if array.ndim != 4 or array.shape[0] != 2 or 0 in array.shape:
        raise InputError(f"{path} has shape {array.shape}, not (2, KZ, KY, KX); run Patch Motion Correction again")
    return array


def in_frame(
    rigid: np.ndarray, spline: np.ndarray | None, orientation: Orientation
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn CryoSPARC's motion into the frame of the movie as read: displacements (frame, 2) px, and the spline."""
    if not orientation.y_reversed:
        return rigid, spline
    return rigid * np.array([1.0, -1.0]), None if spline is None else mirrored(spline)


def oriented_gain(
    path: Path, flip_x: bool, flip_y: bool, rotate_num: int, movie: Path, orientation: Orientation
) -> Gain:
    """Turn CryoSPARC's gain settings into ours.

    CryoSPARC's are taken as: flipped, then turned counter-clockwise (first row on top) by ``rotate_num`` quarters,
    then laid on the rows as stored; neither the order nor the sense of the rotation is documented publicly.
    """
    reversed_rows = not orientation.rows_as_stored and movie.suffix.lower() in TIFF
    flip_y ^= not orientation.rows_as_stored and path.suffix.lower() in TIFF  # the loader reverses this one by itself
    turns = -rotate_num % 4
    if turns % 2:
        flip_x, flip_y = flip_y, flip_x
    return Gain(path, flip_x, flip_y ^ reversed_rows, turns, rows_as_stored=orientation.rows_as_stored)


def _load(path: Path) -> np.ndarray:
    array = load_array(path, "give root, CryoSPARC's project folder, or run motion correction again")
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds values that are not numbers; run motion correction again")
    return array.astype(float)
