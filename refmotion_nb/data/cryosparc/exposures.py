"""CryoSPARC's exposures as movies: files, gain, dose, rigid and spline motion, background."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refmotion_nb.data.cryosparc.csfile import names, text
from refmotion_nb.data.cryosparc.files import Entry, first_file, locate, read_rows, without_uid
from refmotion_nb.data.cryosparc.motion import Orientation, in_frame, oriented_gain, read_rigid, read_spline
from refmotion_nb.data.relion.micrographs import MovieSet, Options, short_names, usable_movies
from refmotion_nb.data.schema import Background, Gain, InputError, Movie

WANTED = ("movie_blob/path", "movie_blob/shape", "movie_blob/psize_A", "rigid_motion/path", "rigid_motion/psize_A")
ALSO = ("mscope_params/accel_kv", "mscope_params/total_dose_e_per_A2", "gain_ref_blob/path", "spline_motion/path",
        "background_blob/path")  # fmt: skip
DEFECT_MAPS = (".mrc", ".tif", ".tiff")
_REMEDY = "give the exposures of Patch Motion Correction, with their passthrough file"
_SAME = 1e-2  # relative; pixel sizes that differ by more belong to other movies


def read_exposures(entries: Sequence[Entry], problems: list[str]) -> list[tuple[Path, np.ndarray]]:
    """Read exposure tables with what their passthrough files add; what is wrong with them goes to ``problems``.

    An exposure that an earlier table lists is left out, if its motion is the same.
    """
    found: list[tuple[Path, np.ndarray]] = []
    motion: dict[int, tuple[str, int]] = {}  # by uid: the file of whole-frame motion, and the entry that says so
    for number, entry in enumerate(entries):
        path = first_file(entry)
        try:
            rows = read_rows(entry, (*WANTED, *ALSO))
        except InputError as error:
            problems.append(str(error))
            continue
        if missing := [name for name in WANTED if name not in names(rows)]:
            problems.append(f"{path} lacks {', '.join(missing)}; {_REMEDY}")
        elif not len(rows):
            problems.append(f"{path} lists no exposures; give a selection that is not empty")
        else:
            files = [
                str(path.parent / name[1:]) if name.startswith(">") else name
                for name in text(rows, "rigid_motion/path")
            ]
            known = [motion.setdefault(int(uid), (file, number)) for uid, file in zip(rows["uid"], files)]
            other = next((i for i, file in enumerate(files) if known[i][0] != file), None)
            if other is not None:
                problems.append(
                    f"{path} and {first_file(entries[known[other][1]])} list uid {rows['uid'][other]} with different "
                    "motion; give each movie once, with the motion of the micrographs that particles are from"
                )
            elif (new := np.array([one[1] == number for one in known])).any():
                found.append((path, rows[new]))
    return found


def read_movies(
    tables: Sequence[tuple[Path, np.ndarray]],
    wanted: Collection[str],
    root: Path,
    options: Options,
    orientation: Orientation,
    micrograph_shape: Mapping[str, tuple[int, int]],
    voltage_kV: float = 300.0,
) -> MovieSet:
    """Turn exposures into movies and check them; ``wanted`` are the uids of micrographs that particles name.

    ``micrograph_shape`` is height and width (px) of these micrographs, by uid: they show what the movies show. The
    voltage is used where the exposures do not tell it.
    """
    rows = [(path, row) for path, table in tables for row in _each(table)]
    uids = [str(row["uid"]) for _, row in rows]
    shorts = exposure_names([row["movie_blob/path"] for _, row in rows])
    read: dict[int, Movie] = {}
    failed: dict[int, tuple[Path, str]] = {}
    for i, (path, row) in enumerate(rows):
        try:
            shape = micrograph_shape.get(uids[i])
            read[i] = _movie(row, shorts[i], path, root, options, orientation, shape, voltage_kV)
        except InputError as error:
            failed[i] = Path(row["movie_blob/path"]), str(error)
    wanted = set(wanted)
    listed_as = {uid: i for i, uid in enumerate(uids) if uid in wanted}
    source = " and ".join(str(path) for path, _ in tables)
    return usable_movies(read, failed, shorts, listed_as, wanted, source, root, options)


def exposure_names(movie_paths: Sequence[str]) -> list[str]:
    """Name exposures uniquely by the paths of their movies, without CryoSPARC's uids."""
    return short_names([str(path.parent / without_uid(path.name)) for path in map(Path, movie_paths)])


def _each(table: np.ndarray) -> list[dict[str, Any]]:
    strings = {name: text(table, name) for name in names(table) if table.dtype[name].kind in "SO"}
    return [{name: strings[name][i] if name in strings else table[name][i] for name in names(table)}
            for i in range(len(table))]  # fmt: skip


