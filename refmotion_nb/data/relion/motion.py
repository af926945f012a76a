"""RELION's motion correction of one movie: its STAR file, its shifts and its local motion model.

RELION's shifts are the correction, in unbinned movie pixels: the specimen has moved by minus that much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refmotion_nb.data.schema import Gain, InputError, Movie
from refmotion_nb.data.spline_motion import spline_displacement
from refmotion_nb.data.star import Block, read_star, table

NOT_OBSERVED = -9999.0  # RELION's mark for a frame without a shift
_FAR_PX = 1e9  # beyond any movie
_AGAIN = "run motion correction again"
_BLOCKS = ("general", "global_shift", "local_motion_model", "hot_pixels")


def read_motion(
    path: str | Path,
    micrograph: str,
    *,
    locate: Callable[[str], Path] = Path,
    dose_per_frame_e_A2: float | None = None,
    pre_exposure_e_A2: float | None = None,
    voltage_kV: float | None = None,
    gain: Gain | None = None,
) -> Movie:
    """Read the motion STAR file that RELION wrote for one micrograph.

    ``locate`` turns a path written in the file into one that can be opened. The dose, the pre-exposure and the gain
    given replace those of the file; the voltage is used where the file has none. Frames before the first one used are
    left out. A frame without a shift takes that of the last one observed before it, else 0, as in RELION; its local motion
    stays as it was there, too (RELION leaves it out, so that particles jump; the model would go on as a cubic).

    Raises
    ------
    InputError
        The file is missing or incomplete, or has no dose rate and none is given.
    """
    try:
        return _movie(read_star(path, _BLOCKS), path, micrograph, locate, dose_per_frame_e_A2, pre_exposure_e_A2,
                      voltage_kV, gain)  # fmt: skip
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole motion STAR file ({error}); {_AGAIN}") from None


def local_motion(coefficients: np.ndarray, xy_fraction: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Evaluate RELION's third-order local motion model: shifts (position, time, 2) px, RELION's sign, 0 at time 0.

    ``coefficients`` (36,): per axis (x, then y) and per term of 1, x, x², y, y², xy those of z, z², z³, with z the
    ``time`` (time,) in frames from the first that was corrected; ``xy_fraction`` (position, 2): position over movie
    size minus one half. Source: RELION's ThirdOrderPolynomialModel.
    """
    (x, y), z = np.asarray(xy_fraction, float).T, np.asarray(time, float)
    space = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=1)  # (position, 6)
    per_axis = np.asarray(coefficients, float).reshape(2, 6, 3)
    return np.einsum("ps,ast,ft->pfa", space, per_axis, np.stack([z, z**2, z**3], axis=1), optimize=True)


def rigid_displacement(movie: Movie) -> np.ndarray:
    """Displacement of the whole specimen in each frame, (frame, 2) Å: minus RELION's global shift; 0 without one."""
    if movie.global_shift is None:
        return np.zeros((movie.n_frames, 2))
    return -np.asarray(movie.global_shift, float) * movie.pixel_size_A


def initial_displacement(movie: Movie, coordinate_A: np.ndarray) -> np.ndarray:
    """Displacement at given positions as motion correction found it, (position, frame, 2) Å: whole-frame plus local.

    ``coordinate_A`` (position, 2) Å from the first pixel. Source: the tracks that RELION's polishing starts from; for
    CryoSPARC's spline see ``spline_displacement``.
    """
    displacement = np.repeat(rigid_displacement(movie)[None], len(coordinate_A), axis=0)
    times = movie.local_times

    def of_frames(local: np.ndarray) -> np.ndarray:
        return local.reshape(-1, *times.shape, 2).mean(axis=2) * movie.pixel_size_A

    if movie.local_motion is not None:
        size = np.array([movie.width, movie.height]) * movie.pixel_size_A
        displacement -= of_frames(
            local_motion(movie.local_motion, np.asarray(coordinate_A) / size - 0.5, times.ravel())
        )
    if movie.spline_motion is not None:
        at, shape = np.asarray(coordinate_A) / movie.pixel_size_A, (movie.height, movie.width)
        seen = movie.motion_frames or movie.n_frames
        displacement += of_frames(spline_displacement(movie.spline_motion, at, seen, shape, times.ravel()))
    return displacement


