"""A RELION folder turned into what CryoSPARC would have written, with its official writer and code of its own."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.linalg import expm, logm

KNOTS = (6, 5, 4)  # of splines: frame, y, x


def dataset_class():
    return pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools is not installed").Dataset


def save(path: Path, columns: dict, container: bool = False) -> Path:
    dataset = dataset_class()({name: np.asarray(value) for name, value in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save(path, format=2 if container else 1)
    return path


def rotation(euler_deg) -> np.ndarray:
    """RELION's A by its own three rotations: Rz(psi) Ry(tilt) Rz(rot)."""

    def z(a):
        return np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])

    def y(a):
        return np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])

    rot, tilt, psi = np.deg2rad(euler_deg)
    return z(psi) @ y(tilt) @ z(rot)


def pose(a: np.ndarray) -> np.ndarray:
    """The vector v with exp(-[v]x) = A."""
    k = -np.real(logm(a))
    v = np.array([k[2, 1], k[0, 2], k[1, 0]])
    assert np.allclose(expm(-cross(v)), a, atol=1e-6)
    return v


def cross(v):
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])


def convert(
    folder: Path, out: Path, orientation: str = "cryosparc", container: bool = False, spline=None, background=None
) -> dict:
    """Write exposures, particles and volume; ``cryosparc``: everything mirrored as by rows in the order of the file.

    ``spline`` leads from a micrograph to coefficients, ``background`` to an image, in RELION's frame. Returns the
    arguments of ``open_cryosparc``.
    """
    names = list(dict.fromkeys(starfile.read(folder / "Extract/particles.star")["particles"]["rlnMicrographName"]))
    uids = {name: 10**18 + 7 * i for i, name in enumerate(names)}
    exposures = [_exposure(name, _motion(folder, name), uids[name], out, folder, spline, background) for name in names]
    columns = {key: np.array([one[key] for one in exposures]) for key in exposures[0]}
    return {"exposures": save(out / "J2/exposures.cs", columns, container),
            **refinement(folder, out, uids, orientation, container), "root": out}  # fmt: skip


