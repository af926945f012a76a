"""Results as CryoSPARC takes them: particles with their trajectories, and the hyperparameter group of its own job.

Paths in the tables start with ``>``, which CryoSPARC reads as beside the table ("Import Result Group").
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refmotion_nb.data.cryosparc.csfile import columns, names, table, write_cs, write_csg
from refmotion_nb.data.cryosparc.motion import ORIENTATIONS
from refmotion_nb.data.cryosparc.particles import aberrations_A, euler_to_pose
from refmotion_nb.data.files import save_array
from refmotion_nb.data.schema import Dataset, Movie

if TYPE_CHECKING:
    import pandas as pd

RESULTS = ("blob", "ctf", "alignments3D", "location", "motion")
# of the input, and true of the new images: later jobs keep copies and segments of filaments in one half set by them. Shifts
# found in 2D are not, once particles are recentred
CARRIED = ("sym_expand", "filament", "pick_stats", "ml_properties")
_UNKNOWN = ("error", "error_min", "resid_pow", "slice_pow", "image_pow", "cross_cor", "alpha_min", "weight", "pose_ess",
            "shift_ess")  # fmt: skip


def write_trajectories(out: Path, movie: Movie, displacement_A: np.ndarray, orientation: str) -> None:
    """Write displacements (particle, frame, 2) Å to ``Motion/<micrograph>_traj.npy`` in ``out``, in pixels.

    ``orientation`` is that of the dataset.
    """
    shift = displacement_A / movie.pixel_size_A  # movie px
    if _against(orientation):
        shift = shift * np.array([1.0, -1.0])
    save_array(trajectory_file(out, movie.micrograph), shift.astype(np.float32))


def trajectory_file(out: Path, micrograph: str) -> Path:
    """Return where the trajectories of a micrograph's particles are."""
    return out / "Motion" / f"{micrograph}_traj.npy"


def write_particle_group(path: Path, data: Dataset, number: int, written: pd.DataFrame) -> None:
    """Write particles of reference ``number`` to ``path`` (.cs), and the group (.csg) beside it.

    ``written`` has a row for each, in the order of the input: ``row`` of the input, ``micrograph``, ``index`` in its stack
    ``Particles/<micrograph>.mrcs`` and its trajectories, ``x_px``, ``y_px``, ``origin_x_A``, ``origin_y_A``, ``box`` and
    ``pixel_size_A``.
    """
    rows = _rows(data, number, written)
    write_cs(path, rows)
    results = [*RESULTS, *(name for name in CARRIED if any(one.startswith(f"{name}/") for one in names(rows)))]
    write_csg(path.with_suffix(".csg"), f"particles_{number}", "particle", "Motion-corrected particles",
              {name: (path.name, f"particle.{name}", len(rows)) for name in results}, datetime.now())  # fmt: skip


def _against(orientation: str) -> bool:
    """Return whether y of locations and motion runs against the rows of the movies."""
    return bool(orientation) and ORIENTATIONS[orientation].y_reversed


def _rows(data: Dataset, number: int, written: pd.DataFrame) -> np.ndarray:
    movies = {movie.micrograph: movie for movie in data.movies}
    given = _given(data, number, written["row"].to_numpy(), movies)
    names_of = written["micrograph"].tolist()
    mine = [movies[name] for name in names_of]
    n, index = len(mine), written["index"].to_numpy(np.uint32)
    shape = np.array([[round(m.height / m.binning), round(m.width / m.binning)] for m in mine], np.uint32)
    frac = written[["x_px", "y_px"]].to_numpy() / shape[:, ::-1]
    psize = written["pixel_size_A"].to_numpy(float)  # of the new images: converters count shifts in pixels of these
    shift = written[["origin_x_A", "origin_y_A"]].to_numpy() + given["ctf/shift_A"].astype(float)
    if "alignments3D/localshift" in given:
        finer = given["alignments3D/psize_A"].astype(float) / psize
        given["alignments3D/localshift"] = (given["alignments3D/localshift"] * finer[:, None]).astype(np.float32)
    given |= {
        "blob/path": [f">Particles/{name}.mrcs" for name in names_of],
        "blob/idx": index,
        "blob/shape": np.repeat(written["box"].to_numpy(np.uint32)[:, None], 2, axis=1),
        "blob/psize_A": psize.astype(np.float32),
        "blob/sign": np.ones(n, np.float32),  # protein is bright
        "blob/import_sig": np.zeros(n, np.uint64),
        "alignments3D/shift": (shift / psize[:, None]).astype(np.float32),
        "alignments3D/psize_A": psize.astype(np.float32),
        "location/micrograph_shape": shape,
        "location/micrograph_psize_A": np.array([m.pixel_size_A * m.binning for m in mine], np.float32),
        "location/center_x_frac": frac[:, 0].astype(np.float32),
        "location/center_y_frac": (1 - frac[:, 1] if _against(data.orientation) else frac[:, 1]).astype(np.float32),
        "motion/type": ["particle"] * n,
        "motion/path": [f">Motion/{name}_traj.npy" for name in names_of],
        "motion/idx": index,
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
    # results of several runs are put together by uid, and names of micrographs come again in other sessions
    micrograph = {name: stable_uid("micrograph", str(movies[name].path.resolve())) for name in dict.fromkeys(names_of)}
    place = np.concatenate([p[what].values for what in ("coordinate", "origin", "euler")], axis=1).tolist()
    uid = [
        stable_uid("particle", number, micrograph[name], *which) for name, *which in zip(names_of, row.tolist(), place)
    ]

    def f4(values: Any) -> np.ndarray:
        return np.asarray(values, np.float32)

    return {
        "uid": np.array(uid, np.uint64),
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
        **{f"alignments3D/{name}": np.ones(n, np.float32) for name in ("class_posterior", "class_ess")},
        **{f"alignments3D/{name}": np.zeros(n, np.float32) for name in _UNKNOWN},
        "location/micrograph_uid": np.array([micrograph[name] for name in names_of], np.uint64),
        "location/exp_group_id": group.astype(np.uint32) + np.uint32(1),
        "location/micrograph_path": [str(movies[name].path) for name in names_of],
        "location/min_dist_A": np.zeros(n, np.float32),
    }


def stable_uid(*parts: Any) -> int:
    """Return a number that is the same whenever the same thing is written."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") | 1
