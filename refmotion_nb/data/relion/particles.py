"""RELION particle tables: their optics groups, poses, half sets and positions, with what is wrong in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from refmotion_nb.data.reasons import listed
from refmotion_nb.data.schema import AXES, InputError, Movie, Optics, Skipped
from refmotion_nb.data.star import Block, read_star, table

MOST_VOLTAGE_KV = 5000.0  # beyond, it is in V
LEAST_DEFOCUS_A = 100.0  # of all particles: below, it was not estimated, or is in µm
_POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_PLACE = ("rlnCoordinateX", "rlnCoordinateY")
_ORIGINS = (("rlnOriginXAngst", "rlnOriginYAngst"), ("rlnOriginX", "rlnOriginY"))  # Å; image pixels before 3.1
_OPTIONAL = {"phase_shift": ("rlnPhaseShift", 0.0), "ctf_b_factor": ("rlnCtfBfactor", 0.0),
             "ctf_scale": ("rlnCtfScalefactor", 1.0)}  # fmt: skip
_OF_OPTICS = {"rlnVoltage": "voltage_kV", "rlnSphericalAberration": "spherical_aberration_mm",
              "rlnAmplitudeContrast": "amplitude_contrast"}  # fmt: skip
_REMEDY = "give the run_data.star of a 3D auto-refinement of half sets"
_LABELS = {
    "micrograph": ("micrograph", ""), "row": ("row of the input table", ""), "stack_index": ("number in its stack", ""),
    "reference": ("reference", ""), "half": ("half set", ""), "optics": ("optics group", ""),
    "coordinate": ("position on the movie", "Å"), "euler": ("Euler angle", "degree"), "origin": ("origin offset", "Å"),
    "defocus_u": ("defocus U", "Å"), "defocus_v": ("defocus V", "Å"), "defocus_angle": ("defocus angle", "degree"),
    "phase_shift": ("phase shift", "degree"), "ctf_b_factor": ("CTF B-factor", "Å²"), "ctf_scale": ("CTF scale", ""),
    "scale": ("grey scale", ""),
}  # fmt: skip


@dataclass(frozen=True)
class ParticleTable:
    """One particle file as read: its blocks, and its rows in the project's units."""

    path: Path
    blocks: dict[str, Block]
    optics: dict[int, Optics]  # by number of the group
    micrograph: np.ndarray  # (row,) rlnMicrographName
    values: dict[str, np.ndarray]  # (row, ...) Dataset variables; `coordinate` still in micrograph pixels
    group: np.ndarray  # (row,) number of the optics group
    problems: tuple[str, ...] = ()


def read_particles(path: str | Path) -> ParticleTable:
    """Read a particle STAR file; what is wrong with single particles is in ``problems``, one line each.

    Raises
    ------
    InputError
        The file is not a RELION particle file of version 3.1 or later, is empty, or lacks columns.
    """
    blocks = read_star(path)
    blocks["optics"] = groups = needs_optics(blocks, path)
    rows, optics = table(blocks, "particles"), optics_groups(groups, path)
    if rows.empty:
        raise InputError(f"{path} holds no particles; give a selection that is not empty")
    origin = next((labels for labels in _ORIGINS if set(labels) <= set(rows.columns)), None)
    needed = ("rlnMicrographName", *_PLACE, *_POSE, *_CTF, "rlnRandomSubset", "rlnOpticsGroup")
    missing = [label for label in needed if label not in rows.columns] + ([] if origin else list(_ORIGINS[0]))
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)} in data_particles; {_REMEDY}")
    problems: list[str] = []
    numbers = {label: _numbers(rows[label], label, path, problems)
               for label in (*_PLACE, *_POSE, *_CTF, *(origin or ()), "rlnRandomSubset", "rlnOpticsGroup")}  # fmt: skip
    group, half = _whole(numbers["rlnOpticsGroup"]), _whole(numbers["rlnRandomSubset"])
    _complain(~np.isin(half, (1, 2)), f"{path}: no half set (rlnRandomSubset 1 or 2) for", f"; {_REMEDY}", problems)
    _complain(~np.isin(group, list(optics)), f"{path}: no such group in data_optics for",
              "; write the file again from RELION", problems)  # fmt: skip
    if len(rows) > 1 and not (numbers["rlnAngleRot"].any() or numbers["rlnAngleTilt"].any()):
        problems.append(
            f"{path}: rlnAngleRot and rlnAngleTilt are 0 in every row, as 2D classification leaves them; {_REMEDY}"
        )
    if (np.abs(numbers["rlnDefocusU"]) < LEAST_DEFOCUS_A).all() and (
        np.abs(numbers["rlnDefocusV"]) < LEAST_DEFOCUS_A
    ).all():
        problems.append(f"{path}: rlnDefocusU and rlnDefocusV are below {LEAST_DEFOCUS_A:g} Å in every row; give particles whose "
                        "CTF was estimated, in Å")  # fmt: skip
    _complain_of_optics(rows, optics, group, path, problems)
    values = {
        "row": np.arange(len(rows)),
        "stack_index": _stack_index(rows),
        "half": half,
        "coordinate": np.stack([numbers[label] for label in _PLACE], axis=1),
        "euler": np.stack([numbers[label] for label in _POSE], axis=1),
        "origin": _origin(numbers, origin or _ORIGINS[0], group, optics),
        **{name: numbers[label] for name, label in zip(("defocus_u", "defocus_v", "defocus_angle"), _CTF)},
        **{
            name: _numbers(_of_particles(rows, table(blocks, "optics"), label, default), label, path, problems)
            for name, (label, default) in _OPTIONAL.items()
        },
        "scale": np.ones(len(rows)),  # RELION keeps intensity scales per group, and polishing uses none
    }
    return ParticleTable(Path(path), blocks, optics, rows["rlnMicrographName"].to_numpy(str), values, group,
                         tuple(problems))  # fmt: skip