def refinement(
    folder: Path, out: Path, uids: dict, orientation: str, container: bool = False, job: str = "J5",
    table: str = "particles.star", maps: str = "Ref",
) -> dict:  # fmt: skip
    """Write the particles and the volume of a refinement; ``uids`` are those of the micrographs."""
    mirrored = orientation == "cryosparc"
    particles = starfile.read(folder / "Extract" / table)
    optics, table = particles["optics"], particles["particles"]
    optics = optics.iloc[0]
    first = _general(_motion(folder, table["rlnMicrographName"].iloc[0]))
    height, width = int(first["rlnImageSizeY"]), int(first["rlnImageSizeX"])
    flip = np.diag([1.0, -1, 1]), np.diag([1.0, 1, -1])
    poses, shifts = [], []
    for row in table.itertuples():
        a = rotation((row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi))
        poses.append(pose(flip[0] @ a @ flip[1] if mirrored else a))
        shifts.append([row.rlnOriginXAngst, row.rlnOriginYAngst * (-1 if mirrored else 1)])
    n, pixel = len(table), float(optics["rlnImagePixelSize"])
    uid = np.random.default_rng(5).permutation(n).astype(np.uint64) + np.uint64((1 << 62) + 1000 * int(job[1:]))
    turned = -1 if mirrored else 1
    columns = {
        "uid": uid,
        "blob/path": [f"J3/extract/{Path(name).stem}_particles.mrc" for name in table["rlnMicrographName"]],
        "blob/idx": np.array([int(str(v).split("@")[0]) - 1 for v in table["rlnImageName"]], "u4"),
        "blob/shape": np.full((n, 2), int(optics["rlnImageSize"]), "u4"),
        "blob/psize_A": np.full(n, pixel, "f4"),
        "blob/sign": np.full(n, -1, "f4"),
        "blob/import_sig": np.zeros(n, "u8"),
        "ctf/type": ["spline"] * n,
        "ctf/exp_group_id": np.full(n, 4, "u4"),
        "ctf/accel_kv": np.full(n, optics["rlnVoltage"], "f4"),
        "ctf/cs_mm": np.full(n, optics["rlnSphericalAberration"], "f4"),
        "ctf/amp_contrast": np.full(n, optics["rlnAmplitudeContrast"], "f4"),
        "ctf/df1_A": table["rlnDefocusU"].to_numpy("f4"),
        "ctf/df2_A": table["rlnDefocusV"].to_numpy("f4"),
        "ctf/df_angle_rad": np.deg2rad(turned * table["rlnDefocusAngle"]).to_numpy("f4"),
        "ctf/phase_shift_rad": np.deg2rad(table["rlnPhaseShift"]).to_numpy("f4"),
        "ctf/scale": np.ones(n, "f4"), "ctf/scale_const": np.ones(n, "f4"), "ctf/bfactor": np.zeros(n, "f4"),
        "ctf/shift_A": np.zeros((n, 2), "f4"), "ctf/tilt_A": np.zeros((n, 2), "f4"),
        "ctf/trefoil_A": np.zeros((n, 2), "f4"), "ctf/tetra_A": np.zeros((n, 4), "f4"),
        "ctf/anisomag": np.zeros((n, 4), "f4"),
        "alignments3D/split": (table["rlnRandomSubset"] - 1).to_numpy("u4"),
        "alignments3D/shift": (np.array(shifts) / pixel).astype("f4"),
        "alignments3D/pose": np.array(poses, "f4"),
        "alignments3D/psize_A": np.full(n, pixel, "f4"),
        "alignments3D/alpha": np.ones(n, "f4"),
        "alignments3D/class": np.zeros(n, "u4"),
        "alignments3D/error": np.linspace(1, 2, n).astype("f4"),
    }  # fmt: skip
    files = {"particles": save(out / job / "particles.cs", columns, container)}
    shuffled = np.random.default_rng(6).permutation(n)
    passthrough = {
        "uid": uid,
        "location/micrograph_uid": np.array([uids[name] for name in table["rlnMicrographName"]], np.uint64),
        "location/exp_group_id": np.full(n, 4, "u4"),
        "location/micrograph_path": np.array(
            [f"J2/motioncorrected/{Path(m).name}" for m in table["rlnMicrographName"]]
        ),
        "location/micrograph_shape": np.tile(np.array([height, width], "u4"), (n, 1)),
        "location/micrograph_psize_A": np.full(n, first["rlnMicrographOriginalPixelSize"], "f4"),
        "location/center_x_frac": (table["rlnCoordinateX"] / width).to_numpy("f4"),
        # the pixel of the box centre, of mirrored rows where the images are
        "location/center_y_frac": (
            (height - 1 - np.floor(table["rlnCoordinateY"])) / height
            if mirrored
            else 1 - table["rlnCoordinateY"] / height
        ).to_numpy("f4"),
    }
    save(
        out / job / f"{job}_passthrough_particles.cs", {key: np.asarray(v)[shuffled] for key, v in passthrough.items()}
    )
    return {**files, "volumes": _volume(folder / maps, out, mirrored, container, job)}


def _motion(folder: Path, name: str) -> dict:
    return starfile.read(folder / Path(name).with_suffix(".star"), always_dict=True)


def _general(blocks: dict) -> dict:
    general = blocks["general"]
    return dict(general) if isinstance(general, dict) else general.iloc[0].to_dict()


