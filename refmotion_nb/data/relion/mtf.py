"""Detector MTFs of RELION's optics groups.

Where all groups name one MTF file, RELION refines without it, and the half maps contain it as the images do. Where they
name several, it refines images divided by their own MTF and multiplied by the mean over all groups. When it polishes, it
multiplies predicted views by the MTF in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from refmotion_nb.data.relion.particles import ParticleTable
from refmotion_nb.data.schema import InputError, Mtf
from refmotion_nb.data.star import read_star, table

_COLUMNS = ("rlnResolutionInversePixel", "rlnMtfValue")
_PIXEL = "rlnMicrographOriginalPixelSize"
_SAMPLES = 1000  # of a curve relative to the mean of all
_NONE = ("", "None")


def read_mtf(path: str | Path, pixel_size_A: float) -> Mtf:
    """Read the MTF of a detector whose pixels are ``pixel_size_A`` wide on the specimen.

    Raises
    ------
    InputError
        The file does not exist or holds no MTF.
    """
    blocks = read_star(path)
    rows = next((rows for rows in (table(blocks, name) for name in blocks) if set(_COLUMNS) <= set(rows.columns)), None)
    if rows is None:
        raise InputError(f"{path} lacks {' and '.join(_COLUMNS)}; give a STAR file with the MTF of the detector")
    try:
        frequency, value = (rows[label].to_numpy(float) for label in _COLUMNS)
    except ValueError as error:
        raise InputError(f"{path} holds a value that is not a number ({error}); correct it") from None
    if len(frequency) < 2 or not (np.diff(frequency) > 0).all() or not (np.isfinite(value) & (value > 0)).all():
        raise InputError(f"{path} is no MTF: its frequencies must rise and its values be above 0; correct it")
    return Mtf(tuple((frequency / pixel_size_A).tolist()), tuple(value.tolist()))


def with_mtf(part: ParticleTable, root: Path, problems: list[str], notes: list[str]) -> ParticleTable:
    """Return a particle table whose optics groups know the MTFs that they name, files counting from ``root``.

    A file that cannot be used is a problem where groups name several, a note where all name one.
    """
    rows = table(part.blocks, "optics")
    if "rlnMtfFileName" not in rows.columns:
        return part
    named = dict(zip(rows["rlnOpticsGroup"].astype(int).tolist(), rows["rlnMtfFileName"].astype(str)))
    files = {group: name for group, name in named.items() if name not in _NONE}
    several = len(set(files.values())) > 1
    optics = {group: replace(one, mtf_file=files.get(group, "")) for group, one in part.optics.items()}
    try:
        curves = _curves(part, files, root, several)
    except InputError as error:
        if several:
            problems.append(f"{error} (rlnMtfFileName in data_optics of {part.path})")
        else:
            notes.append(f"{error} (rlnMtfFileName; of one detector, so that only energy relion needs it)")
        return replace(part, optics=optics)
    relative = _relative(curves) if several else {}
    return replace(part, optics={
        group: replace(one, mtf=curves.get(group), relative_mtf=relative.get(group)) for group, one in optics.items()
    })  # fmt: skip


def _curves(part: ParticleTable, files: Mapping[int, str], root: Path, several: bool) -> dict[int, Mtf]:
    """Return the MTF of each group that names one; of several detectors all must."""
    rows = table(part.blocks, "optics").set_index("rlnOpticsGroup")
    if several and (without := [one.name for group, one in part.optics.items() if group not in files]):
        raise InputError(
            f"{part.path}: optics group {without[0]} names no MTF, others do; name the detector's in every group"
        )
    if files and (_PIXEL not in rows.columns or not (rows[_PIXEL].to_numpy(float) > 0).all()):
        raise InputError(
            f"{part.path} lacks {_PIXEL} in data_optics, which the frequencies of an MTF are relative to; add it"
        )
    return {group: read_mtf(root / name, float(rows[_PIXEL][group])) for group, name in files.items()}


def _relative(curves: Mapping[int, Mtf]) -> dict[int, Mtf]:
    """Return each curve divided by the mean of all, as RELION's refinement takes it."""
    frequency = np.linspace(0, max(curve.frequency_per_A[-1] for curve in curves.values()), _SAMPLES)
    values = {group: curve.at(frequency) for group, curve in curves.items()}
    mean = np.mean(list(values.values()), axis=0)
    return {group: Mtf(tuple(frequency.tolist()), tuple((value / mean).tolist())) for group, value in values.items()}
