"""Results as CryoSPARC takes them: particles with their trajectories, and the hyperparameter group of its own job.

Paths in the tables start with ``>``, which CryoSPARC reads as beside the table ("Import Result Group").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.cryosparc.csfile import columns, table, write_cs, write_csg
from refmotion_nb.data.cryosparc.motion import ORIENTATIONS
from refmotion_nb.data.cryosparc.particles import aberrations_A, euler_to_pose
from refmotion_nb.data.files import atomic
from refmotion_nb.data.schema import Dataset, InputError, Movie

RESULTS = ("blob", "ctf", "alignments3D", "location", "motion")


def write_particle_groups(out: str | Path, data: Dataset, tracks: Iterable[tuple[str, xr.Dataset]]) -> list[Path]:
    """Write ``particles.cs`` and ``.csg`` (one pair per reference) beside the stacks in ``out``.

    ``tracks`` are micrographs with their groups of that name in the result store, taken one at a time: what was written
    into ``Particles/<micrograph>.mrcs``, in that order. Trajectories go to ``Motion/<micrograph>_traj.npy``.

    Raises
    ------
    InputError
        There is nothing to write.
    """
    out = Path(out)
    movies = {movie.micrograph: movie for movie in data.movies}
    against = bool(data.orientation) and ORIENTATIONS[data.orientation].y_reversed  # y of its locations and motion
    parts: dict[int, list[dict[str, np.ndarray]]] = {}
    for name, its_tracks in tracks:
        for number, values in _micrograph(out, movies[name], its_tracks, against):
            parts.setdefault(number, []).append(values)
    if not parts:
        raise InputError(f"{out}: no particles to write")
    written = []
    for number, pieces in sorted(parts.items()):
        joined = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
        order = np.argsort(joined["row"], kind="stable")
        values = {key: column[order] for key, column in joined.items()}
        suffix = f"_{number + 1}" if len(data.references) > 1 else ""
        rows = _rows(data, number, values, movies, against)
        path = out / f"particles{suffix}.cs"
        write_cs(path, rows)
        write_csg(path.with_suffix(".csg"), f"particles_{number}", "particle", "Motion-corrected particles",
                  {name: (path.name, f"particle.{name}", len(rows)) for name in RESULTS}, now())  # fmt: skip
        written.append(path)
    return written


def _micrograph(out: Path, movie: Movie, tracks: xr.Dataset, against: bool) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Save the trajectories of a micrograph; return what its particles need, by reference."""
    shift = tracks["shift"].values / movie.pixel_size_A  # (particle, frame, 2) movie px
    reference = tracks["reference"].values.astype(int)
    if against:
        shift = shift * np.array([1.0, -1.0])
    save_array(out / "Motion" / f"{movie.micrograph}_traj.npy", shift.astype(np.float32))
    found = []
    for number in np.unique(reference):
        mine = np.flatnonzero(reference == number)
        found.append((int(number), {
            "row": tracks["row"].values[mine], "index": mine.astype(np.uint32),
            "micrograph": np.full(len(mine), movie.micrograph, dtype=object),
            "coordinate_px": tracks["coordinate_px"].values[mine], "origin": tracks["origin"].values[mine],
            "pixel": np.full(len(mine), tracks.attrs["pixel_size_A"]), "box": np.full(len(mine), tracks.attrs["box"]),
        }))  # fmt: skip
    return found


def _rows(
    data: Dataset, number: int, values: dict[str, np.ndarray], movies: Mapping[str, Movie], against: bool
) -> np.ndarray:
    given = _given(data, number, values["row"], movies)
    names_of = [str(name) for name in values["micrograph"]]
    mine = [movies[name] for name in names_of]
    n = len(mine)
    shape = np.array([[round(m.height / m.binning), round(m.width / m.binning)] for m in mine], np.uint32)
    frac = values["coordinate_px"] / shape[:, ::-1]
    psize = given["alignments3D/psize_A"].astype(float)
    shift = values["origin"] + given["ctf/shift_A"].astype(float)
    given |= {
        "blob/path": [f">Particles/{name}.mrcs" for name in names_of],
        "blob/idx": values["index"],
        "blob/shape": np.repeat(values["box"][:, None], 2, axis=1).astype(np.uint32),
        "blob/psize_A": values["pixel"].astype(np.float32),
        "blob/sign": np.ones(n, np.float32),  # protein is bright
        "blob/import_sig": np.zeros(n, np.uint64),
        "alignments3D/shift": (shift / psize[:, None]).astype(np.float32),
        "location/micrograph_shape": shape,
        "location/micrograph_psize_A": np.array([m.pixel_size_A * m.binning for m in mine], np.float32),
        "location/center_x_frac": frac[:, 0].astype(np.float32),
        "location/center_y_frac": (1 - frac[:, 1] if against else frac[:, 1]).astype(np.float32),
        "motion/type": ["local"] * n,
        "motion/path": [f">Motion/{name}_traj.npy" for name in names_of],
        "motion/idx": values["index"],
        "motion/frame_start": np.array([m.first_frame for m in mine], np.uint32),
        "motion/frame_end": np.array([m.first_frame + m.n_frames for m in mine], np.uint32),
        "motion/zero_shift_frame": np.array([m.first_frame for m in mine], np.uint32),
        "motion/psize_A": np.array([m.pixel_size_A for m in mine], np.float32),
    }
    return table(given)


