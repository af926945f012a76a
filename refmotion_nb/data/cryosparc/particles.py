"""CryoSPARC's particle tables: poses, shifts, CTF and locations in our conventions, which are RELION's.

- Pose: a rotation vector; the transpose of its textbook matrix is RELION's A (source: pyem, csparc2star).
- Shift: pixels of ``alignments3D/psize_A``, as RELION's origin; ``ctf/shift_A`` is taken off (source: specter).
- Odd aberrations: phase -2π λ² k³ [T·(cos φ, sin φ) + t·(cos 3φ, sin 3φ)/3], T = ``tilt_A``, t = ``trefoil_A``; even
  ones add 2π λ³ k⁴ [s·(cos 2φ, sin 2φ) + q·(cos 4φ, sin 4φ)/4] with ``tetra_A`` = (s, q). Source: specter, after
  CryoSPARC's own basis; the beam tilt agrees with pyem. Anisotropic magnification is stored less the identity.
  No real file with aberrations other than zero was at hand: signs of trefoil, tetra and anisomag are unverified.
- Location: fractions of the micrograph, cut to whole pixels as RELION cuts its coordinates, and Structura's
  ``patch_to_local`` notebook these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from refmotion_nb.data.cryosparc.csfile import names, text
from refmotion_nb.data.cryosparc.files import Entry, first_file, read_rows
from refmotion_nb.data.reasons import listed
from refmotion_nb.data.relion.particles import LEAST_DEFOCUS_A, MOST_VOLTAGE_KV, ParticleTable
from refmotion_nb.data.schema import InputError, Optics
from refmotion_nb.data.star import Block
from refmotion_nb.numerics.ctf import wavelength_A
from refmotion_nb.numerics.projection import euler_to_matrix

NEEDED = (
    "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A", "alignments3D/split", "blob/psize_A",
    "blob/shape", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast", "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad",
    "location/micrograph_uid", "location/micrograph_shape", "location/center_x_frac", "location/center_y_frac",
)  # fmt: skip
_REMEDY = "give the particles of a refinement of half sets, with their passthrough file"
_PER_GROUP = ("ctf/exp_group_id", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast", "ctf/tilt_A", "ctf/trefoil_A",
              "ctf/tetra_A", "ctf/anisomag", "blob/psize_A", "blob/shape")  # fmt: skip
_OPTIONAL = ("ctf/shift_A", "ctf/phase_shift_rad", "ctf/bfactor")
_WIDTH = {"ctf/tilt_A": 2, "ctf/trefoil_A": 2, "ctf/tetra_A": 4, "ctf/anisomag": 4, "blob/shape": 2}
_ROUNDING = 6e-8  # of fractions kept in 32 bits
_SAME = 1e-2  # relative; micrographs whose sides differ by more show other fields


def read_particle_rows(entry: Entry) -> np.ndarray:
    """Read a particle table with its passthrough files.

    Raises
    ------
    InputError
        The file cannot be read, is empty, or lacks columns.
    """
    path = first_file(entry)
    rows = read_rows(entry, NEEDED)
    if not len(rows):
        raise InputError(f"{path} holds no particles; give a selection that is not empty")
    if missing := [name for name in NEEDED if name not in names(rows)]:
        several = any(name.startswith(("alignments3D_multi/", "alignments_class_")) for name in names(rows))
        multi = "; several classes at once are not supported, refine them one by one" * several
        raise InputError(f"{path} lacks {', '.join(missing)}{multi}; {_REMEDY}")
    return rows


def particle_table(
    path: Path, rows: np.ndarray, y_reversed: bool, shapes: Mapping[str, tuple[int, int]]
) -> ParticleTable:
    """Turn particles into our conventions; what is wrong with single ones is in ``problems``, one line each.

    Coordinates are in pixels of micrographs of ``shapes``, as ``micrograph_shapes`` returns them.
    """
    finer = _finer(rows, shapes)
    problems = _problems(rows, path, finer)
    groups, group = _groups(rows)
    optics = {number + 1: _optics(one, number) for number, one in enumerate(groups)}
    shift = rows["alignments3D/shift"].astype(float) * rows["alignments3D/psize_A"].astype(float)[:, None]
    values = {
        "row": np.arange(len(rows)),
        "stack_index": _column(rows, "blob/idx", 0).astype(int) + 1,
        "half": rows["alignments3D/split"].astype(int) + 1,
        "coordinate": _coordinate(rows, y_reversed) * finer,
        "euler": pose_to_euler(rows["alignments3D/pose"]),
        "origin": shift - _column(rows, "ctf/shift_A", 0, 2),
        "defocus_u": rows["ctf/df1_A"].astype(float),
        "defocus_v": rows["ctf/df2_A"].astype(float),
        "defocus_angle": np.rad2deg(rows["ctf/df_angle_rad"].astype(float)),
        "phase_shift": np.rad2deg(_column(rows, "ctf/phase_shift_rad", 0)),
        "ctf_b_factor": _column(rows, "ctf/bfactor", 0),
        "ctf_scale": _positive(_column(rows, "ctf/scale", 1)),
        "scale": _positive(_column(rows, "alignments3D/alpha", 1)),
    }
    micrograph = rows["location/micrograph_uid"].astype(str)
    blocks = relion_tables(rows, values, optics, group)
    return ParticleTable(path, blocks, optics, micrograph, values, group, problems)


def micrograph_shapes(tables: Iterable[np.ndarray]) -> dict[str, tuple[int, int]]:
    """Height and width (px) of the micrographs that particles were located on, by uid: of several the finest."""
    found: dict[str, tuple[int, int]] = {}
    for rows in tables:
        finest = np.argsort(-rows["location/micrograph_shape"][:, 0].astype(int), kind="stable")
        uid, first = np.unique(rows["location/micrograph_uid"][finest], return_index=True)
        for one, (height, width) in zip(uid, rows["location/micrograph_shape"][finest[first]].tolist()):
            found[str(one)] = max(found.get(str(one), (0, 0)), (height, width))
    return found


def pose_to_euler(pose: np.ndarray) -> np.ndarray:
    """Turn CryoSPARC's rotation vectors (particle, 3) into RELION's rot, tilt, psi (particle, 3) degrees."""
    from scipy.spatial.transform import Rotation  # takes long to import

    a = Rotation.from_rotvec(np.asarray(pose, float)).as_matrix().transpose(0, 2, 1)
    tilt = np.arctan2(np.hypot(a[:, 2, 0], a[:, 2, 1]), a[:, 2, 2])
    rot, psi = np.arctan2(a[:, 2, 1], a[:, 2, 0]), np.arctan2(a[:, 1, 2], -a[:, 0, 2])
    level = np.hypot(a[:, 2, 0], a[:, 2, 1]) < 1e-9  # rot and psi turn about one axis
    sign = np.sign(a[:, 2, 2])
    rot, psi = np.where(level, 0, rot), np.where(level, np.arctan2(-sign * a[:, 1, 0], sign * a[:, 0, 0]), psi)
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))


def euler_to_pose(euler_deg: np.ndarray) -> np.ndarray:
    """Turn RELION's rot, tilt, psi (particle, 3) degrees into CryoSPARC's rotation vectors (particle, 3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(euler_to_matrix(euler_deg).transpose(0, 2, 1)).as_rotvec()


def aberrations(
    tilt_A: np.ndarray, trefoil_A: np.ndarray, tetra_A: np.ndarray, voltage_kV: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Turn CryoSPARC's aberrations into RELION's odd and even Zernike coefficients; empty where they are zero."""
    lam = wavelength_A(voltage_kV)
    odd, even = np.zeros(6), np.zeros(9)
    # ρ³ cos φ = (Z(1, 3) + 2 Z(1, 1))/3 and ρ⁴ cos 2φ = (Z(2, 4) + 3 Z(2, 2))/4, RELION's being unnormalised
    x, y = -2 * np.pi * lam**2 * np.asarray(tilt_A, float) / 3
    odd[[0, 1, 3, 4]] = 2 * y, 2 * x, y, x
    odd[[5, 2]] = -2 * np.pi / 3 * lam**2 * np.asarray(trefoil_A, float)
    c2, s2, c4, s4 = 2 * np.pi * lam**3 * np.asarray(tetra_A, float) * [0.25, 0.25, 0.25, 0.25]
    even[[3, 1, 7, 5]] = 3 * c2, 3 * s2, c2, s2
    even[[8, 4]] = c4, s4
    return (tuple(odd.tolist()) if odd.any() else ()), (tuple(even.tolist()) if even.any() else ())


def aberrations_A(one: Optics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn an optics group's aberrations into CryoSPARC's ``tilt_A`` (2,), ``trefoil_A`` (2,) and ``tetra_A`` (4,).

    Zernikes of other orders, which CryoSPARC has no columns for, are left out.
    """
    lam = wavelength_A(one.voltage_kV)
    odd, even = (np.zeros(max(n, len(given))) for n, given in ((6, one.odd_zernike), (9, one.even_zernike)))
    odd[: len(one.odd_zernike)], even[: len(one.even_zernike)] = one.odd_zernike, one.even_zernike
    tilt = -3 * odd[[4, 3]] / (2 * np.pi * lam**2)
    tilt += np.sin(np.array(one.beam_tilt_mrad) * 1e-3) * one.spherical_aberration_mm * 1e7
    return tilt, -3 * odd[[5, 2]] / (2 * np.pi * lam**2), 4 * even[[7, 5, 8, 4]] / (2 * np.pi * lam**3)


def relion_tables(
    rows: np.ndarray, values: dict[str, np.ndarray], optics: dict[int, Optics], group: np.ndarray
) -> dict[str, Block]:
    """Return the particles as RELION's tables ``optics`` and ``particles``, for its programs to go on with."""
    particles = pd.DataFrame({
        "rlnCoordinateX": values["coordinate"][:, 0], "rlnCoordinateY": values["coordinate"][:, 1],
        "rlnMicrographName": text(rows, "location/micrograph_path"), "rlnAngleRot": values["euler"][:, 0],
        "rlnAngleTilt": values["euler"][:, 1], "rlnAnglePsi": values["euler"][:, 2],
        "rlnOriginXAngst": values["origin"][:, 0], "rlnOriginYAngst": values["origin"][:, 1],
        "rlnDefocusU": values["defocus_u"], "rlnDefocusV": values["defocus_v"],
        "rlnDefocusAngle": values["defocus_angle"], "rlnPhaseShift": values["phase_shift"],
        "rlnCtfBfactor": values["ctf_b_factor"], "rlnCtfScalefactor": values["ctf_scale"],
        "rlnRandomSubset": values["half"], "rlnClassNumber": _column(rows, "alignments3D/class", 0).astype(int) + 1,
        "rlnOpticsGroup": group, "rlnImageName": ""})  # fmt: skip
    groups = pd.DataFrame([{
        "rlnOpticsGroupName": one.name, "rlnOpticsGroup": number, "rlnVoltage": one.voltage_kV,
        "rlnSphericalAberration": one.spherical_aberration_mm, "rlnAmplitudeContrast": one.amplitude_contrast,
        "rlnImagePixelSize": one.pixel_size_A, "rlnImageSize": one.box_size, "rlnImageDimensionality": 2,
        "rlnOddZernike": _bracketed(one.odd_zernike, 6), "rlnEvenZernike": _bracketed(one.even_zernike, 9),
        "rlnMagMat00": one.magnification[0][0], "rlnMagMat01": one.magnification[0][1],
        "rlnMagMat10": one.magnification[1][0], "rlnMagMat11": one.magnification[1][1],
    } for number, one in optics.items()])  # fmt: skip
    return {"optics": groups, "particles": particles}


def _bracketed(values: Sequence[float], length: int) -> str:
    return f"[{','.join(f'{value:.9g}' for value in values or [0.0] * length)}]"


def _groups(rows: np.ndarray) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Values that particles share, one set per optics group, and the number of each particle's group, from 1."""
    parts = [_column(rows, name, 0, _WIDTH.get(name, 1)).reshape(len(rows), -1) for name in _PER_GROUP]
    values = np.concatenate(parts, axis=1)
    # of rows alike among a million: NumPy would sort all of them as wholes
    number = pd.DataFrame(values).groupby(list(range(values.shape[1])), dropna=False).ngroup().to_numpy()
    _, first = np.unique(number, return_index=True)
    cuts = np.cumsum([part.shape[1] for part in parts])[:-1]
    return [dict(zip(_PER_GROUP, np.split(one, cuts))) for one in values[first]], number + 1


def _optics(one: dict[str, np.ndarray], number: int) -> Optics:
    voltage = float(one["ctf/accel_kv"][0])
    voltage = voltage if voltage > 0 else 300.0  # so that the rest can be looked at: what is wrong with it is said
    odd, even = aberrations(one["ctf/tilt_A"], one["ctf/trefoil_A"], one["ctf/tetra_A"], voltage)
    m = np.eye(2) + one["ctf/anisomag"].reshape(2, 2)
    return Optics(
        name=f"opticsGroup{number + 1}_exposureGroup{int(one['ctf/exp_group_id'][0])}", voltage_kV=voltage,
        spherical_aberration_mm=round(float(one["ctf/cs_mm"][0]), 6),
        amplitude_contrast=round(float(one["ctf/amp_contrast"][0]), 6), pixel_size_A=float(one["blob/psize_A"][0]),
        box_size=int(one["blob/shape"][0]), odd_zernike=odd, even_zernike=even,
        magnification=((float(m[0, 0]), float(m[0, 1])), (float(m[1, 0]), float(m[1, 1]))),
    )  # fmt: skip


def _coordinate(rows: np.ndarray, y_reversed: bool) -> np.ndarray:
    """Whole pixels of the micrograph (particle, 2) x y."""
    x, y = (rows[f"location/center_{axis}_frac"].astype(float) for axis in "xy")
    height, width = rows["location/micrograph_shape"].astype(float).T
    size = np.stack([width, height], axis=1)
    place = np.stack([x, 1 - y if y_reversed else y], axis=1) * size
    return np.floor(place + _ROUNDING * size + 1e-4)  # a whole pixel stays what it was


def _finer(rows: np.ndarray, shapes: Mapping[str, tuple[int, int]]) -> np.ndarray:
    """How much finer than the micrograph a particle was located on is that of ``shapes``, (particle, 2) x y."""
    which, uids = pd.factorize(rows["location/micrograph_uid"])
    common = np.array([shapes[str(uid)] for uid in uids], float).reshape(-1, 2)[which]
    return (common / np.maximum(rows["location/micrograph_shape"], 1))[:, ::-1]


def _problems(rows: np.ndarray, path: Path, finer: np.ndarray) -> tuple[str, ...]:
    voltage_kV = rows["ctf/accel_kv"].astype(float)
    used = [name for name in {*NEEDED, *_PER_GROUP, *_OPTIONAL} & {*names(rows)} if rows.dtype[name].base.kind == "f"]
    magnified = np.linalg.det(np.eye(2) + _column(rows, "ctf/anisomag", 0, 4).reshape(-1, 2, 2))
    bad = {
        "has no half set (alignments3D/split 0 or 1)": ~np.isin(rows["alignments3D/split"], (0, 1)),
        "has a value that is not a number": np.any([
            ~np.isfinite(rows[name].astype(float).reshape(len(rows), -1)).all(1) for name in used], axis=0),
        "has no voltage in kV (ctf/accel_kv)": ~((voltage_kV > 0) & (voltage_kV <= MOST_VOLTAGE_KV)),
        "has no pixel size (alignments3D/psize_A, blob/psize_A)": ~(
            (rows["alignments3D/psize_A"] > 0) & (rows["blob/psize_A"] > 0)),
        "has no location on a micrograph": ~(rows["location/micrograph_shape"] > 0).all(1),
        "is magnified far from 1 (ctf/anisomag, which is stored less the identity)": ~((magnified > 0.5) & (magnified < 2)),
        "was located on a micrograph of another shape than others on it": ~np.isclose(finer[:, 0], finer[:, 1], rtol=_SAME),
    }  # fmt: skip
    problems = [f"{path}: row {listed((np.flatnonzero(mask) + 1).tolist())} {what}; {_REMEDY}"
                for what, mask in bad.items() if mask.any()]  # fmt: skip
    if len(rows) > 1 and not rows["alignments3D/pose"].any():
        problems.append(f"{path}: alignments3D/pose is 0 in every row; {_REMEDY}")
    if max(np.abs(rows["ctf/df1_A"]).max(), np.abs(rows["ctf/df2_A"]).max()) < LEAST_DEFOCUS_A:
        problems.append(f"{path}: ctf/df1_A and ctf/df2_A are below {LEAST_DEFOCUS_A:g} Å in every row; give particles whose CTF "
                        "was estimated")  # fmt: skip
    return tuple(problems)


def _column(rows: np.ndarray, name: str, default: float, width: int = 1) -> np.ndarray:
    if name in names(rows):
        return rows[name].astype(float)
    return np.full((len(rows), width) if width > 1 else len(rows), float(default))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, 1.0)