def optics_groups(rows: pd.DataFrame, path: str | Path) -> dict[int, Optics]:
    """Read the optics groups, by their number, from the optics block of a particle file.

    Raises
    ------
    InputError
        A group lacks a value, or has one that is impossible.
    """
    needed = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize", "rlnImageSize")
    if missing := [label for label in needed if label not in rows.columns]:
        raise InputError(f"{path} lacks {', '.join(missing)} in data_optics; {_REMEDY}")
    try:
        groups = {int(row["rlnOpticsGroup"]): _optics(row) for row in rows.to_dict("records")}
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: data_optics holds a value that is not a number ({error}); {_REMEDY}") from None
    for label in ("rlnVoltage", "rlnImagePixelSize", "rlnImageSize"):
        if not (np.isfinite(given := rows[label].to_numpy(float)) & (given > 0)).all():
            raise InputError(f"{path}: {label} must be above 0 in every row of data_optics; correct it")
    if (broken := rows["rlnImageSize"].to_numpy(float) % 1 != 0).any():
        raise InputError(f"{path}: rlnImageSize {rows['rlnImageSize'][broken].iloc[0]} in data_optics is no whole number of "
                         "pixels; correct it")  # fmt: skip
    if (beyond := rows["rlnVoltage"].to_numpy(float) > MOST_VOLTAGE_KV).any():
        raise InputError(f"{path}: rlnVoltage {rows['rlnVoltage'][beyond].iloc[0]} in data_optics is in kV; correct it")
    for one in groups.values():
        _check_finer_optics(one, path)
    for label in ("rlnSphericalAberration", "rlnAmplitudeContrast"):
        if not np.isfinite(rows[label].to_numpy(float)).all():
            raise InputError(f"{path}: {label} is not a number in a row of data_optics; correct it")
    return groups


def _check_finer_optics(one: Optics, path: str | Path) -> None:
    """Refuse aberrations that are no numbers, and a magnification that is far from 1; InputError."""
    magnification = np.array(one.magnification)
    if not np.isfinite([*one.beam_tilt_mrad, *one.odd_zernike, *one.even_zernike, *magnification.ravel()]).all():
        raise InputError(f"{path}: a beam tilt, Zernike coefficient or magnification of optics group {one.name} in data_optics "
                         "is not a number; correct it")  # fmt: skip
    if not 0.5 < np.linalg.det(magnification) < 2:
        raise InputError(f"{path}: rlnMagMat00 to 11 of optics group {one.name} in data_optics magnify by "
                         f"{np.linalg.det(magnification):.3g}; they should be close to 1, 0, 0, 1: correct them")  # fmt: skip