def _movie(
    blocks: dict[str, Block], path: str | Path, micrograph: str, locate: Callable[[str], Path],
    dose_per_frame_e_A2: float | None, pre_exposure_e_A2: float | None, voltage_kV: float | None, gain: Gain | None,
) -> Movie:  # fmt: skip
    general = _general(blocks, path)
    n_frames, first_frame = (
        _whole(general, path, "rlnImageSizeZ"),
        _whole(general, path, "rlnMicrographStartFrame", 1) - 1,
    )
    if first_frame >= n_frames:
        raise InputError(
            f"{path}: rlnMicrographStartFrame {first_frame + 1} is not one of its {n_frames} frames; {_AGAIN}"
        )
    dose = _dose(general, path, "rlnMicrographDoseRate", "dose_per_frame_e_A2", dose_per_frame_e_A2)
    if not dose:
        raise InputError(f"{path} has no dose rate; give dose_per_frame_e_A2 (e/Å² and frame)")
    gain_name, defects = (str(general.get(f"rlnMicrograph{kind}", "")) for kind in ("GainName", "DefectFile"))
    shift, seen = _global_shift(blocks, path, n_frames)
    seen = np.maximum(seen[first_frame:] - first_frame, 0)
    return Movie(
        micrograph=micrograph,
        path=locate(str(general["rlnMicrographMovieName"])),
        n_frames=n_frames - first_frame,
        height=_whole(general, path, "rlnImageSizeY"),
        width=_whole(general, path, "rlnImageSizeX"),
        pixel_size_A=_above_0(general, path, "rlnMicrographOriginalPixelSize"),
        dose_per_frame_e_A2=dose,
        pre_exposure_e_A2=_dose(general, path, "rlnMicrographPreExposure", "pre_exposure_e_A2", pre_exposure_e_A2),
        voltage_kV=_above_0(general, path, "rlnVoltage", 300.0 if voltage_kV is None else voltage_kV),
        binning=_above_0(general, path, "rlnMicrographBinning", 1.0),
        first_frame=first_frame,
        gain=gain or (Gain(locate(gain_name)) if gain_name else None),
        defects=locate(defects) if defects else None,
        hot_pixels=_hot_pixels(blocks, path),
        # -1 is half of the sensor's raster
        eer_upsampling=-1 if general.get("rlnEERUpsampling") == -1 else _whole(general, path, "rlnEERUpsampling", 1),
        eer_grouping=_whole(general, path, "rlnEERGrouping", 1),
        global_shift=shift[first_frame:],
        motion_frames=int(seen[-1]) + 1,
        motion_time=None if np.array_equal(seen, np.arange(len(seen))) else seen[:, None],
        local_motion=_local_coefficients(blocks, path) if int(general.get("rlnMotionModelVersion", 0)) else None,
    )


def _general(blocks: dict[str, Block], path: str | Path) -> dict[str, Any]:
    general = blocks.get("general", {})
    if isinstance(general, pd.DataFrame):
        general = {} if general.empty else {str(label): value for label, value in general.iloc[0].items()}
    needed = ("rlnImageSizeX", "rlnImageSizeY", "rlnImageSizeZ", "rlnMicrographMovieName",
              "rlnMicrographOriginalPixelSize")  # fmt: skip
    general = {label: value for label, value in general.items() if value != ""}
    if missing := [label for label in needed if label not in general]:
        raise InputError(f"{path} lacks {', '.join(missing)} in data_general; give motion correction's own STAR files")
    return general