def _given(data: Dataset, number: int, row: np.ndarray, movies: Mapping[str, Movie]) -> dict[str, Any]:
    """Columns of the input particles: CryoSPARC's own as they are, or made from what the data set holds."""
    if number < len(data.cs_rows):
        found: dict[str, Any] = columns(data.cs_rows[number][row])
        return {"ctf/shift_A": np.zeros((len(row), 2), np.float32)} | found
    particles = data.particles.isel(particle=np.flatnonzero(data.particles["reference"].values == number))
    at = np.argsort(particles["row"].values)[np.searchsorted(np.sort(particles["row"].values), row)]
    p = particles.isel(particle=at)
    n, group = len(row), p["optics"].values
    optics = [data.optics[int(g)] for g in group]
    odd_even = {g: aberrations_A(data.optics[int(g)]) for g in np.unique(group)}
    names_of = [str(name) for name in p["micrograph"].values]

    def f4(values: Any) -> np.ndarray:
        return np.asarray(values, np.float32)

    return {
        "uid": np.array([stable_uid("particle", number, name, int(r)) for name, r in zip(names_of, row)], np.uint64),
        "ctf/type": ["imported"] * n,
        "ctf/exp_group_id": group.astype(np.uint32) + np.uint32(1),
        "ctf/accel_kv": f4([o.voltage_kV for o in optics]),
        "ctf/cs_mm": f4([o.spherical_aberration_mm for o in optics]),
        "ctf/amp_contrast": f4([o.amplitude_contrast for o in optics]),
        "ctf/df1_A": f4(p["defocus_u"].values),
        "ctf/df2_A": f4(p["defocus_v"].values),
        "ctf/df_angle_rad": f4(np.deg2rad(p["defocus_angle"].values)),
        "ctf/phase_shift_rad": f4(np.deg2rad(p["phase_shift"].values)),
        "ctf/scale": f4(p["ctf_scale"].values),
        "ctf/scale_const": np.ones(n, np.float32),
        "ctf/shift_A": np.zeros((n, 2), np.float32),
        "ctf/tilt_A": f4([odd_even[g][0] for g in group]),
        "ctf/trefoil_A": f4([odd_even[g][1] for g in group]),
        "ctf/tetra_A": f4([odd_even[g][2] for g in group]),
        "ctf/anisomag": f4([np.ravel(o.magnification) - [1, 0, 0, 1] for o in optics]),
        "ctf/bfactor": f4(p["ctf_b_factor"].values),
        "alignments3D/split": (p["half"].values - 1).astype(np.uint32),
        "alignments3D/shift": np.zeros((n, 2), np.float32),
        "alignments3D/pose": f4(euler_to_pose(p["euler"].values)),
        "alignments3D/psize_A": f4([o.pixel_size_A for o in optics]),
        "alignments3D/alpha": f4(p["scale"].values),
        "alignments3D/class": np.zeros(n, np.uint32),
        "location/micrograph_uid": np.array([stable_uid("micrograph", name) for name in names_of], np.uint64),
        "location/exp_group_id": group.astype(np.uint32) + np.uint32(1),
        "location/micrograph_path": [str(movies[name].path) for name in names_of],
    }


def stable_uid(*parts: Any) -> int:
    """Return a number that is the same whenever the same thing is written."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") | 1


def now() -> str:
    """Return the time as CryoSPARC writes it."""
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")


def save_array(path: Path, array: np.ndarray) -> None:
    """Save an array as .npy, atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