def needs_optics(blocks: Mapping[str, Block], path: str | Path) -> pd.DataFrame:
    """Take the optics block of a file, each group once.

    Raises
    ------
    InputError
        There is none, as before RELION 3.1, it lists a group twice with different values, or it is of tomography.
    """
    if any("rlnTomoName" in table(blocks, name).columns for name in ("particles", "global")):
        raise InputError(
            f"{path} is of tomography (rlnTomoName), which is not processed; give files of single-particle jobs"
        )
    rows = table(blocks, "optics")
    if rows.empty or "rlnOpticsGroup" not in rows.columns:
        if "global_shift" in blocks:
            raise InputError(
                f"{path} is the motion of one micrograph; give corrected_micrographs.star, which lists all"
            )
        raise InputError(f"{path} has no optics groups: it was written before RELION 3.1; convert it "
                         f"(relion_convert_star --i {Path(path).name} --o NEW.star)")  # fmt: skip
    rows = rows.drop_duplicates().reset_index(drop=True)  # as files put together by hand have
    if (again := rows["rlnOpticsGroup"].duplicated()).any():
        raise InputError(f"{path}: optics group {rows['rlnOpticsGroup'][again].iloc[0]} is listed twice in data_optics, with "
                         "different values; give each a number of its own, in the other table too")  # fmt: skip
    return rows


def assemble(
    tables: Sequence[ParticleTable],
    find_movie: Mapping[str, int],
    movies: Sequence[Movie],
    unusable: Mapping[str, str],
    micrographs_path: str | Path,
) -> tuple[xr.Dataset, tuple[Optics, ...], tuple[Skipped, ...]]:
    """Put the particles of all tables on their movies: the Dataset's particles, optics groups, and those left out.

    ``find_movie`` leads from a name as the particles write it to an index of ``movies``, ``unusable`` from a name to
    the reason why its movie cannot be used. A particle without a movie, or with its whole box off it, is left out.
    """
    optics: list[Optics] = []
    kept_parts: list[dict[str, np.ndarray]] = []
    skipped: list[Skipped] = []
    unlisted = f"its micrograph is not in {micrographs_path}"
    for number, part in enumerate(tables):
        index = {group: _index(optics, one) for group, one in part.optics.items()}
        inverse, names = pd.factorize(part.micrograph)  # NumPy would sort the names of a million particles
        movie = np.array([find_movie.get(name, -1) for name in names])[inverse]
        scale = np.array([m.pixel_size_A * m.binning for m in movies] or [1.0])[movie]
        size = np.array([(m.width * m.pixel_size_A, m.height * m.pixel_size_A) for m in movies] or [(1.0, 1.0)])[movie]
        of_row = np.array([index.get(group, 0) for group in part.group])
        half_box = np.array([one.box_size * one.pixel_size_A / 2 for one in optics])[of_row, None]
        coordinate = part.values["coordinate"] * scale[:, None]
        off = ((coordinate + half_box < 0) | (coordinate - half_box > size)).any(axis=1) & (movie >= 0)
        for row in np.flatnonzero(off | (movie < 0)):
            name = str(part.micrograph[row])
            reason = "it lies outside its movie" if off[row] else unusable.get(name, unlisted)
            skipped.append(Skipped(int(row), movies[movie[row]].micrograph if off[row] else name, reason, number))
        kept = ~off & (movie >= 0)
        values = {**part.values, "coordinate": coordinate, "optics": of_row, "reference": np.full(len(kept), number),
                  "micrograph": np.array([m.micrograph for m in movies] or [""])[movie]}  # fmt: skip
        kept_parts.append({name: value[kept] for name, value in values.items()})
    kept_parts = kept_parts or [_no_particles()]
    joined = {name: np.concatenate([part[name] for part in kept_parts]) for name in _LABELS}
    return particle_dataset(joined), tuple(optics), tuple(skipped)


def unfit(particles: xr.Dataset, skipped: Sequence[Skipped], tables: Sequence[ParticleTable], movies: str) -> list[str]:
    """Name the table whose particles all fall out, or are of one half set; ``movies`` is what lists these."""
    problems = []
    reference, half = particles["reference"].values, particles["half"].values
    for number, part in enumerate(tables):
        reasons = Counter(skip.reason for skip in skipped if skip.row >= 0 and skip.reference == number)
        halves = set(half[reference == number].tolist()) & {1, 2}
        if not (reference == number).any():
            why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
            problems.append(f"{part.path}: no particle can be used: {why}; give the {movies} they are from")
        elif len(halves) == 1:
            problems.append(f"{part.path}: all particles are of half set {halves.pop()}; give both half sets")
    return problems