def _movie(
    row: dict[str, Any], short: str, table: Path, root: Path, options: Options, orientation: Orientation,
    micrograph_shape: tuple[int, int] | None, voltage_kV: float,
) -> Movie:  # fmt: skip
    if not row["movie_blob/path"]:
        raise InputError(f"{table} names no movie for uid {row['uid']}; import the movies again")
    path = locate(row["movie_blob/path"], root, table.parent)
    n_in_movie, height, width = (int(v) for v in row["movie_blob/shape"])
    pixel = float(row["movie_blob/psize_A"])
    if n_in_movie < 1 or not 0 < pixel < math.inf:
        raise InputError(f"{path}: {table} has no frame count or pixel size for it; import the movies again")
    first, last = int(row.get("rigid_motion/frame_start", 0)), int(row.get("rigid_motion/frame_end", 0)) or n_in_movie
    if not 0 <= first < last <= n_in_movie:
        raise InputError(f"{path}: frames {first + 1} to {last} were corrected, but it has {n_in_movie}; "
                         "run motion correction again")  # fmt: skip
    rigid, spline = in_frame(*_motion(row, table, root, first, last, n_in_movie, pixel), orientation)
    upsampling, grouping = _eer(path, n_in_movie, height)
    binning = _binning(path, (height, width), micrograph_shape)
    background, defects = (
        _optional(row, name, table, root) for name in ("background_blob/path", "mscope_params/defect_path")
    )
    if background is not None and not background.is_file():
        raise InputError(f"{background}, the background of a movie, was not found; give root, or correct motion again")
    return Movie(
        micrograph=short, path=path.absolute(), n_frames=last - first, height=height, width=width, pixel_size_A=pixel,
        dose_per_frame_e_A2=_dose(row, path, table, n_in_movie, options),
        pre_exposure_e_A2=options.pre_exposure_e_A2 or 0.0,
        voltage_kV=_known(row, "mscope_params/accel_kv") or _known(row, "ctf/accel_kv") or voltage_kV,
        binning=binning, first_frame=first, gain=_gain(row, path, table, root, options, orientation),
        defects=defects if defects is not None and defects.suffix.lower() in DEFECT_MAPS else None,
        eer_upsampling=upsampling, eer_grouping=grouping, global_shift=-rigid, spline_motion=spline,
        rows_as_stored=orientation.rows_as_stored,
        background=None if background is None else Background(background, orientation.y_reversed),
    )  # fmt: skip


def _binning(path: Path, movie: tuple[int, int], micrograph: tuple[int, int] | None) -> float:
    """Micrograph pixel over movie pixel."""
    if micrograph is None or min(micrograph) < 1:
        return 1.0
    by_height, by_width = (m / n for m, n in zip(movie, micrograph))
    if not math.isclose(by_height, by_width, rel_tol=_SAME):
        raise InputError(f"{path} has frames of {movie[1]} × {movie[0]} px, its particles were located on a micrograph of "
                         f"{micrograph[1]} × {micrograph[0]}, of another shape; give the exposures they are from")  # fmt: skip
    return by_height


def _motion(
    row: dict[str, Any], table: Path, root: Path, first: int, last: int, n_in_movie: int, pixel: float
) -> tuple[np.ndarray, np.ndarray | None]:
    if not row["rigid_motion/path"]:
        raise InputError(f"{row['movie_blob/path']} has no rigid motion in {table}; {_REMEDY}")
    for kind in ("rigid_motion", "spline_motion"):
        other = _known(row, f"{kind}/psize_A")
        if other and not math.isclose(other, pixel, rel_tol=_SAME):
            raise InputError(f"{row['movie_blob/path']}: its {kind} is in pixels of {other:g} Å, the movie has {pixel:g}; "
                             "use the motion correction of this very movie")  # fmt: skip
    rigid = read_rigid(locate(row["rigid_motion/path"], root, table.parent), first, last, n_in_movie)
    spline = _optional(row, "spline_motion/path", table, root)
    return rigid, None if spline is None else read_spline(spline)


def _dose(row: dict[str, Any], path: Path, table: Path, n_in_movie: int, options: Options) -> float:
    if options.dose_per_frame_e_A2 is not None:
        return options.dose_per_frame_e_A2
    total = _known(row, "mscope_params/total_dose_e_per_A2")
    if not total:
        raise InputError(f"{path} has no total dose in {table}; give dose_per_frame_e_A2 (e/Å² and frame)")
    return total / n_in_movie


def _gain(
    row: dict[str, Any], movie: Path, table: Path, root: Path, options: Options, orientation: Orientation
) -> Gain | None:
    if options.gain is not None:
        return replace(options.gain, rows_as_stored=orientation.rows_as_stored)
    path = _optional(row, "gain_ref_blob/path", table, root)
    if path is None or int(row.get("movie_blob/is_gain_corrected", 0)):
        return None
    flip_x, flip_y = (bool(row.get(f"gain_ref_blob/flip_{axis}", 0)) for axis in "xy")
    return oriented_gain(path, flip_x, flip_y, int(row.get("gain_ref_blob/rotate_num", 0)), movie, orientation)


def _eer(path: Path, n_frames: int, height: int) -> tuple[int, int]:
    """Upsampling and raw frames per fraction of an EER movie, from its size; 1 and 1 for others."""
    from refmotion_nb.data.movies.eer import eer_info, eer_shape, is_eer

    if path.suffix.lower() != ".eer" or not path.is_file() or not is_eer(path):
        return 1, 1
    info = eer_info(path)
    fits = [u for u in (1, 2, 4) if eer_shape(info, u, path)[0] == height]
    if not fits or info.n_frames < n_frames:
        raise InputError(f"{path} has {info.n_frames} raw frames; it cannot be {n_frames} frames of {height} rows; "
                         "check that this is the movie that was imported")  # fmt: skip
    return fits[0], info.n_frames // n_frames


def _known(row: dict[str, Any], name: str) -> float | None:
    value = float(row.get(name, 0.0))
    return value if value > 0 else None


def _optional(row: dict[str, Any], name: str, table: Path, root: Path) -> Path | None:
    return locate(row[name], root, table.parent).absolute() if row.get(name) else None
