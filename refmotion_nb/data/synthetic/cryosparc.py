"""A simulated set as a CryoSPARC project: imported movies, motion correction and a refinement, as that program lays them out.

Conventions are written down here a second time, on purpose: tests open these projects, and the reader must not check itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from refmotion_nb.data.cryosparc.csfile import table as cs_table
from refmotion_nb.data.cryosparc.csfile import write_cs
from refmotion_nb.data.maps import read_map, write_map
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, table
from refmotion_nb.data.synthetic.files import write_mrc

ORIENTATIONS = ("cryosparc", "relion")
KNOTS = (6, 5, 4)  # of splines: frame, y, x
BACKGROUND_BIN = 32
EXPOSURE_GROUP = 4
Save = Callable[[Path, dict[str, Any]], Path]


def save(path: Path, columns: dict[str, Any]) -> Path:
    """Write columns as a ``.cs`` table; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cs(path, cs_table(columns))
    return path


def write_project(
    folder: Path,
    out: Path,
    species: Sequence[tuple[str, str]],
    orientation: str = "cryosparc",
    save: Save = save,
    spline: Mapping[str, np.ndarray] | None = None,
    background: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write the CryoSPARC project that corresponds to a simulated RELION folder; return the arguments of ``open_cryosparc``.

    Movies are linked, not copied: ``J1`` imported them, ``J2`` is their motion correction (of whole frames), ``J5`` and the
    following refined one species each.

    Parameters
    ----------
    species
        Particle table in ``Extract`` and folder of the maps of each.
    orientation
        ``cryosparc``: everything mirrored, as by rows in the order of the file; ``relion``: particle images as RELION's.
    save
        Writes a table.
    spline, background
        Local motion (axis=(x, y), *KNOTS) px and background image by micrograph, in RELION's frame.

    Raises
    ------
    InputError
        The movies are not TIFF, or the orientation is unknown.
    """
    if orientation not in ORIENTATIONS:
        raise InputError(f"orientation {orientation!r}; give {' or '.join(ORIENTATIONS)}")
    micrographs = [
        name for one, _ in species for name in read_star(folder / "Extract" / one)["particles"]["rlnMicrographName"]
    ]
    uids = {name: 10**18 + 7 * i for i, name in enumerate(dict.fromkeys(micrographs))}
    exposures = [_exposure(name, uid, folder, out, spline, background) for name, uid in uids.items()]
    columns = {key: np.array([one[key] for one in exposures]) for key in exposures[0]}
    jobs = [_refinement(folder, out, uids, orientation, f"J{5 + i}", *one, save) for i, one in enumerate(species)]
    return {
        "exposures": save(out / "J2/exposures.cs", columns),
        "particles": [particles for particles, _ in jobs],
        "volumes": [volume for _, volume in jobs],
        "root": out,
    }


def _exposure(
    name: str, uid: int, folder: Path, out: Path,
    spline: Mapping[str, np.ndarray] | None, background: Mapping[str, np.ndarray] | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the files of one exposure; return its row."""
    general, shifts = _motion(folder, name)
    movie = folder / general["rlnMicrographMovieName"]
    if movie.suffix != ".tif":
        raise InputError(f"{movie} is no TIFF movie; simulate with movie_format='tif' for a CryoSPARC project")
    stem, pixel = Path(name).stem, np.float32(general["rlnMicrographOriginalPixelSize"])
    frames, height, width = (int(general[f"rlnImageSize{axis}"]) for axis in "ZYX")
    link = _link(out / "J1/imported" / f"{uid:021d}_{movie.name}", movie)
    _link(out / "J1/imported/gain.mrc", folder / general["rlnMicrographGainName"])
    made = out / "J2/motioncorrected"
    made.mkdir(parents=True, exist_ok=True)
    # the specimen has moved by minus RELION's shift; y runs along the rows as stored, against RELION's
    np.save(made / f"{stem}_rigid_traj.npy", (shifts * [-1, 1])[None])
    knots = np.zeros((2, *KNOTS))
    if spline is not None:
        knots = np.array(spline[stem])[:, :, ::-1] * np.array([1, -1])[:, None, None, None]
    np.save(made / f"{stem}_spline_traj.npy", knots)
    row = {
        "uid": np.uint64(uid),
        "movie_blob/path": f"J1/imported/{link.name}", "movie_blob/shape": np.array([frames, height, width], "u4"),
        "movie_blob/psize_A": pixel, "movie_blob/is_gain_corrected": np.uint32(0),
        "movie_blob/format": "TIFF", "movie_blob/has_defect_file": np.uint32(0), "movie_blob/import_sig": np.uint64(0),
        "gain_ref_blob/path": "J1/imported/gain.mrc", "gain_ref_blob/idx": np.uint32(0),
        "gain_ref_blob/shape": np.array([height, width], "u4"), "gain_ref_blob/flip_x": np.uint32(0),
        "gain_ref_blob/flip_y": np.uint32(1), "gain_ref_blob/rotate_num": np.uint32(0),
        "mscope_params/accel_kv": np.float32(general["rlnVoltage"]), "mscope_params/cs_mm": np.float32(2.7),
        "mscope_params/total_dose_e_per_A2": np.float32(frames * general["rlnMicrographDoseRate"]),
        "mscope_params/exp_group_id": np.uint32(EXPOSURE_GROUP), "mscope_params/defect_path": "",
        **{f"{kind}_motion/{key}": value for kind in ("rigid", "spline") for key, value in {
            "type": kind, "path": f"J2/motioncorrected/{stem}_{kind}_traj.npy", "idx": np.uint32(0),
            "frame_start": np.uint32(0), "frame_end": np.uint32(frames), "zero_shift_frame": np.uint32(0),
            "psize_A": pixel}.items()},
        "micrograph_blob/path": f"J2/motioncorrected/{stem}.mrc", "micrograph_blob/psize_A": pixel,
        "micrograph_blob/shape": np.array([height, width], "u4"),
    }  # fmt: skip
    if background is not None:
        image = background[stem][::-1]  # in the order of the rows
        write_mrc(made / f"{stem}_background.mrc", image, float(pixel) * BACKGROUND_BIN)
        row |= {"background_blob/path": f"J2/motioncorrected/{stem}_background.mrc", "background_blob/idx": np.uint32(0),
                "background_blob/binfactor": np.uint32(BACKGROUND_BIN),
                "background_blob/shape": np.array(image.shape, "u4"), "background_blob/psize_A": pixel}  # fmt: skip
    return row


def _refinement(
    folder: Path, out: Path, uids: Mapping[str, int], orientation: str, job: str, particles: str, maps: str, save: Save
) -> tuple[Path, Path]:
    """Write the particles of a refinement, a passthrough table in another order, and the volume; return the first and last."""
    blocks = read_star(folder / "Extract" / particles)
    rows, optics = table(blocks, "particles"), table(blocks, "optics").iloc[0]
    names, n = rows["rlnMicrographName"].tolist(), len(rows)
    general, _ = _motion(folder, names[0])
    height, width = int(general["rlnImageSizeY"]), int(general["rlnImageSizeX"])
    mirrored = orientation == "cryosparc"
    uid = np.random.default_rng(5).permutation(n).astype(np.uint64) + np.uint64((1 << 62) + 1000 * int(job[1:]))
    path = save(out / job / "particles.cs", {"uid": uid, **_images(rows, optics), **_poses(rows, optics, mirrored)})
    y = rows["rlnCoordinateY"].to_numpy(float)
    passthrough = {
        "uid": uid,
        "location/micrograph_uid": np.array([uids[name] for name in names], np.uint64),
        "location/exp_group_id": np.full(n, EXPOSURE_GROUP, "u4"),
        "location/micrograph_path": np.array([f"J2/motioncorrected/{Path(name).name}" for name in names]),
        "location/micrograph_shape": np.tile(np.array([height, width], "u4"), (n, 1)),
        "location/micrograph_psize_A": np.full(n, general["rlnMicrographOriginalPixelSize"], "f4"),
        "location/center_x_frac": (rows["rlnCoordinateX"] / width).to_numpy("f4"),
        # the pixel of the box centre, of mirrored rows where the images are
        "location/center_y_frac": ((height - 1 - np.floor(y)) / height if mirrored else 1 - y / height).astype("f4"),
    }
    shuffled = np.random.default_rng(6).permutation(n)
    save(out / job / f"{job}_passthrough_particles.cs", {key: value[shuffled] for key, value in passthrough.items()})
    return path, _volume(folder / maps, out, job, mirrored, save)


def _images(rows: pd.DataFrame, optics: pd.Series) -> dict[str, Any]:
    """Return columns of the particle images."""
    n = len(rows)
    return {
        "blob/path": [f"J3/extract/{Path(name).stem}_particles.mrc" for name in rows["rlnMicrographName"]],
        "blob/idx": np.array([int(str(name).split("@")[0]) - 1 for name in rows["rlnImageName"]], "u4"),
        "blob/shape": np.full((n, 2), int(optics["rlnImageSize"]), "u4"),
        "blob/psize_A": np.full(n, optics["rlnImagePixelSize"], "f4"),
        "blob/sign": np.full(n, -1, "f4"),
        "blob/import_sig": np.zeros(n, "u8"),
    }


def _poses(rows: pd.DataFrame, optics: pd.Series, mirrored: bool) -> dict[str, Any]:
    """Return columns of the CTF and of the refinement, mirrored in y or not."""
    n, turned, pixel = len(rows), -1 if mirrored else 1, float(optics["rlnImagePixelSize"])
    euler = rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy(float)
    a = np.stack([_rotation(*angles) for angles in euler])
    if mirrored:
        a = np.diag([1.0, -1, 1]) @ a @ np.diag([1.0, 1, -1])
    shifts = rows[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy(float) * [1, turned]
    return {
        "ctf/type": ["spline"] * n,
        "ctf/exp_group_id": np.full(n, EXPOSURE_GROUP, "u4"),
        "ctf/accel_kv": np.full(n, optics["rlnVoltage"], "f4"),
        "ctf/cs_mm": np.full(n, optics["rlnSphericalAberration"], "f4"),
        "ctf/amp_contrast": np.full(n, optics["rlnAmplitudeContrast"], "f4"),
        "ctf/df1_A": rows["rlnDefocusU"].to_numpy("f4"),
        "ctf/df2_A": rows["rlnDefocusV"].to_numpy("f4"),
        "ctf/df_angle_rad": np.deg2rad(turned * rows["rlnDefocusAngle"]).to_numpy("f4"),
        "ctf/phase_shift_rad": np.deg2rad(rows["rlnPhaseShift"]).to_numpy("f4"),
        "ctf/scale": np.ones(n, "f4"), "ctf/scale_const": np.ones(n, "f4"), "ctf/bfactor": np.zeros(n, "f4"),
        "ctf/shift_A": np.zeros((n, 2), "f4"), "ctf/tilt_A": np.zeros((n, 2), "f4"),
        "ctf/trefoil_A": np.zeros((n, 2), "f4"), "ctf/tetra_A": np.zeros((n, 4), "f4"),
        "ctf/anisomag": np.zeros((n, 4), "f4"),
        "alignments3D/split": (rows["rlnRandomSubset"] - 1).to_numpy("u4"),
        "alignments3D/shift": (shifts / pixel).astype("f4"),
        "alignments3D/pose": Rotation.from_matrix(a.transpose(0, 2, 1)).as_rotvec().astype("f4"),  # exp(-[v]x) = A
        "alignments3D/psize_A": np.full(n, pixel, "f4"),
        "alignments3D/alpha": np.ones(n, "f4"),
        "alignments3D/class": np.zeros(n, "u4"),
        "alignments3D/error": np.linspace(1, 2, n).astype("f4"),
    }  # fmt: skip


def _volume(maps: Path, out: Path, job: str, mirrored: bool, save: Save) -> Path:
    columns: dict[str, Any] = {"uid": np.array([3], np.uint64)}
    for name, file in (("map_half_A", "half1"), ("map_half_B", "half2"), ("mask_refine", "mask")):
        volume, pixel = read_map(maps / f"{file}.mrc")
        if mirrored:
            volume = np.roll(volume[::-1], 1, axis=0)  # the other hand, about the centre n // 2
        path = out / job / f"{job}_volume_{name}.mrc"
        write_map(path, volume, pixel)
        columns |= {f"{name}/path": [f"{job}/{path.name}"], f"{name}/shape": np.array([volume.shape], "u4"),
                    f"{name}/psize_A": np.array([pixel], "f4")}  # fmt: skip
    return save(out / job / f"{job}_volume.cs", columns)


def _motion(folder: Path, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return the general block and the shifts (frame, 2) xy px of a motion STAR."""
    blocks: Any = read_star(folder / Path(name).with_suffix(".star"))
    return blocks["general"], blocks["global_shift"][["rlnMicrographShiftX", "rlnMicrographShiftY"]].to_numpy(float)


def _link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.absolute())
    return path


def _rotation(rot_deg: float, tilt_deg: float, psi_deg: float) -> np.ndarray:
    """Return RELION's A by its own three rotations: Rz(psi) Ry(tilt) Rz(rot)."""

    def z(a: float) -> np.ndarray:
        return np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])

    tilt = np.deg2rad(tilt_deg)
    y = np.array([[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]])
    return z(np.deg2rad(psi_deg)) @ y @ z(np.deg2rad(rot_deg))