def _exposure(name: str, blocks: dict, uid: int, out: Path, folder: Path, spline, background) -> dict:
    general = _general(blocks)
    movie = folder / general["rlnMicrographMovieName"]
    stem, pixel = Path(name).stem, float(general["rlnMicrographOriginalPixelSize"])
    frames, height, width = (int(general[f"rlnImageSize{axis}"]) for axis in "ZYX")
    link = out / "J1/imported" / f"{uid:021d}_{movie.name}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(movie.absolute())
    gain = out / "J1/imported/gain.mrc"
    if not gain.exists():
        gain.symlink_to((folder / general["rlnMicrographGainName"]).absolute())
    shift = blocks["global_shift"][["rlnMicrographShiftX", "rlnMicrographShiftY"]].to_numpy(float)
    made = out / "J2/motioncorrected"
    made.mkdir(parents=True, exist_ok=True)
    # the specimen has moved by minus RELION's shift; y runs along the rows as stored, against RELION's
    np.save(made / f"{stem}_rigid_traj.npy", (shift * [-1, 1])[None])
    knots = np.zeros((2, *KNOTS))
    if spline is not None:
        knots = np.array(spline[stem])[:, :, ::-1] * np.array([1, -1])[:, None, None, None]
    np.save(made / f"{stem}_spline_traj.npy", knots)
    with mrcfile.new(made / f"{stem}_background.mrc", overwrite=True) as file:
        flat = np.ones((height // 32, width // 32), np.float32)
        file.set_data(flat if background is None else 17 * background[stem][::-1].copy())  # in its rows, of any scale
    return {
        "uid": np.uint64(uid),
        "movie_blob/path": f"J1/imported/{link.name}", "movie_blob/shape": np.array([frames, height, width], "u4"),
        "movie_blob/psize_A": np.float32(pixel), "movie_blob/is_gain_corrected": np.uint32(0),
        "movie_blob/format": "TIFF", "movie_blob/has_defect_file": np.uint32(0), "movie_blob/import_sig": np.uint64(0),
        "gain_ref_blob/path": "J1/imported/gain.mrc", "gain_ref_blob/idx": np.uint32(0),
        "gain_ref_blob/shape": np.array([height, width], "u4"), "gain_ref_blob/flip_x": np.uint32(0),
        "gain_ref_blob/flip_y": np.uint32(1), "gain_ref_blob/rotate_num": np.uint32(0),
        "mscope_params/accel_kv": np.float32(general["rlnVoltage"]), "mscope_params/cs_mm": np.float32(2.7),
        "mscope_params/total_dose_e_per_A2": np.float32(frames * general["rlnMicrographDoseRate"]),
        "mscope_params/exp_group_id": np.uint32(4), "mscope_params/defect_path": "",
        **{f"{kind}_motion/{key}": value for kind in ("rigid", "spline") for key, value in {
            "type": kind, "path": f"J2/motioncorrected/{stem}_{kind}_traj.npy", "idx": np.uint32(0),
            "frame_start": np.uint32(0), "frame_end": np.uint32(frames), "zero_shift_frame": np.uint32(0),
            "psize_A": np.float32(pixel)}.items()},
        "background_blob/path": f"J2/motioncorrected/{stem}_background.mrc", "background_blob/idx": np.uint32(0),
        "background_blob/binfactor": np.uint32(32), "background_blob/shape": np.array([height // 32, width // 32], "u4"),
        "background_blob/psize_A": np.float32(pixel),
        "micrograph_blob/path": f"J2/motioncorrected/{stem}.mrc", "micrograph_blob/psize_A": np.float32(pixel),
        "micrograph_blob/shape": np.array([height, width], "u4"),
    }  # fmt: skip


def _volume(maps: Path, out: Path, mirrored: bool, container: bool, job: str) -> Path:
    columns: dict = {"uid": np.array([3], np.uint64)}
    for name, file in (("map_half_A", "half1"), ("map_half_B", "half2"), ("mask_refine", "mask")):
        with mrcfile.open(maps / f"{file}.mrc") as source:
            data, pixel = source.data.copy(), float(source.voxel_size.x)
        # the other hand, about the centre n // 2
        data = np.roll(data[::-1], 1, axis=0) if mirrored else data
        path = out / job / f"{job}_volume_{name}.mrc"
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(path, overwrite=True) as target:
            target.set_data(data)
            target.voxel_size = pixel
        columns |= {f"{name}/path": [f"{job}/{path.name}"], f"{name}/shape": np.array([data.shape], "u4"),
                    f"{name}/psize_A": np.array([pixel], "f4")}  # fmt: skip
    return save(out / job / f"{job}_volume.cs", columns, container)