def shared_places(particles: xr.Dataset) -> list[str]:
    """Say how many places on the movies are listed for more than one reference, a line for that if there are any."""
    if len(np.unique(particles["reference"].values)) < 2:
        return []
    x, y = np.floor(particles["coordinate"].values).T
    place = {"micrograph": particles["micrograph"].values, "x": x, "y": y}
    listed_for = pd.DataFrame({**place, "reference": particles["reference"].values}).drop_duplicates()
    shared = listed_for[listed_for.duplicated(list(place))].drop_duplicates(list(place))
    if shared.empty:
        return []
    at = shared.iloc[0]
    first = f"the first on {at['micrograph']} at x {at['x']:.0f}, y {at['y']:.0f} Å"
    return [f"{len(shared)} particles are listed for more than one reference ({first}); each is aligned once, to the first "
            "of them: give every particle one reference"]  # fmt: skip


def repeated(particles: xr.Dataset) -> list[str]:
    """Say how many particles have place and origin of an earlier one of their reference, a line for that if any have."""
    frame = pd.DataFrame({name: particles[name].values for name in ("reference", "half")})
    for name in ("coordinate", "origin"):
        frame[[f"{name}_x", f"{name}_y"]] = particles[name].values
    place = [name for name in frame if name != "half"]
    if not frame.duplicated(place).any():  # of whatever micrograph: names are slow to compare
        return []
    frame["micrograph"] = particles["micrograph"].values
    place.append("micrograph")
    again = frame.duplicated(place).to_numpy()
    if not again.any():
        return []
    shared = frame[frame.duplicated(place, keep=False)]
    crossed = int((shared["half"] != shared.groupby(place)["half"].transform("first")).sum())
    warning = f"; {crossed} of them are in the other half set, which makes the half maps alike" if crossed else ""
    return [f"{again.sum()} of {len(again)} particles lie where an earlier one lies: duplicates, or a symmetry-expanded set; "
            f"each place is aligned once and all are written{warning}: take duplicates out of the file"]  # fmt: skip


def subtracted(tables: Sequence[ParticleTable]) -> list[str]:
    """Say how many particles are images with part of the signal subtracted, a line for each table that has such."""
    notes = []
    for part in tables:
        rows = table(part.blocks, "particles")
        if {"rlnImageName", "rlnImageOriginalName"} <= set(rows.columns):
            n = int(rows["rlnImageName"].astype(str).str.contains(r"subtracted[^/]*$").sum())
            if n:
                notes.append(f"{n} of {len(rows)} particles of {part.path} are images with part of the signal subtracted: movies "
                             "hold all of it, and if subtraction centred them, too, their coordinates do not lead to them there; "
                             "give the particles as they were before (relion_particle_subtract --revert)")  # fmt: skip
    return notes


def off_their_movies(particles: xr.Dataset, movies: Sequence[Movie]) -> list[str]:
    """Say how many particles have their centres, origins applied, outside their movies, a line for that if there are any.

    Those whose whole box is outside are left out; RELION writes them all, as they are.
    """
    size_A = {one.micrograph: (one.width * one.pixel_size_A, one.height * one.pixel_size_A) for one in movies}
    inverse, names = pd.factorize(particles["micrograph"].values)
    size = np.array([size_A[name] for name in names.tolist()] or [(0.0, 0.0)])[inverse]
    centre = particles["coordinate"].values - particles["origin"].values
    off = np.flatnonzero(((centre < 0) | (centre > size)).any(axis=1))
    if not off.size:
        return []
    row, name = int(particles["row"].values[off[0]]), names[inverse[off[0]]]
    return [f"{off.size} of {len(centre)} particles have their centres outside their movies (the first: row {row + 1} of "
            f"its file, on {name}); they are written, the pixels at the edge repeated, as RELION does: take them out of "
            "the file"]  # fmt: skip