def _global_shift(blocks: dict[str, Block], path: str | Path, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shifts (frame, 2), and whose each is (frame,): that of the last frame observed, -1 before the first."""
    rows = table(blocks, "global_shift")
    if rows.empty:
        raise InputError(f"{path} has no data_global_shift; {_AGAIN}")
    number = rows["rlnMicrographFrameNumber"].to_numpy(float)
    if not np.isfinite(number).all():
        raise InputError(f"{path}: a frame in data_global_shift has no number; {_AGAIN}")
    if (again := rows["rlnMicrographFrameNumber"].duplicated()).any():
        raise InputError(f"{path}: frame {number[again][0]:g} is in data_global_shift twice; {_AGAIN}")
    shift = np.full((n_frames, 2), NOT_OBSERVED)
    inside = (number >= 1) & (number <= n_frames)
    given = np.stack([rows[f"rlnMicrographShift{axis}"].to_numpy(float) for axis in "XY"], axis=1)
    shift[number[inside].astype(int) - 1] = given[inside]
    if (bad := np.flatnonzero(~np.isfinite(shift).all(axis=1))).size:
        raise InputError(f"{path}: the shift of frame {bad[0] + 1} in data_global_shift is not a number; {_AGAIN}")
    observed = np.all(shift > NOT_OBSERVED, axis=1)
    last = np.maximum.accumulate(np.where(observed, np.arange(n_frames), -1))
    return np.where(last[:, None] >= 0, shift[last], 0.0), last


def _local_coefficients(blocks: dict[str, Block], path: str | Path) -> np.ndarray:
    rows = table(blocks, "local_motion_model")
    if len(rows) != 36:
        raise InputError(f"{path}: data_local_motion_model has {len(rows)} coefficients, not 36; {_AGAIN}")
    coefficients = np.full(36, np.nan)
    coefficients[rows["rlnMotionModelCoeffsIdx"].to_numpy(int)] = rows["rlnMotionModelCoeff"].to_numpy(float)
    if not np.isfinite(coefficients).all():
        raise InputError(f"{path}: data_local_motion_model holds a coefficient that is not a number; {_AGAIN}")
    return coefficients


def _hot_pixels(blocks: dict[str, Block], path: str | Path) -> np.ndarray:
    rows = table(blocks, "hot_pixels")
    if rows.empty:
        return np.zeros((0, 2), int)
    found = np.stack([rows[f"rlnCoordinate{axis}"].to_numpy(float) for axis in "XY"], axis=1)
    if (bad := np.flatnonzero(~(np.abs(found) < _FAR_PX).all(axis=1))).size:
        raise InputError(f"{path}: row {bad[0] + 1} of data_hot_pixels is no place; {_AGAIN}")
    return found.round().astype(int)


def _dose(general: dict[str, Any], path: str | Path, label: str, name: str, given: float | None) -> float:
    """Take a dose, e/Å²: what the setting of that ``name`` gives, else the file's; 0 where RELION was not told it (or -1)."""
    value = general.get(label, -1) if given is None else given
    if float(value) == -1:
        return 0.0
    if not 0 <= float(value) < math.inf:
        raise InputError(f"{path}: {label} is {value}, not a dose; give {name} (e/Å²)")
    return float(value)


def _above_0(general: dict[str, Any], path: str | Path, label: str, default: float | None = None) -> float:
    """Take a number above 0; where RELION was not told it (it is missing, or -1) the default, if there is one."""
    value = general.get(label)
    if default is not None and (value is None or float(value) == -1):
        return float(default)
    if value is None or not 0 < float(value) < math.inf:
        raise InputError(f"{path}: {label} is {value}; it has to be above 0: correct it, or {_AGAIN}")
    return float(value)


def _whole(general: dict[str, Any], path: str | Path, label: str, default: int | None = None) -> int:
    """Take a whole number from 1 on; where it is missing the default, if there is one."""
    value = float(general[label] if default is None else general.get(label, default))
    if value < 1 or not value.is_integer():
        raise InputError(
            f"{path}: {label} is {general[label]}; it has to be a whole number above 0: correct it, or {_AGAIN}"
        )
    return int(value)