def particle_dataset(values: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Label particle values (particle, ...) with dimensions, units and names as ``schema.Dataset`` describes them."""
    extra = {"coordinate": ("axis",), "origin": ("axis",), "euler": ("angle",)}
    variables = {
        name: (("particle", *extra.get(name, ())), values[name], {"long_name": label} | _units(unit))
        for name, (label, unit) in _LABELS.items()
    }
    return xr.Dataset(variables, coords={"axis": list(AXES), "angle": ["rot", "tilt", "psi"]})


def _units(unit: str) -> dict[str, str]:
    return {"units": unit} if unit else {}


def _no_particles() -> dict[str, np.ndarray]:
    whole = {name: np.zeros(0, int) for name in ("row", "stack_index", "reference", "half", "optics")}
    vectors = {"coordinate": np.zeros((0, 2)), "origin": np.zeros((0, 2)), "euler": np.zeros((0, 3))}
    return {name: np.zeros(0) for name in _LABELS} | {"micrograph": np.zeros(0, str)} | whole | vectors


def _optics(row: Mapping[Any, Any]) -> Optics:
    magnification = [float(row.get(f"rlnMagMat{ij}", ij in ("00", "11"))) for ij in ("00", "01", "10", "11")]
    odd = _list(row.get("rlnOddZernike", ""))
    if "rlnBeamTiltX" in row:  # RELION takes third-order coma from the tilt then, whatever is listed
        odd = (*odd[:3], *(0.0 for _ in odd[3:5]), *odd[5:])
    return Optics(
        name=str(row.get("rlnOpticsGroupName", row["rlnOpticsGroup"])),
        voltage_kV=float(row["rlnVoltage"]),
        spherical_aberration_mm=float(row["rlnSphericalAberration"]),
        amplitude_contrast=float(row["rlnAmplitudeContrast"]),
        pixel_size_A=float(row["rlnImagePixelSize"]),
        box_size=int(row["rlnImageSize"]),
        ctf_premultiplied=bool(int(row.get("rlnCtfDataAreCtfPremultiplied", 0))),
        beam_tilt_mrad=(float(row.get("rlnBeamTiltX", 0)), float(row.get("rlnBeamTiltY", 0))),
        odd_zernike=odd,
        even_zernike=_list(row.get("rlnEvenZernike", "")),
        magnification=((magnification[0], magnification[1]), (magnification[2], magnification[3])),
    )


def _list(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in str(text).strip("[]").split(",") if value.strip())


def _index(optics: list[Optics], one: Optics) -> int:
    if one not in optics:  # several tables usually share their optics groups
        optics.append(one)
    return optics.index(one)


def _numbers(column: pd.Series, label: str, path: str | Path, problems: list[str]) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float)
    bad = ~np.isfinite(numbers)
    _complain(bad, f"{path}: {label} is not a number in", "; take these particles out of the file", problems)
    return numbers


def _of_particles(rows: pd.DataFrame, optics: pd.DataFrame, label: str, default: float) -> pd.Series:
    """Return a value of every particle (row,), as RELION finds it: its own, else its optics group's, else the default."""
    if label in rows.columns:
        return rows[label]
    if label in optics.columns:
        return rows["rlnOpticsGroup"].map(dict(zip(optics["rlnOpticsGroup"], optics[label])))
    return pd.Series(default, rows.index)


def _complain_of_optics(
    rows: pd.DataFrame, optics: Mapping[int, Optics], group: np.ndarray, path: str | Path, problems: list[str]
) -> None:
    """Refuse particles that say otherwise than their optics group; RELION takes what they say for their CTF."""
    for label, name in _OF_OPTICS.items():
        if label not in rows.columns:
            continue
        own = pd.to_numeric(rows[label], errors="coerce").to_numpy(float)
        theirs = np.array([getattr(optics[one], name) if one in optics else np.nan for one in group.tolist()])
        _complain(~(np.isclose(own, theirs, rtol=1e-4) | np.isnan(theirs)), f"{path}: {label} is not that of the optics group in",
                  "; RELION would take it for the CTF: give these particles an optics group that has it", problems)  # fmt: skip


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Return numbers as whole ones, -1 in place of those that are none."""
    return np.where((np.abs(numbers) < 1e9) & (numbers == np.rint(numbers)), numbers, -1).astype(int)


def _complain(bad: np.ndarray, what: str, remedy: str, problems: list[str]) -> None:
    if bad.any():
        rows = np.flatnonzero(bad) + 1
        count = f" ({rows.size} of {bad.size})" if rows.size > 1 else ""
        problems.append(f"{what} row{'s' * (rows.size > 1)} {listed(rows.tolist())}{count} of data_particles{remedy}")


def _stack_index(rows: pd.DataFrame) -> np.ndarray:
    if "rlnImageName" not in rows.columns:
        return np.arange(1, len(rows) + 1)
    before = (str(name).partition("@") for name in rows["rlnImageName"])
    return np.array([int(number) if at and number.isdigit() else i + 1 for i, (number, at, _) in enumerate(before)])


def _origin(
    numbers: Mapping[str, np.ndarray], labels: tuple[str, str], group: np.ndarray, optics: Mapping[int, Optics]
) -> np.ndarray:
    origin = np.stack([numbers[label] for label in labels], axis=1)
    if labels == _ORIGINS[0]:
        return origin
    pixel = {number: one.pixel_size_A for number, one in optics.items()}
    return origin * np.array([pixel.get(number, 1.0) for number in group])[:, None]
